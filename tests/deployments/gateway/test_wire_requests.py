import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import completion_create_params as sdk

from cluster.errors import InvalidRequest
from cluster.request import Chat, Message, Sampling, Tool
from deployments.gateway.body import MOST_STRUCTURE_BYTES, bound_structure
from deployments.gateway.chat_request import ChatBody
from deployments.gateway.wire import parse_chat

HELLO = [{"role": "user", "content": "hello"}]
ARGUMENTS = {"type": "object", "properties": {"what": {"type": "string"}}, "required": ["what"]}
SERVED: dict[str, Any] = {
    "model": "gpt-5.2-mini",
    "messages": HELLO,
    "temperature": 0.5,
    "top_p": 0.9,
    "max_tokens": 7,
    "max_completion_tokens": 7,
    "stop": ["a", "b"],
    "presence_penalty": -1,
    "frequency_penalty": 1.5,
    "logit_bias": {"50256": -100, "7": 0.5},
    "seed": 11,
    "logprobs": True,
    "top_logprobs": 3,
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    "n": 2,
    "user": "u",
    "metadata": {"a": "b"},
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "response_format": {"type": "text"},
    "tools": [
        {"type": "function", "function": {"name": "look_up", "description": "Looks up.", "parameters": ARGUMENTS}}
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "ignore_eos": True,
    "service_tier": "flex",
    "reasoning_effort": "high",
}
VLLMS = {"ignore_eos"}  # no parameter of the public API, but of all load tools
HELD = {"type": "json_schema", "json_schema": {"name": "what", "schema": ARGUMENTS}}
CALLED = {"name": "look_up", "arguments": "{}"}
REFUSED: dict[str, Any] = {
    "functions": [{"name": "f"}],
    "function_call": "auto",
    "audio": {"format": "wav", "voice": "alloy"},
    "modalities": ["text", "audio"],
    "prediction": {"type": "content", "content": "x"},
    "verbosity": "low",
    "web_search_options": {},
    "moderation": {"model": "m"},
    "store": True,
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
}


def parse(body: bytes) -> Chat:
    return parse_chat(body, request_id="chatcmpl-1", created_s=1_790_000_000, seed=42)


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "gpt-5.2-mini", "messages": HELLO} | fields).encode()


