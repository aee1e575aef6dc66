"""The request side of /v1/responses: its closed list of parameters, and the chat that they ask for.

A response is a chat completion in other words: what it asks is said as the body of one, so that every rule of
chat_request holds here too. Its refusals are told in the words of this API. Every parameter of the public API is
served, accepted because it changes no answer, or refused by name.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from cluster.errors import InvalidRequest, MorayError
from cluster.request import Chat
from deployments.gateway.body import Name, Strict, bound_structure, distinct, only, refusal
from deployments.gateway.chat_request import parse_chat
from deployments.gateway.objects_wire import Metadata
from deployments.gateway.response_items import Input, Item, Nothing, messages_of
from deployments.gateway.tools import MOST_TOOLS

LOGPROBS = "message.output_text.logprobs"
_INCLUDABLE = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
]


class _Format(Strict):
    type: Literal["text", "json_object", "json_schema"]
    name: Name | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class _TextConfig(Strict):
    format: _Format | None = None
    verbosity: Annotated[Any, only("medium")] = None


class _Tool(Strict):
    type: Annotated[str, only("function")]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    allowed_callers: Annotated[Any, only(["direct"])] = None
    async_: Annotated[Any, only(False), Field(alias="async")] = None
    defer_loading: Annotated[Any, only(False)] = None
    output_schema: Nothing = None


class _Reasoning(Strict):
    effort: Any = None
    summary: Nothing = None
    generate_summary: Nothing = None
    context: Annotated[Any, only("auto")] = None
    mode: Nothing = None


class _Conversation(Strict):
    id: str


class _StreamOptions(Strict):
    include_obfuscation: Annotated[bool | None, only(False)] = None


class ResponseBody(Strict):
    """The closed list of parameters. Null means absent, as in the API. Ranges that a chat has too are the chat's."""

    model: Any
    input: Input
    instructions: str | None = None
    temperature: Any = None
    top_p: Any = None
    max_output_tokens: Any = None
    metadata: Metadata | None = None
    text: _TextConfig | None = None
    tools: Annotated[list[_Tool], Field(max_length=MOST_TOOLS, fail_fast=True)] | None = None
    tool_choice: Any = None
    parallel_tool_calls: Any = None
    top_logprobs: Any = None
    include: Annotated[list[_INCLUDABLE], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    store: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: str | _Conversation | None = None
    reasoning: _Reasoning | None = None
    service_tier: Any = None

    # Accepted: they change no answer.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    # Not served yet: only what asks for nothing passes.
    truncation: Annotated[Any, only("disabled")] = None
    max_tool_calls: Nothing = None
    prompt: Nothing = None
    access_programs: Nothing = None
    context_management: Annotated[Any, only([])] = None
    image: Nothing = None
    moderation: Nothing = None
    prompt_cache_options: Nothing = None
    prompt_cache_retention: Annotated[Any, only("in_memory")] = None

    @property
    def kept(self) -> bool:
        return self.store is not False

    @property
    def conversation_id(self) -> str | None:
        return self.conversation.id if isinstance(self.conversation, _Conversation) else self.conversation


def parse_response(body: bytes) -> ResponseBody:
    """Raises InvalidRequest."""
    bound_structure(body)
    try:
        asked = ResponseBody.model_validate_json(body)
    except ValidationError as error:
        raise refusal(error, ResponseBody.model_fields) from None  # not chained: it prints its input
    try:
        json.loads(body, object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:
        text = "body: not readable JSON; a JSON object is allowed; mend it"
        raise InvalidRequest(text, code="invalid_json") from error
    if asked.background and not asked.kept:
        text = "background: given true beside store false; a response in the background is kept; leave one of them out"
        raise InvalidRequest(text, param="background")
    if asked.previous_response_id is not None and asked.conversation is not None:
        text = "previous_response_id: given beside conversation; one of the two is allowed; leave one out"
        raise InvalidRequest(text, param="previous_response_id")
    if asked.stream_options is not None and not asked.stream:
        text = "stream_options: given without stream; it is allowed beside stream true; set stream to true"
        raise InvalidRequest(text, param="stream_options")
    return asked


def chat_body(asked: ResponseBody, context: Sequence[tuple[Item, str]], seed: int) -> tuple[dict[str, Any], list[str]]:
    """The body of a chat completion that asks for the same, and where its messages come from.

    `context`: all items in order, each with the parameter that it came by.
    """
    messages, origins = messages_of(context)
    if asked.instructions is not None:
        messages.insert(0, {"role": "developer", "content": asked.instructions})
        origins.insert(0, "instructions")
    logprobs = asked.top_logprobs is not None or LOGPROBS in (asked.include or ())
    body = {
        "model": asked.model,
        "messages": messages,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "max_completion_tokens": asked.max_output_tokens,
        "logprobs": logprobs or None,
        "top_logprobs": asked.top_logprobs,
        "tools": [_tool(tool) for tool in asked.tools] if asked.tools else None,
        "tool_choice": _choice(asked.tool_choice),
        "parallel_tool_calls": asked.parallel_tool_calls,
        "response_format": _format(asked.text.format) if asked.text and asked.text.format else None,
        "reasoning_effort": asked.reasoning.effort if asked.reasoning else None,
        "service_tier": asked.service_tier,
        "seed": seed,
    }
    return {key: value for key, value in body.items() if value is not None}, origins


def chat_of(body: dict[str, Any], origins: Sequence[str], request_id: str, now_s: int, *, stream: bool) -> Chat:
    """Raises InvalidRequest, in the words of this API."""
    streamed = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    try:
        chat = parse_chat(json.dumps(body | streamed).encode(), request_id, now_s, 0)
    except InvalidRequest as error:
        retell(error, origins)
        raise
    return replace(chat, sent=tuple(replace(one, where=_renamed(one.where, origins)) for one in chat.sent))


def retell(error: MorayError, origins: Sequence[str]) -> None:
    """In the words of this API what is said of a chat."""
    if error.param is not None:
        told = _renamed(error.param, origins)
        error.message = told + error.message.removeprefix(error.param)
        error.param = told


def _tool(tool: _Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": {**function, "strict": tool.strict}}


def _choice(choice: object) -> object:
    match choice:
        case {"type": "function", "name": name, **rest} if not rest:
            return {"type": "function", "function": {"name": name}}
        case {"type": "allowed_tools", "mode": mode, "tools": list(tools), **rest} if not rest:
            return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [_choice(one) for one in tools]}}
    return choice


def _format(asked: _Format) -> dict[str, Any]:
    if asked.type != "json_schema":
        return {"type": asked.type}
    named = {"name": asked.name, "description": asked.description, "schema": asked.schema_, "strict": asked.strict}
    return {"type": "json_schema", "json_schema": named}


# What a chat calls its parts: image_url.url, file.file_data. Its other names are no name here.
_PART = re.compile(r"^(\.content\[\d+\])(?:\.(image_url|input_audio)\.\w+|\.file(\.\w+)?|(\.type))?.*|^.*$", re.DOTALL)


def _place(found: re.Match[str]) -> str:
    part, named, file, kind = found.groups()
    return "" if part is None else part + (f".{named}" if named else file or kind or "")


_NAMES = {
    "max_completion_tokens": "max_output_tokens",
    "messages": "input",
    "reasoning_effort": "reasoning.effort",
}


def _renamed(param: str, origins: Sequence[str]) -> str:
    """A parameter of a chat, as this API has it."""
    found = re.match(r"messages\[(\d+)\]", param)
    if found is not None and int(found[1]) < len(origins):
        return origins[int(found[1])] + _PART.sub(_place, param[found.end() :])
    renamed = re.sub(r"^response_format(\.json_schema)?", "text.format", param)
    renamed = re.sub(r"^(tools\[\d+\])\.function", r"\1", renamed)
    return _NAMES.get(renamed, renamed)
