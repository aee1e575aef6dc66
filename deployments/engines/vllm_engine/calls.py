"""Calls of tools in an answer, found by the parser that vLLM has for the model's way of writing them."""

import json
from collections.abc import Sequence
from typing import Any

from cluster.request import Tool, ToolCall


class Calls:
    """One answer. Its parser sees special tokens too: some models begin a call with one."""

    def __init__(self, parser: Any, tools: Sequence[Tool]) -> None:
        """parser: vLLM's class, already bound to the tokenizer."""
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        offered = [
            {
                "type": "function",
                "function": {"name": t.name, "description": t.description, "parameters": json.loads(t.parameters)},
            }
            for t in tools
        ]
        self._request = ChatCompletionRequest(model="", messages=[], tools=offered)
        self._parser = parser(self._request.tools)
        self._text = self._shown = ""
        self._ids: list[int] = []

    def push(self, text: str, ids: Sequence[int]) -> str:
        """What of the new text is no call, and cannot become one."""
        before, known = self._text, list(self._ids)
        self._text += text
        self._ids += ids
        told = self._parser.extract_tool_calls_streaming(
            before, self._text, text, known, self._ids, list(ids), self._request
        )
        shown = (told.content or "") if told is not None else ""
        self._shown += shown
        return shown

    def end(self) -> tuple[str, tuple[ToolCall, ...]]:
        """The rest of the text, and all calls."""
        told = self._parser.extract_tool_calls(self._text, self._request)
        content = told.content or ""
        rest = content[len(self._shown) :] if content.startswith(self._shown) else ""
        return rest, tuple(
            ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments) for call in told.tool_calls
        )
