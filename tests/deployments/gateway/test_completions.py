"""Text completions: what may be asked, and what the official client gets through the whole gateway in this process."""

import json
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError
from openai.types import Completion
from openai.types import completion_create_params as sdk
from sdk import served
from shell import Replica, family

from cluster.errors import InvalidRequest, ReplicaLost
from cluster.request import Chat, Piece, Sampling, TokenLogprob, Usage
from deployments.gateway.choices import each
from deployments.gateway.completion_request import CompletionBody, parse_completion
from deployments.gateway.text_wire import TextRendering

ASK: Any = {"model": "mini", "prompt": "Once upon a time", "max_tokens": 6, "seed": 5}
SERVED: dict[str, Any] = {
    "model": "mini",
    "prompt": ["Once", "upon"],
    "echo": True,
    "n": 2,
    "best_of": 2,
    "max_tokens": 9,
    "temperature": 0.5,
    "top_p": 0.9,
    "stop": "end",
    "presence_penalty": -1,
    "frequency_penalty": 1,
    "logit_bias": {"7": 1},
    "seed": 3,
    "stream": True,
    "stream_options": {"include_usage": True},
    "user": "u",
    "suffix": "",
    "ignore_eos": True,
    "service_tier": "flex",
    "logprobs": None,
}
OURS = {"ignore_eos", "service_tier"}  # as of chats
USAGE = Usage(prompt_tokens=2, completion_tokens=3, cached_tokens=1)


def parse(**fields: Any) -> Chat:
    return parse_completion(json.dumps(ASK | fields).encode(), "cmpl-1", 7, 42)


def refused(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    assert caught.value.message.count("; ") >= 2, "where: given; allowed; mend"
    return caught.value


async def stage(folder: Path) -> Replica:
    return await Replica.started(family(folder))


def test_every_parameter_of_the_public_api_is_served_or_refused_by_name() -> None:
    kinds = (sdk.CompletionCreateParamsNonStreaming, sdk.CompletionCreateParamsStreaming)
    known = {name for kind in kinds for name in kind.__annotations__}
    assert set(SERVED) == known | OURS == set(CompletionBody.model_fields)
    asked = parse(**SERVED)
    assert (asked.prompts, asked.choices, asked.answers, asked.echo) == (("Once", "upon"), 2, 4, True)
    assert (asked.service_class, asked.include_usage, asked.created_s) == ("flex", True, 7)
    assert asked.sampling.stop == ("end",)


def test_a_bare_request_has_the_defaults_of_the_api() -> None:
    asked = parse(max_tokens=None, seed=None)
    assert (asked.prompts, asked.messages) == (("Once upon a time",), ())
    assert asked.sampling == Sampling(max_tokens=16, seed=42)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ("a",)),
        ([1, 2], ((1, 2),)),
        (["a", "b"], ("a", "b")),
        ([[1, 2], [3]], ((1, 2), (3,))),
        (["a", [3]], ("a", (3,))),
    ],
)
def test_a_prompt_is_text_or_token_ids_or_some_of_them(prompt: Any, prompts: Any) -> None:
    assert parse(prompt=prompt).prompts == prompts


@pytest.mark.parametrize(
    "prompt",
    [None, "", [], [[]], [""], {"a": 1}, 3, [True], [-1], [2**31], [1.5], ["a", 1], [["a"]], [[[1]]], ["a"] * 9],
)
def test_any_other_prompt_is_refused_with_what_is_allowed(prompt: Any) -> None:
    error = refused(prompt=prompt)
    assert (error.param, error.code) == ("prompt", "invalid_value")
    assert "up to 8" in error.message


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"best_of": 3}, "best_of", "unsupported_parameter"),
        ({"best_of": 2, "n": 3}, "best_of", "unsupported_parameter"),
        ({"suffix": "x"}, "suffix", "unsupported_parameter"),
        ({"echo": True, "logprobs": 0}, "echo", "unsupported_parameter"),
        ({"echo": True, "prompt": [1]}, "echo", "unsupported_parameter"),
        ({"logprobs": 6}, "logprobs", "invalid_value"),
        ({"logprobs": True}, "logprobs", "invalid_value"),
        ({"n": 9}, "n", "invalid_value"),
        ({"n": 3, "prompt": ["a"] * 3}, "n", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"stream_options": {}}, "stream_options", "invalid_value"),
        ({"messages": []}, "messages", "unknown_parameter"),
        ({"service_tier": "scale"}, "service_tier", "unsupported_parameter"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x", "invalid_value"),
    ],
)
def test_what_is_not_served_or_contradicts_itself_is_refused_by_name(
    fields: dict[str, Any], param: str, code: str
) -> None:
    error = refused(**fields)
    assert str(error.param).startswith(param)
    assert error.code == code


