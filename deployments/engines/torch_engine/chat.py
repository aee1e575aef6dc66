"""Messages to prompt tokens: the checkpoint's chat template and tokenizer, without transformers.

Rendering and tokens equal `AutoTokenizer.apply_chat_template`; that import would cost every replica about a CPU-second
and its memory. One difference is meant: the text of a special token inside a message stays text. It is cut behind its
first character before rendering, so that the tokenizer cannot see a control token there.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from cluster.errors import CheckpointError, ContextTooLong, InvalidRequest
from cluster.request import Message, Tool
from deployments.engines.calls import arguments_of
from deployments.engines.text import vocabulary_bytes
from deployments.engines.torch_engine.checkpoint import read_json


class ChatTokenizer:
    def __init__(self, folder: Path, context_tokens: int) -> None:
        """Messages that cannot have less than context_tokens tokens are refused before they cost much."""
        file = folder / "tokenizer.json"
        try:
            self._tokenizer: Tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises plain Exception for a missing or broken file
            raise CheckpointError(f"{file}: {error}; a tokenizers file is allowed; save the tokenizer anew") from error
        config = read_json(folder / "tokenizer_config.json")
        self._named = {key: _content(config[key]) for key in config if key.endswith("_token") and config[key]}
        self._template, self._knows_tools = _compiled(folder, config)
        self.bytes_of = vocabulary_bytes(self._tokenizer, str(file))
        self._context_tokens, self._longest_bytes = context_tokens, max(map(len, self.bytes_of))
        self._kept: tuple[str, ...] = ()
        self._guard([t.content for t in self._tokenizer.get_added_tokens_decoder().values() if t.special])

    def reserve(self, texts: Sequence[str]) -> None:
        """Also these stay text inside a message: added tokens that are not special, but stand for other input."""
        added = (token.content for token in self._tokenizer.get_added_tokens_decoder().values())
        self._guard([token for token in added if any(token in text for text in texts)])

    def _guard(self, tokens: Sequence[str]) -> None:
        self._kept = (*self._kept, *tokens)
        # Looking ahead finds special tokens that overlap, too.
        kept = "|".join(map(re.escape, self._kept))
        self._special = re.compile(f"(?=({kept}))(.)", re.DOTALL) if kept else None

    def encode(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), beside: Sequence[str] = ()
    ) -> tuple[int, ...]:
        """`beside`: what stands in the place of each of the messages' media; its special tokens count.

        Raises ContextTooLong, InvalidRequest. The caller's thread waits, others may run meanwhile.
        """
        if tools and not self._knows_tools:
            raise InvalidRequest(
                "tools: given; the checkpoint's chat template writes none into prompts; leave them out, or name a tier "
                "whose does",
                param="tools",
            )
        offered = [_offer(tool) for tool in tools]
        more = [_called(message) for message in messages]
        called = json.dumps([offered, more], ensure_ascii=False) if tools or any(more) else ""
        said_bytes = sum(_bytes(m.content, f"messages.{index}.content") for index, m in enumerate(messages))
        self._bound(said_bytes + _bytes(called, "tools"))
        text = "".join((*(message.content for message in messages), called))
        cut = _unused(text)
        mark = _unused(text + cut)
        said = [
            {"role": _ROLES.get(m.role, m.role), "content": _marked(m, mark)} | calls
            for m, calls in zip(messages, more, strict=True)
        ]
        prompt = self._render(self._defused(said, cut), self._defused(offered, cut))
        prompt = _placed(prompt, mark, beside, cut)
        pieces = self._tokenizer.encode_batch_fast(prompt.split(cut), add_special_tokens=False)
        return tuple(token for piece in pieces for token in piece.ids)

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Without a template, special tokens in it taken for what they are. Raises ContextTooLong, InvalidRequest."""
        self._bound(_bytes(text, "prompt"), "prompt")
        return tuple(self._tokenizer.encode(text).ids)

    def _bound(self, given_bytes: int, param: str = "messages") -> None:
        """No token stands for more bytes than the longest of the vocabulary."""
        most_bytes = self._context_tokens * self._longest_bytes
        if given_bytes > most_bytes:
            raise ContextTooLong(
                f"{param}: {given_bytes} bytes of text; at most {most_bytes} are allowed, "
                f"{self._context_tokens} tokens of up to {self._longest_bytes} bytes; shorten the {param}",
                param=param,
            )

    def _defused(self, value: Any, cut: str) -> Any:
        """The value with every string in it cut."""
        match value:
            case str() if self._special:
                return self._special.sub(rf"\2{cut}", value)
            case list():
                return [self._defused(one, cut) for one in value]
            case dict():
                return {self._defused(key, cut): self._defused(one, cut) for key, one in value.items()}
        return value

    def _render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
        try:
            return self._template.render(
                messages=messages, tools=tools or None, documents=None, add_generation_prompt=True, **self._named
            )
        except (TemplateError, TypeError, ValueError) as error:  # of values that it does not expect, too
            raise InvalidRequest(
                f"messages: the chat template refuses them: {error}; other roles or another order are allowed; "
                "change the messages",
                param="messages",
            ) from error


