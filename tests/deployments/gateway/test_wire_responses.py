import json
import math
from dataclasses import replace
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from cluster.errors import EngineFailed, InvalidRequest, NotFound, Overloaded
from cluster.family import load
from cluster.request import Chat, Piece, Sampling, Served, TokenLogprob, ToolCall, Usage
from deployments.gateway.wire import (
    ChatRendering,
    error_body,
    error_event,
    error_headers,
    model_object,
    models_list,
)

USAGE = Usage(prompt_tokens=5, completion_tokens=2, cached_tokens=3)
STOP = Piece(finish_reason="stop")
LOGPROB = TokenLogprob(
    token="é", token_bytes="é".encode(), logprob=-0.25, top=(("é", "é".encode(), -0.25), ("\ufffd", b"\xc3", -math.inf))
)


def chat(*, top_logprobs: int | None = None, include_usage: bool = False) -> Chat:
    return Chat(
        request_id="chatcmpl-1",
        model="gpt-5.2-mini",
        messages=(),
        sampling=Sampling(top_logprobs=top_logprobs),
        stream=True,
        include_usage=include_usage,
        created_s=1_790_000_000,
    )


def events(data: bytes) -> list[str]:
    assert data.endswith(b"\n\n")
    lines = data.decode().split("\n\n")[:-1]
    assert all(line.startswith("data: ") for line in lines)
    return [line.removeprefix("data: ") for line in lines]


def chunk(event: str) -> ChatCompletionChunk:
    return ChatCompletionChunk.model_validate(json.loads(event), strict=True)


def streamed(asked: Chat, *pieces: Piece, finish: Literal["stop", "length"] = "stop", label: str = "") -> list[str]:
    stream = ChatRendering(asked, label)
    return events(b"".join([stream.role(), *map(stream.piece, pieces), stream.end(Piece(finish_reason=finish), USAGE)]))


def test_a_stream_is_a_role_pieces_a_finish_reason_and_done() -> None:
    *chunks, done = streamed(chat(), Piece(tokens=1, text="Hel"), Piece(tokens=1, text="lo"), finish="length")
    choices = [chunk(one).choices[0] for one in chunks]
    assert [(one.delta.role, one.delta.content, one.finish_reason) for one in choices] == [
        ("assistant", "", None),
        (None, "Hel", None),
        (None, "lo", None),
        (None, None, "length"),
    ]
    assert done == "[DONE]"
    first = chunk(chunks[0])
    assert (first.id, first.created, first.model) == ("chatcmpl-1", 1_790_000_000, "gpt-5.2-mini")
    assert not any("usage" in json.loads(one) for one in chunks)


def test_usage_comes_last_with_no_choice_where_it_was_asked_for() -> None:
    *chunks, usage, _ = streamed(chat(include_usage=True), Piece(tokens=1, text="x"))
    assert all(json.loads(one)["usage"] is None for one in chunks)
    told = chunk(usage)
    assert told.choices == []
    assert told.usage is not None
    assert (told.usage.prompt_tokens, told.usage.completion_tokens, told.usage.total_tokens) == (5, 2, 7)
    assert told.usage.prompt_tokens_details is not None
    assert told.usage.prompt_tokens_details.cached_tokens == 3


@pytest.mark.parametrize(
    ("served", "told"),
    [
        (None, None),
        (
            Served(tier="mini", replica="r1", queued_s=0.01234),
            {"tier": "mini", "replica": "r1", "queued_ms": 12.3},
        ),
        (
            Served(tier="mini", replica="r1", queued_s=0.0, spilled="turbo is full", resumed=2),
            {"tier": "mini", "replica": "r1", "queued_ms": 0.0, "spilled": "turbo is full", "resumed": 2},
        ),
    ],
)
def test_usage_says_who_served_where_that_is_known(served: Served | None, told: dict[str, Any] | None) -> None:
    asked = replace(chat(include_usage=True), served=served)
    whole = json.loads(ChatRendering(asked).whole("hi", (), STOP, USAGE))
    assert whole["usage"].get("moray") == told
    assert ("moray" in whole["usage"]) == (told is not None)
    *_, last, _ = streamed(asked, Piece(tokens=1, text="x"))
    assert json.loads(last)["usage"] == whole["usage"]
    usages = (ChatCompletion.model_validate(whole, strict=True).usage, chunk(last).usage)
    assert all(usage is not None and usage.total_tokens == 7 for usage in usages)