@pytest.mark.parametrize("prompt", [[1] * 1_000_000, ["a"] * 100_000, [[1]] * 100_000])
def test_too_much_structure_is_refused_before_it_is_read(prompt: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(prompt=prompt)
    assert caught.value.code == "body_too_complex"


def test_half_a_character_is_refused_and_a_key_twice() -> None:
    for body in (b'{"model":"m","prompt":"\\ud800"}', b'{"model":"m","prompt":"a","prompt":"b"}', b"[", b""):
        with pytest.raises(InvalidRequest):
            parse_completion(body, "r", 0, 0)


def test_answers_are_numbered_by_prompt_and_then_by_draw() -> None:
    chats = each(parse(prompt=["a", [1]], n=2))
    assert [(one.choice, one.prompts) for one in chats] == [(0, ("a",)), (1, ("a",)), (2, ((1,),)), (3, ((1,),))]
    assert chats[0].sampling.seed == chats[2].sampling.seed == 5
    assert chats[1].sampling.seed != 5


def logprob(data: bytes) -> TokenLogprob:
    return TokenLogprob(
        token=data.decode("utf-8", "replace"), token_bytes=data, logprob=-0.5, top=((" x", b" x", -float("inf")),)
    )


def test_log_probabilities_have_the_older_shape_and_offsets_count_characters() -> None:
    chat = each(parse(logprobs=1))[0]
    tokens = [logprob(data) for data in (b"a\xc3", b"\xa9", b"b")]
    whole = Completion.model_validate_json(
        TextRendering(chat).whole("aéb", tokens, Piece(finish_reason="stop"), USAGE)
    ).choices[0]
    assert whole.logprobs is not None
    assert whole.logprobs.text_offset == [0, 1, 2]
    assert whole.logprobs.token_logprobs == [-0.5] * 3
    assert whole.logprobs.top_logprobs == [{" x": -9999.0}] * 3
    stream = TextRendering(chat)
    told = [json.loads(stream.piece(Piece(text="x", logprobs=(one,)))[6:])["choices"][0] for one in tokens]
    assert [one["logprobs"]["text_offset"] for one in told] == [[0], [1], [2]]


async def test_the_official_client_gets_the_same_text_whole_and_streamed(tmp_path: Path) -> None:
    async with served(tmp_path, await stage(tmp_path)) as here:
        whole = await here.client.completions.create(**ASK)
        assert (whole.object, whole.model, whole.choices[0].finish_reason) == (
            "text_completion",
            "mini (simulated)",
            "length",
        )
        assert whole.system_fingerprint
        assert whole.usage is not None
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (4, 6)
        stream = await here.client.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
        *said, last = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].text for chunk in said) == whole.choices[0].text != ""
        assert said[-1].choices[0].finish_reason == "length"
        assert last.usage is not None
        assert last.usage.total_tokens == whole.usage.total_tokens == 10
        text = whole.choices[0].text.split()
        stopped = await here.client.completions.create(**ASK, stop=text[3])
        assert (stopped.choices[0].text.split(), stopped.choices[0].finish_reason) == (text[:3], "stop")


async def test_several_prompts_are_answered_each_several_times_with_its_echo(tmp_path: Path) -> None:
    async with served(tmp_path, await stage(tmp_path)) as here:
        many: Any = ASK | {"prompt": ["Once", "upon a"], "n": 2, "echo": True}
        whole = await here.client.completions.create(**many)
        assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
        assert [choice.text.split("w0")[0] for choice in whole.choices] == ["Once", "Once", "upon a", "upon a"]
        assert whole.usage is not None
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (3, 24), "each prompt once"
        told = dict.fromkeys(range(4), "")
        async for chunk in await here.client.completions.create(**many, stream=True):
            told[chunk.choices[0].index] += chunk.choices[0].text
        assert list(told.values()) == [choice.text for choice in whole.choices]
        ids = await here.client.completions.create(**ASK | {"prompt": [1, 2, 3]})
        assert ids.usage is not None
        assert ids.usage.prompt_tokens == 3


async def test_it_is_held_to_plans_classes_and_the_ledger_as_chats_are(tmp_path: Path) -> None:
    plans = {"small": {"tiers": ["mini"], "tokens_per_minute": 200, "context_tokens": 30}}
    async with served(tmp_path, await stage(tmp_path), plans=plans) as here:
        client = here.other("a", "small")
        told = await client.completions.with_raw_response.create(**ASK)
        assert int(told.headers["x-ratelimit-remaining-tokens"]) in range(185, 195)
        assert told.headers["moray-tier"] == "mini"
        with pytest.raises(BadRequestError) as caught:
            await client.completions.create(**ASK | {"max_tokens": 60})
        assert (caught.value.param, caught.value.code) == ("prompt", "context_length_exceeded")
        assert "messages" not in caught.value.message
        flex = await client.completions.create(**ASK, extra_body={"service_tier": "flex"})
        assert flex.model_extra == {"service_tier": "flex"}


async def test_what_an_engine_refuses_is_told_of_the_prompt(tmp_path: Path) -> None:
    async with served(tmp_path, await stage(tmp_path)) as here:
        for prompt, tokens in (("x " * 3000, 5), ("x", 4000), ([1] * 3000, 5)):
            for stream in (False, True):
                with pytest.raises(BadRequestError) as caught:
                    await here.client.completions.create(model="mini", prompt=prompt, max_tokens=tokens, stream=stream)
                assert (caught.value.param, caught.value.code) == ("prompt", "context_length_exceeded")


async def test_a_stream_goes_on_elsewhere_without_its_echo_again(tmp_path: Path) -> None:
    class Dies:
        def __init__(self, replica: Replica) -> None:
            self.replica, self.asked = replica, list[Chat]()

        async def stream(self, chat: Chat) -> Any:
            self.asked.append(chat)
            told = 0
            async for item in self.replica.stream(chat):
                yield item
                told += 1
                if len(self.asked) == 1 and told == 3:
                    raise ReplicaLost("replica: lost; none; again")

    dies = Dies(await stage(tmp_path))
    async with served(tmp_path, dies) as here:
        stream = await here.client.completions.create(**ASK, echo=True, stream=True)
        text = "".join([chunk.choices[0].text async for chunk in stream])
        assert (len(dies.asked), len(dies.asked[1].given)) == (2, 3)
        assert text.count(ASK["prompt"]) == 1
        assert len(text.removeprefix(ASK["prompt"]).split()) == 6
