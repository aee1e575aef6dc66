"""The request side of the OpenAI wire: bytes of POST /v1/chat/completions -> a validated Chat, or one InvalidRequest.

Every parameter of the public API is either served, accepted because it changes no answer, or refused by name with code
`unsupported_parameter`. Any other name is refused with `unknown_parameter`, but for two of vLLM's, which load tools
send: `ignore_eos`, and `continuous_usage_stats` in `stream_options`. Bytes are parsed once, in Rust, with bounded depth
and numbers; a second, plain pass over valid bodies refuses a key given twice, on which parsers differ.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationError

from cluster.errors import InvalidRequest
from cluster.request import Chat, Effort, Message, Sampling, ServiceClass
from deployments.gateway.body import Strict, bound_structure, distinct, only, refusal
from deployments.gateway.schemas import Format, json_schema
from deployments.gateway.tools import Calls, Id, Tools, calls_of, check_calls, counted, offered

MOST_MESSAGES = 2048  # as in the API
MOST_BIASES = 1024
MOST_CHOICES = 8  # answers of one request, each of which takes a place; the API has 128

SERVICE_CLASSES: Mapping[str | None, ServiceClass] = {
    "auto": "default",
    "default": "default",
    "flex": "flex",
    "priority": "priority",
    "fast": "priority",  # the API's other name
}
EFFORTS: Mapping[str | None, Effort | None] = {
    **dict.fromkeys(("none", "minimal", "low")),  # no tier reasons apart from its answer: that is little enough
    **{effort: effort for effort in get_args(Effort)},
}
_STRING, _PARTS = "<string>", "<parts>"


def _kind(content: object) -> str | None:
    return _STRING if isinstance(content, str) else _PARTS if isinstance(content, list) else None


def _as_list(stop: object) -> object:
    return [stop] if isinstance(stop, str) else stop


Nothing = Annotated[Any, only()]
Text = Annotated[str, Field(min_length=1)]
Tokens = Annotated[int, Field(ge=1, le=2**31 - 1)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Token = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")]  # one way to write each, so that none comes twice
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


class _Part(Strict):
    type: Annotated[str, only("text")]
    text: str
    prompt_cache_breakpoint: Nothing = None


_Content = Annotated[
    Annotated[str, Tag(_STRING)]
    | Annotated[list[_Part], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True), Tag(_PARTS)],
    Discriminator(
        _kind,
        custom_error_type="content_type",
        custom_error_message='a string or a list of {"type": "text"} parts is allowed',
    ),
]


class _Message(Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: _Content | None = None
    name: str | None = None
    tool_calls: Calls | None = None
    tool_call_id: Id | None = None
    # An assistant message of an earlier answer comes back with these, mostly null.
    refusal: Nothing = None
    annotations: Annotated[Any, only([])] = None
    audio: Nothing = None
    function_call: Nothing = None


class _StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: Annotated[bool | None, only(False)] = None
    continuous_usage_stats: bool | None = None


class ChatBody(Strict):
    """The closed list of parameters. Null means absent, as in the API."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    messages: Annotated[list[_Message], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)]
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    stop: Annotated[list[Text], Field(max_length=4), BeforeValidator(_as_list)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[Token, Bias], Field(max_length=MOST_BIASES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    response_format: Format | None = None
    tools: Tools | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    ignore_eos: bool | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    service_tier: Annotated[str | None, only("auto", "default", "flex", "priority", "fast")] = None
    reasoning_effort: Annotated[str | None, only(*filter(None, EFFORTS))] = None

    # Accepted: they change no answer.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None

    # Not served yet: only what asks for nothing passes.
    functions: Annotated[Any, only([])] = None
    function_call: Annotated[Any, only("none")] = None
    modalities: Annotated[Any, only(["text"])] = None
    audio: Nothing = None
    prediction: Nothing = None
    verbosity: Annotated[Any, only("medium")] = None
    web_search_options: Nothing = None
    moderation: Nothing = None
    store: Annotated[bool | None, only(False)] = None
    prompt_cache_options: Nothing = None
    prompt_cache_retention: Annotated[Any, only("in_memory")] = None


def parse_chat(body: bytes, request_id: str, created_s: int, seed: int) -> Chat:
    """The chat that a body asks for; `seed` where the caller gives none. Raises InvalidRequest and nothing else."""
    bound_structure(body)
    try:
        asked = ChatBody.model_validate_json(body)
    except ValidationError as error:
        # Not chained: a validation error prints its input, and prompts have no place in logs.
        raise refusal(error, ChatBody.model_fields) from None
    _refuse_repeated_keys(body)
    _refuse_contradictions(asked)
    messages = tuple(_message(message, f"messages[{index}]") for index, message in enumerate(asked.messages))
    check_calls(messages)
    tools, schema = offered(asked.tools or (), asked.tool_choice), json_schema(asked.response_format)
    if asked.ignore_eos and schema is not None:
        raise InvalidRequest(
            "ignore_eos: given true beside a schema in response_format, which says where the answer ends; either alone "
            "is allowed; leave one of the two out",
            param="ignore_eos",
        )
    options = asked.stream_options or _StreamOptions()
    return Chat(
        request_id=request_id,
        model=asked.model,
        messages=messages,
        sampling=_sampling(asked, seed, schema, bool(tools)),
        service_class=SERVICE_CLASSES.get(asked.service_tier),
        effort=EFFORTS.get(asked.reasoning_effort),
        tools=tools,
        stream=bool(asked.stream),
        include_usage=bool(options.include_usage),
        continuous_usage=bool(options.continuous_usage_stats),
        created_s=created_s,
        choices=asked.n or 1,
    )


def _message(asked: _Message, where: str) -> Message:
    if asked.content is None and not asked.tool_calls:
        param = f"{where}.content"
        raise InvalidRequest(
            f"{param}: not given; text is needed, but where an assistant called tools; add it", param=param
        )
    content = asked.content or ""
    return Message(
        role=asked.role,
        content=content if isinstance(content, str) else "\n".join(part.text for part in content),
        tool_calls=calls_of(asked.tool_calls or ()),
        tool_call_id=asked.tool_call_id,
    )


def _sampling(asked: ChatBody, seed: int, schema: str | None, tools: bool) -> Sampling:
    floats = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
    given: dict[str, Any] = {name: value for name in floats if (value := getattr(asked, name)) is not None}
    least, most = counted(asked.tool_choice, asked.parallel_tool_calls) if tools else (0, None)
    return Sampling(
        least_calls=least,
        most_calls=most,
        max_tokens=asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens,
        stop=tuple(asked.stop or ()),
        logit_bias=tuple((int(token), bias) for token, bias in (asked.logit_bias or {}).items()),
        seed=seed if asked.seed is None else asked.seed,
        top_logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
        json_schema=None if least else schema,  # an answer that must call has no other text
        ignore_eos=bool(asked.ignore_eos),
        **given,
    )


def _refuse_contradictions(asked: ChatBody) -> None:
    if None not in (asked.max_tokens, asked.max_completion_tokens) and asked.max_tokens != asked.max_completion_tokens:
        raise InvalidRequest(
            f"max_tokens: given {asked.max_tokens} beside max_completion_tokens {asked.max_completion_tokens}; "
            "they mean the same; give max_completion_tokens alone",
            param="max_tokens",
        )
    if asked.top_logprobs is not None and not asked.logprobs:
        raise InvalidRequest(
            f"top_logprobs: given {asked.top_logprobs} without logprobs; it is allowed beside logprobs true; "
            "set logprobs to true",
            param="top_logprobs",
        )
    if asked.stream_options is not None and not asked.stream:
        raise InvalidRequest(
            "stream_options: given without stream; it is allowed beside stream true; set stream to true",
            param="stream_options",
        )
    options = asked.stream_options
    if options is not None and options.continuous_usage_stats and not options.include_usage:
        raise InvalidRequest(
            "stream_options.continuous_usage_stats: given true without include_usage; it is allowed beside "
            "include_usage true; set include_usage to true",
            param="stream_options.continuous_usage_stats",
        )


def _refuse_repeated_keys(body: bytes) -> None:
    try:
        json.loads(body, object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:  # only where an earlier value of a repeated key hides such a thing
        raise InvalidRequest(
            "body: not readable JSON; a JSON object is allowed; mend it", code="invalid_json"
        ) from error