def test_every_chunk_tells_the_usage_so_far_where_it_was_asked_for() -> None:
    stream = ChatRendering(replace(chat(include_usage=True), continuous_usage=True))
    so_far = [Usage(prompt_tokens=5, completion_tokens=tokens) for tokens in (0, 1, 2)]
    call = ToolCall(id="call_1", name="look_up", arguments="{}")
    data = stream.role(so_far[0]) + stream.piece(Piece(text="x", usage=so_far[1]))
    data += stream.piece(Piece(text="é", logprobs=(LOGPROB,), usage=so_far[2]))
    data += stream.end(Piece(tool_calls=(call,), finish_reason="tool_calls"), USAGE)
    usages = [chunk(one).usage for one in events(data)[:-1]]
    assert [usage and usage.completion_tokens for usage in usages] == [0, 1, 2, 2, 2, 2]
    assert [usage and usage.total_tokens for usage in usages] == [5, 6, 7, 7, 7, 7]


def test_an_answer_that_goes_on_has_no_role_again() -> None:
    stream = ChatRendering(replace(chat(), given=(1,)))
    assert stream.role() == b""


def test_a_piece_without_text_sends_nothing() -> None:
    assert ChatRendering(chat()).piece(Piece(tokens=1)) == b""


def test_log_probabilities_have_the_shape_of_the_api() -> None:
    _, piece, _, _ = streamed(chat(top_logprobs=2), Piece(tokens=1, logprobs=(LOGPROB,)))
    logprobs = chunk(piece).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert logprobs.content[0].model_dump() == {
        "token": "é",
        "logprob": -0.25,
        "bytes": [195, 169],
        "top_logprobs": [
            {"token": "é", "logprob": -0.25, "bytes": [195, 169]},
            {"token": "\ufffd", "logprob": -9999.0, "bytes": [195]},
        ],
    }


def test_a_simulated_answer_says_so_in_every_chunk() -> None:
    *chunks, _ = streamed(chat(include_usage=True), Piece(tokens=1, text="x"), label="simulated")
    assert {chunk(one).model for one in chunks} == {"gpt-5.2-mini (simulated)"}


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=[]))))
def test_any_text_arrives_unchanged_in_one_line_of_ascii(texts: list[str]) -> None:
    stream = ChatRendering(chat())
    data = b"".join(stream.piece(Piece(tokens=1, text=text)) for text in texts)
    assert data.isascii()
    assert data.count(b"\n") == 2 * sum(map(bool, texts))
    got = [json.loads(event)["choices"][0]["delta"]["content"] for event in events(data)] if data else []
    assert got == [text for text in texts if text]


@pytest.mark.parametrize("top_logprobs", [None, 0, 2])
def test_an_unstreamed_answer_is_a_chat_completion(top_logprobs: int | None) -> None:
    logprobs = () if top_logprobs is None else (LOGPROB,)
    asked = chat(top_logprobs=top_logprobs)
    answer = ChatCompletion.model_validate(
        json.loads(ChatRendering(asked, "simulated").whole("hé", logprobs, STOP, USAGE)), strict=True
    )
    (choice,) = answer.choices
    assert (answer.id, answer.model, answer.object) == ("chatcmpl-1", "gpt-5.2-mini (simulated)", "chat.completion")
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "hé", "stop")
    assert (choice.logprobs is None) == (top_logprobs is None)
    assert answer.usage is not None
    assert answer.usage.total_tokens == 7


CALLS = Piece(
    finish_reason="tool_calls",
    tool_calls=(
        ToolCall(id="call_a", name="look_up", arguments='{"what":"é\\n"}'),
        ToolCall(id="call_b", name="add", arguments="not JSON"),
    ),
)


def test_calls_are_streamed_whole_each_in_its_own_delta() -> None:
    stream = ChatRendering(chat())
    *chunks, done = events(stream.role() + stream.end(CALLS, USAGE))
    first, *calls, last = (chunk(one).choices[0] for one in chunks)
    assert first.delta.role == "assistant"
    told = [call for choice in calls for call in choice.delta.tool_calls or ()]
    assert [(call.index, call.id, call.type) for call in told] == [(0, "call_a", "function"), (1, "call_b", "function")]
    functions = [call.function for call in told if call.function is not None]
    assert [(one.name, one.arguments) for one in functions] == [(one.name, one.arguments) for one in CALLS.tool_calls]
    assert [choice.finish_reason for choice in (first, *calls)] == [None] * 3
    assert (last.finish_reason, last.delta.tool_calls, done) == ("tool_calls", None, "[DONE]")