def refusal(data: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(data)
    assert caught.value.message.count("; ") >= 2, "where: given; allowed; mend"
    return caught.value


def sdk_parameters() -> set[str]:
    kinds = (sdk.CompletionCreateParamsNonStreaming, sdk.CompletionCreateParamsStreaming)
    return {name for kind in kinds for name in kind.__annotations__}


def test_every_parameter_of_the_public_api_is_served_or_refused_by_name() -> None:
    assert set(SERVED) | set(REFUSED) == sdk_parameters() | VLLMS == set(ChatBody.model_fields)
    parse(body(**SERVED))
    for name, value in REFUSED.items():
        error = refusal(body(**{name: value}))
        assert (error.code, error.param) == ("unsupported_parameter", name)
        assert error.message.endswith("leave it out")


def test_null_means_absent_for_every_optional_parameter() -> None:
    nulls = dict.fromkeys((sdk_parameters() | VLLMS) - {"model", "messages"})
    assert parse(body(**nulls)) == parse(body())


def test_a_full_request_becomes_a_chat() -> None:
    assert parse(body(**SERVED)) == Chat(
        request_id="chatcmpl-1",
        model="gpt-5.2-mini",
        messages=(Message(role="user", content="hello"),),
        sampling=Sampling(
            temperature=0.5,
            top_p=0.9,
            max_tokens=7,
            stop=("a", "b"),
            presence_penalty=-1.0,
            frequency_penalty=1.5,
            logit_bias=((50256, -100.0), (7, 0.5)),
            seed=11,
            top_logprobs=3,
            ignore_eos=True,
        ),
        stream=True,
        include_usage=True,
        continuous_usage=True,
        created_s=1_790_000_000,
        service_class="flex",
        effort="high",
        choices=2,
        tools=(Tool(name="look_up", description="Looks up.", parameters=json.dumps(ARGUMENTS, separators=(",", ":"))),),
    )


def test_a_bare_request_has_the_defaults_and_the_seed_of_the_gateway() -> None:
    assert parse(body()).sampling == Sampling(seed=42)


@pytest.mark.parametrize(
    ("told", "meant"),
    [(None, None), ("auto", "default"), ("default", "default"), ("priority", "priority"), ("fast", "priority")],
)
def test_a_service_tier_has_the_names_of_the_api(told: str | None, meant: str | None) -> None:
    assert parse(body(service_tier=told)).service_class == meant


@pytest.mark.parametrize("effort", [None, "none", "minimal", "low"])
def test_little_reasoning_is_what_every_tier_does(effort: str | None) -> None:
    assert parse(body(reasoning_effort=effort)) == parse(body())


@pytest.mark.parametrize("effort", ["medium", "high", "xhigh", "max"])
def test_more_reasoning_is_for_the_choice_of_the_tier(effort: str) -> None:
    assert parse(body(reasoning_effort=effort)).effort == effort


def test_an_effort_that_the_api_does_not_know_is_refused() -> None:
    assert refusal(body(reasoning_effort="utmost")).param == "reasoning_effort"


def test_a_service_tier_that_is_bought_in_advance_is_not_served() -> None:
    assert refusal(body(service_tier="scale")).code == "unsupported_parameter"


def test_a_seed_of_zero_is_a_seed() -> None:
    assert parse(body(seed=0)).sampling.seed == 0


@pytest.mark.parametrize(
    ("fields", "sampling"),
    [
        ({"stop": "x"}, Sampling(seed=42, stop=("x",))),
        ({"stop": []}, Sampling(seed=42)),
        ({"max_tokens": 5}, Sampling(seed=42, max_tokens=5)),
        ({"max_completion_tokens": 5}, Sampling(seed=42, max_tokens=5)),
        ({"logprobs": True}, Sampling(seed=42, top_logprobs=0)),
        ({"logprobs": False}, Sampling(seed=42)),
        ({"temperature": 0}, Sampling(seed=42, temperature=0.0)),
    ],
)
def test_sampling_follows_the_request(fields: dict[str, Any], sampling: Sampling) -> None:
    assert parse(body(**fields)).sampling == sampling


def test_text_parts_become_lines() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert parse(body(messages=[{"role": "system", "content": parts}])).messages[0].content == "one\ntwo"


def test_an_answer_of_ours_comes_back_as_a_message() -> None:
    empty = dict.fromkeys(["refusal", "audio", "function_call", "tool_calls", "annotations"])
    answer = {"role": "assistant", "content": "hi", **empty}
    assert parse(body(messages=[*HELLO, answer, *HELLO])).messages[1] == Message(role="assistant", content="hi")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [*HELLO, {"role": "robot", "content": "x"}]}, "messages[1].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"temperature": 2.01}, "temperature"),
        ({"temperature": -0.01}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": float("inf")}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 10**4000}, "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"stop": ""}, "stop[0]"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"logit_bias": {"5": 100.5}}, "logit_bias.5"),
        ({"logit_bias": {"5": True}}, "logit_bias.5"),
        ({"logit_bias": {"05": 1}}, "logit_bias.05.[key]"),
        ({"logit_bias": {"-1": 1}}, "logit_bias.-1.[key]"),
        ({"logit_bias": [5]}, "logit_bias"),
        ({"logit_bias": {str(n): 0 for n in range(1025)}}, "logit_bias"),
        ({"seed": 2**63}, "seed"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"continuous_usage_stats": 1}}, "stream_options.continuous_usage_stats"),
        ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
        ({"ignore_eos": "true"}, "ignore_eos"),
        ({"ignore_eos": True, "response_format": HELD}, "ignore_eos"),
        ({"metadata": {"a": 1}}, "metadata.a"),
    ],
)
def test_a_wrong_value_is_refused_with_its_place(fields: dict[str, Any], param: str) -> None:
    error = refusal(body(**fields))
    assert (error.code, error.param) == ("invalid_value", param)
    assert error.message.startswith(param)


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (
            {"role": "user", "content": [{"type": "refusal", "refusal": "no"}]},
            "messages[0].content[0].type",
        ),
        (
            {"role": "assistant", "tool_calls": [{"id": "1", "type": "custom", "function": CALLED}]},
            "messages[0].tool_calls[0].type",
        ),
        ({"role": "assistant", "content": "x", "refusal": "no"}, "messages[0].refusal"),
    ],
)
def test_parts_of_messages_that_are_not_served_are_named(message: dict[str, Any], param: str) -> None:
    error = refusal(body(messages=[message]))
    assert (error.code, error.param) == ("unsupported_parameter", param)


def test_an_unknown_parameter_is_refused_and_the_nearest_named() -> None:
    error = refusal(body(temprature=1))
    assert (error.code, error.param) == ("unknown_parameter", "temprature")
    assert error.message.endswith("did you mean temperature?")


def test_an_unknown_field_of_a_message_is_refused() -> None:
    error = refusal(body(messages=[{"role": "user", "content": "x", "mood": "good"}]))
    assert (error.code, error.param) == ("unknown_parameter", "messages[0].mood")


def test_a_missing_parameter_is_named() -> None:
    assert refusal(b'{"model":"m"}').message == "messages: not given; it is required; add it"


