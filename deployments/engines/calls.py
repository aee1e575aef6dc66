"""Calls of tools in the text of an answer, as Hermes and Qwen models and the checkpoints that ship write them:

    <tool_call>
    {"name": ..., "arguments": {...}}
    </tool_call>

From the first such mark on text is held back to the answer's end. Then it is told as calls, if it is nothing but whole
calls of offered tools; else as the text that it is, since no client could act on it.
"""

import json
import re
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NoReturn

from cluster.request import FinishReason, Tool, ToolCall
from deployments.engines.text import overlap

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_CALL = re.compile(f"{OPEN}(.*?){CLOSE}\\s*", re.DOTALL)


class CallText:
    """The text of one stream, piece by piece. Without tools it passes unchanged. `key` makes the calls' ids its own."""

    __slots__ = ("_held", "_key", "_names", "_open")

    def __init__(self, tools: Sequence[Tool], key: str) -> None:
        self._names = frozenset(tool.name for tool in tools)
        self._key = key
        self._held: list[str] = []
        self._open = False

    def push(self, text: str) -> str:
        """The text that may be shown now."""
        if not self._names:
            return text
        if self._open:
            self._held.append(text)
            return ""
        text = "".join((*self._held, text))
        at = text.find(OPEN)
        self._open = at >= 0
        shown = at if self._open else len(text) - overlap(text, OPEN)
        self._held = [text[shown:]]
        return text[:shown]

    def end(self, reason: FinishReason) -> tuple[str, tuple[ToolCall, ...], FinishReason]:
        """Text that was held back, the calls, and why the answer ended."""
        held = "".join(self._held)
        calls = self._calls(held) if self._open else ()
        return ("", calls, "tool_calls") if calls else (held, (), reason)

    def _calls(self, held: str) -> tuple[ToolCall, ...]:
        """None where anything else stands among them. Each character is read once: text ends at the first fault."""
        calls: list[ToolCall] = []
        at = 0
        while at < len(held):
            found = _CALL.match(held, at)
            call = self._call(len(calls), found[1]) if found else None
            if found is None or call is None:
                return ()
            calls.append(call)
            at = found.end()
        return tuple(calls)

    def _call(self, index: int, text: str) -> ToolCall | None:
        try:
            match json.loads(text, parse_constant=_refuse):
                case {"name": str(name), "arguments": dict(arguments)} if name in self._names:
                    written = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
                    return ToolCall(id=self._id(index), name=name, arguments=written)
        except (ValueError, RecursionError):
            pass
        return None

    def _id(self, index: int) -> str:
        return f"call_{blake2b(f'{self._key} {index}'.encode(), digest_size=12).hexdigest()}"


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def arguments_of(call: ToolCall) -> Any:
    """The arguments as chat templates want them: an object where they are one, else their text."""
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):
        return call.arguments
    return arguments if isinstance(arguments, dict) else call.arguments