def _marked(message: Message, mark: str) -> str:
    content, ends = message.content, [0, *(media.at for media in message.media), len(message.content)]
    return mark.join(content[begin:end] for begin, end in pairwise(ends))


def _placed(prompt: str, mark: str, beside: Sequence[str], cut: str) -> str:
    if not beside:
        return prompt
    pieces = prompt.split(mark)
    if len(pieces) != len(beside) + 1:
        raise InvalidRequest(
            f"messages: the chat template writes {len(pieces) - 1} of {len(beside)} inputs; all are needed; send "
            "them in other messages",
            param="messages",
        )
    return pieces[0] + "".join(f"{cut}{text}{cut}{piece}" for text, piece in zip(beside, pieces[1:], strict=True))


def _offer(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": json.loads(tool.parameters)}
    return {"type": "function", "function": function}


def _called(message: Message) -> dict[str, Any]:
    """What a message says of calls, where it does."""
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments_of(call)}}
        for call in message.tool_calls
    ]
    said = {"tool_calls": calls, "tool_call_id": message.tool_call_id}
    return {key: value for key, value in said.items() if value}


_ROLES: Mapping[str, str] = {"developer": "system"}  # OpenAI's newer name, which templates do not know


class _Generation(Extension):
    """The mark that some templates set around answers, for training; here only its content counts."""

    tags: set[str] = {"generation"}  # noqa: RUF012 - as in the base class

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compiled(folder: Path, config: dict[str, Any]) -> tuple[Template, bool]:
    """The template, and whether it writes tools into prompts."""
    file = folder / "chat_template.jinja"
    source = file.read_text(encoding="utf-8") if file.exists() else config.get("chat_template")
    if not isinstance(source, str):
        raise CheckpointError(f"{file}: missing; a chat template is needed; save it there or in tokenizer_config.json")
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)  # noqa: DTZ005 - as transformers does
    try:
        return environment.from_string(source), "tools" in find_undeclared_variables(environment.parse(source))
    except TemplateError as error:
        raise CheckpointError(f"{file}: {error}; a jinja2 template is allowed; mend the template") from error


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As templates know it from transformers; jinja2's own would escape for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _content(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _bytes(text: str, param: str) -> int:
    try:
        return len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{param}: lone surrogate {text[error.start]!r} at {error.start}; Unicode text is allowed; "
            "send whole characters",
            param=param,
        ) from error


def _unused(text: str) -> str:
    """A character that no message contains: a noncharacter of Unicode where possible."""
    first = chr(0xFDD0)
    if first not in text:
        return first
    used = set(text)  # once: a text may hold many of those that are tried
    return next(c for c in map(chr, range(0xFDD1, 0x110000)) if c not in used)