def test_a_key_given_twice_is_refused() -> None:
    error = refusal(b'{"model":"a","model":"b","messages":[{"role":"user","content":"x"}]}')
    assert error.message == "model: given twice; each key is allowed once; drop one of the two"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nope",
        b"\xff\xfe{\x00}\x00",
        b'{"model":"\xff"}',
        b'{"model":"\\ud800","messages":[]}',
        b"[" * 60_000,
        b'{"metadata":' + b'{"a":' * 10_000,
        b'{"seed":' + b"9" * 60_000 + b"}",
    ],
)
def test_what_is_no_json_is_refused(data: bytes) -> None:
    assert refusal(data).code == "invalid_json"


@pytest.mark.parametrize("data", [b"[]", b"null", b"3", b'"model"'])
def test_json_that_is_no_object_is_refused(data: bytes) -> None:
    assert refusal(data).message.startswith("body: given ")


def test_as_many_messages_as_in_the_api_are_a_chat_and_more_are_refused() -> None:
    assert len(parse(body(messages=HELLO * 2048)).messages) == 2048
    error = refusal(body(messages=HELLO * 10_000))
    assert (error.code, error.param) == ("invalid_value", "messages")
    assert "at most 2048 items" in error.message


@pytest.mark.parametrize(
    ("unit", "structure_bytes"), [(b'"\\\\\\"":0,', 3), (b"[], \n", 3), (b'{"":"]]]]"},', 4), (b"1.25,", 5)]
)
def test_what_stands_outside_strings_is_bounded_before_it_is_parsed(unit: bytes, structure_bytes: int) -> None:
    count = MOST_STRUCTURE_BYTES // structure_bytes
    error = refusal(b"[" + unit * (count + 1) + b"]")
    assert error.code == "body_too_complex"
    assert f"{len(unit) * (count + 1) + 2} bytes, too many of them outside strings; at most 65536" in error.message
    assert refusal(b"[" + unit * (count - 2) + b"]").code != "body_too_complex"


@given(st.text(max_size=50))
def test_text_of_any_kind_is_no_structure(text: str) -> None:
    long = text * (MOST_STRUCTURE_BYTES // max(1, len(text)) + 1)
    bound_structure(body(messages=[{"role": "user", "content": long}]))


def test_as_many_messages_as_are_allowed_are_within_the_bound_when_laid_out_for_reading() -> None:
    request = {"model": "m", "messages": [{"role": "user", "name": "n", "content": "x" * 40}] * 2048}
    assert len(parse(json.dumps(request, indent=4).encode()).messages) == 2048


def test_a_message_has_a_bounded_number_of_parts() -> None:
    error = refusal(body(messages=[{"role": "user", "content": [{"type": "text", "text": ""}] * 2049}]))
    assert (error.code, error.param) == ("invalid_value", "messages[0].content")


def test_many_faults_are_counted_not_listed() -> None:
    assert refusal(body(**{f"x{number}": 1 for number in range(101)})).message.startswith("body: 101 faults; ")


def test_a_refusal_repeats_no_more_than_a_glimpse_of_the_request() -> None:
    error = refusal(body(messages=[{"role": "x" * 100_000, "content": "secret " * 1000}]))
    assert len(error.message) < 300
    assert error.__cause__ is None
    assert len(refusal(body(**{"k" * 100_000: 1})).message) < 300


law = settings(deadline=None, max_examples=200)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
requests = st.fixed_dictionaries({}, optional=dict.fromkeys(sorted(sdk_parameters()), json_values)) | json_values
messages = st.lists(
    st.fixed_dictionaries({}, optional=dict.fromkeys(["role", "content", "name", "tool_calls"], json_values))
)


def assert_chat_or_refusal(data: bytes) -> None:
    with contextlib.suppress(InvalidRequest):
        parse(data)


@law
@given(st.binary())
def test_random_bytes_raise_nothing_but_invalid_request(data: bytes) -> None:
    assert_chat_or_refusal(data)


@law
@given(requests)
def test_random_json_raises_nothing_but_invalid_request(value: Any) -> None:
    assert_chat_or_refusal(json.dumps(value).encode())


@law
@given(st.sampled_from(sorted(SERVED)), json_values)
def test_one_random_value_in_a_good_request_raises_nothing_but_invalid_request(name: str, value: Any) -> None:
    assert_chat_or_refusal(json.dumps(SERVED | {name: value}).encode())


@law
@given(messages)
def test_random_messages_raise_nothing_but_invalid_request(value: Any) -> None:
    assert_chat_or_refusal(body(messages=value))


@law
@given(st.sampled_from(["user", "system"]), st.text())
def test_content_arrives_unchanged(role: str, content: str) -> None:
    chat = parse(
        json.dumps({"model": "m", "messages": [{"role": role, "content": content}]}, ensure_ascii=False).encode()
    )
    assert chat.messages[0].content == content
