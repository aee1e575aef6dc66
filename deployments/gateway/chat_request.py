"""The request side of the OpenAI wire: bytes of POST /v1/chat/completions -> a validated Chat, or one InvalidRequest.

Every parameter of the public API is either served, accepted because it changes no answer, or refused by name with code
`unsupported_parameter`. Any other name is refused with `unknown_parameter`, but for two of vLLM's, which load tools
send: `ignore_eos`, and `continuous_usage_stats` in `stream_options`. Bytes are parsed once, in Rust, with bounded depth
and numbers; a second, plain pass over valid bodies refuses a key given twice, on which parsers differ.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError

from cluster.errors import InvalidRequest
from cluster.inputs import Sent
from cluster.request import Chat, Effort, Message, Sampling
from deployments.gateway.body import Strict, bound_structure, only, refusal
from deployments.gateway.chat_parts import Content, bounded, text_of
from deployments.gateway.sampled import Sampled, Tokens, refuse_repeated_keys, sampling_of, told_of
from deployments.gateway.schemas import Format, json_schema
from deployments.gateway.tools import Calls, Id, Tools, calls_of, check_calls, counted, offered

MOST_MESSAGES = 2048  # as in the API

EFFORTS: Mapping[str | None, Effort | None] = {
    **dict.fromkeys(("none", "minimal", "low")),  # no tier reasons apart from its answer: that is little enough
    **{effort: effort for effort in get_args(Effort)},
}


Nothing = Annotated[Any, only()]


class _Message(Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    tool_calls: Calls | None = None
    tool_call_id: Id | None = None
    # An assistant message of an earlier answer comes back with these, mostly null.
    refusal: Nothing = None
    annotations: Annotated[Any, only([])] = None
    audio: Nothing = None
    function_call: Nothing = None


class ChatBody(Sampled):
    """The closed list of parameters. Null means absent, as in the API."""

    messages: Annotated[list[_Message], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: Format | None = None
    tools: Tools | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Annotated[str | None, only(*filter(None, EFFORTS))] = None

    # Accepted: they change no answer.
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
    refuse_repeated_keys(body)
    _refuse_contradictions(asked)
    read = [_message(message, index) for index, message in enumerate(asked.messages)]
    messages = tuple(message for message, _ in read)
    check_calls(messages)
    tools, schema = offered(asked.tools or (), asked.tool_choice), json_schema(asked.response_format)
    if asked.ignore_eos and schema is not None:
        raise InvalidRequest(
            "ignore_eos: given true beside a schema in response_format, which says where the answer ends; either alone "
            "is allowed; leave one of the two out",
            param="ignore_eos",
        )
    return Chat(
        **told_of(asked),
        request_id=request_id,
        messages=messages,
        sent=bounded([one for _, sent in read for one in sent]),
        sampling=_sampling(asked, seed, schema, bool(tools)),
        effort=EFFORTS.get(asked.reasoning_effort),
        tools=tools,
        created_s=created_s,
    )


def _message(asked: _Message, index: int) -> tuple[Message, list[Sent]]:
    if asked.content is None and not asked.tool_calls:
        param = f"messages[{index}].content"
        raise InvalidRequest(
            f"{param}: not given; text is needed, but where an assistant called tools; add it", param=param
        )
    content, sent = text_of(asked.content, asked.role, index)
    message = Message(
        role=asked.role,
        content=content,
        tool_calls=calls_of(asked.tool_calls or ()),
        tool_call_id=asked.tool_call_id,
    )
    return message, sent


def _sampling(asked: ChatBody, seed: int, schema: str | None, tools: bool) -> Sampling:
    least, most = counted(asked.tool_choice, asked.parallel_tool_calls) if tools else (0, None)
    return sampling_of(
        asked,
        seed,
        least_calls=least,
        most_calls=most,
        max_tokens=asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens,
        top_logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
        json_schema=None if least else schema,  # an answer that must call has no other text
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