@pytest.mark.parametrize(("text", "content"), [("", None), ("Let me look.", "Let me look.")])
def test_an_unstreamed_answer_with_calls_has_no_content_but_text_before_them(text: str, content: str | None) -> None:
    body = json.loads(ChatRendering(chat()).whole(text, (), CALLS, USAGE))
    (choice,) = ChatCompletion.model_validate(body, strict=True).choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", content)
    functions = [call.function for call in choice.message.tool_calls or () if call.type == "function"]
    assert [(one.name, one.arguments) for one in functions] == [(one.name, one.arguments) for one in CALLS.tool_calls]


def test_an_answer_without_calls_says_nothing_of_them() -> None:
    assert "tool_calls" not in ChatRendering(chat()).whole("hi", (), STOP, USAGE).decode()


def test_an_error_is_openais_error_object() -> None:
    error = InvalidRequest("n: given 2; 1 is allowed; leave it out", param="n", code="unsupported_parameter")
    assert json.loads(error_body(error)) == {
        "error": {
            "message": "n: given 2; 1 is allowed; leave it out",
            "type": "invalid_request_error",
            "param": "n",
            "code": "unsupported_parameter",
        }
    }


def test_an_error_in_a_stream_is_one_event_and_no_done() -> None:
    (event,) = events(error_event(EngineFailed("engine: lost\nhalfway")))
    assert json.loads(event)["error"]["message"] == "engine: lost\nhalfway"


def test_of_a_foreign_error_nothing_leaks() -> None:
    assert b"password" not in error_body(ValueError("password"))
    assert json.loads(error_body(ValueError("x")))["error"]["code"] == "internal_error"


@pytest.mark.parametrize(
    ("retry_after_s", "header"),
    [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.1, "2"), (59.01, "60"), (math.inf, "86400"), (math.nan, "1")],
)
def test_retry_after_is_whole_seconds_rounded_up(retry_after_s: float, header: str) -> None:
    assert error_headers(Overloaded("full; wait; retry", retry_after_s=retry_after_s)) == {"Retry-After": header}


def test_only_an_overload_says_when_to_retry() -> None:
    assert error_headers(EngineFailed("x")) == {}


def test_every_name_of_the_family_is_a_model() -> None:
    family = load("laptop")
    listed: dict[str, Any] = models_list(family, 1_790_000_000)
    models = [Model.model_validate(one, strict=True) for one in listed["data"]]
    assert listed["object"] == "list"
    assert {one.id for one in models} >= {"gpt-5.2-mini", "gpt-5.2-turbo", "gpt-5.2-pro", "gpt-5.2-ultra", "sora-2"}
    assert [model_object(family, one.id, 1_790_000_000) for one in models] == listed["data"]


def test_a_model_tells_its_tier_context_specialists_and_price() -> None:
    told = model_object(load("laptop"), "gpt-5.2-turbo", 0)
    assert (told["tier"], told["context_tokens"]) == ("turbo", 2048)
    assert told["specialists"] == ["math", "code_security"]
    assert told["price"] == {"input_usd_per_mtok": 10.0, "output_usd_per_mtok": 30.0}
    assert (told["structured"], told["tools"], told["forced_tools"]) == (True, True, True)


def test_a_video_model_tells_what_may_be_asked_of_it_and_its_price() -> None:
    told = model_object(load("laptop"), "sora-2", 0)
    assert (told["tier"], told["engine"], told["max_waiting"]) == ("video", "diffusers", 32)
    assert (told["sizes"], told["seconds"], told["fps"]) == (["64x64", "96x64", "64x96"], [1, 2, 4], 8)
    assert (told["largest_size"], told["max_frames"], told["audio"]) == ("4096x2160", 32, "muxed")
    assert told["price"] == {"usd_per_second": 0.1}


def test_an_unknown_model_is_not_found_and_the_known_are_named() -> None:
    with pytest.raises(NotFound, match=r"model: given 'gpt-9'; served are .*gpt-5.2-mini.*; choose one of them"):
        model_object(load("laptop"), "gpt-9", 0)
