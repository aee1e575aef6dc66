"""Several answers to one request, from the official client, through the whole gateway and real replicas."""

import asyncio
import contextlib
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from openai import APIError, APIStatusError, BadRequestError, RateLimitError
from sdk import Replies, Served, served
from shell import Replica, family

from cluster.errors import Overloaded
from cluster.request import Chat, ToolCall
from cluster.retry import MOST_RESCUES
from deployments.gateway.asked import Asked, Place
from deployments.gateway.choices import seed_of

ASK: Any = {"model": "mini", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "seed": 5}
PROMPT_TOKENS = 3  # of ASK: its role, and five characters
DIED = RuntimeError("it died")
USAGE: Any = {"include_usage": True}
PLANS = {
    "small": {"tiers": ["mini"], "tokens_per_minute": 2000, "requests_per_minute": 5},
    "narrow": {"tiers": ["mini"], "concurrent": 2},
}


class Falls:
    """A replica; what it is asked for one choice breaks with the error, so many times; streams behind `after` items."""

    def __init__(self, replica: Replica, choice: int, times: int, after: int, error: Exception) -> None:
        self._replica, self._choice, self._left, self._after, self._error = replica, choice, times, after, error
        self.asked: list[Chat] = []

    async def complete(self, chat: Chat) -> Any:
        self.asked.append(chat)
        self._fall(chat)
        return await self._replica.complete(chat)

    async def stream(self, chat: Chat) -> AsyncIterator[Any]:
        self.asked.append(chat)
        told = 0
        async for item in self._replica.stream(chat):
            if told == self._after:
                self._fall(chat)
            told += 1
            yield item

    def _fall(self, chat: Chat) -> None:
        if chat.choice == self._choice and self._left:
            self._left -= 1
            raise self._error


@contextlib.asynccontextmanager
async def stage(
    folder: Path, *, choice: int = -1, times: int = 0, after: int = 3, error: Exception = DIED
) -> AsyncIterator[tuple[Served, Falls]]:
    replica = Falls(await Replica.started(family(folder)), choice, times, after, error)
    async with served(folder, replica, plans=PLANS) as here:
        yield here, replica


async def texts(stream: Any) -> dict[int, str]:
    found: defaultdict[int, str] = defaultdict(str)
    async for chunk in stream:
        for choice in chunk.choices:
            found[choice.index] += choice.delta.content or ""
    return dict(found)


async def test_each_choice_has_its_index_and_its_draw_and_the_first_is_that_of_one_answer_alone(tmp_path: Path) -> None:
    async with stage(tmp_path) as (here, replica):
        alone = await here.client.chat.completions.create(**ASK)
        whole = await here.client.chat.completions.create(**ASK, n=3)
        assert [choice.index for choice in whole.choices] == [0, 1, 2]
        said = [choice.message.content for choice in whole.choices]
        assert said[0] == alone.choices[0].message.content
        assert len(set(said)) == 3
        assert whole.usage is not None
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (PROMPT_TOKENS, 3 * 8)
        assert whole.usage.total_tokens == PROMPT_TOKENS + 24
        assert whole.usage.model_extra is not None
        assert whole.usage.model_extra["moray"]["replica"] == "mini-1"
        assert whole.system_fingerprint
        assert whole.system_fingerprint == alone.system_fingerprint
        streamed = await here.client.chat.completions.create(**ASK, n=3, stream=True)
        assert await texts(streamed) == dict(enumerate(said))
        assert len({chat.sampling.seed for chat in replica.asked[-3:]}) == 3


async def test_a_stream_of_several_is_interleaved_and_has_one_usage_and_one_end(tmp_path: Path) -> None:
    async with stage(tmp_path) as (here, _):
        stream = await here.client.chat.completions.create(**ASK, n=3, stream=True, stream_options=USAGE)
        chunks = [chunk async for chunk in stream]
        *said, last = chunks
        assert last.choices == []
        assert last.usage is not None
        assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (PROMPT_TOKENS, 24)
        assert all(chunk.usage is None for chunk in said)
        order = [chunk.choices[0].index for chunk in said]
        assert order != sorted(order), "they go on side by side"
        for index in range(3):
            own = [chunk.choices[0] for chunk in said if chunk.choices[0].index == index]
            assert own[0].delta.role == "assistant"
            assert [choice.finish_reason for choice in own].count("length") == 1
            assert own[-1].finish_reason == "length"
        body = json.dumps(ASK | {"n": 2, "stream": True}).encode()
        raw = (await here.raw("POST", "/v1/chat/completions", body)).body
        assert raw.count(b"[DONE]") == 1
        assert raw.endswith(b"data: [DONE]\n\n")
        assert b"usage" not in raw


async def test_log_probabilities_and_calls_come_with_each_choice(tmp_path: Path) -> None:
    async with stage(tmp_path) as (here, _):
        whole = await here.client.chat.completions.create(**ASK, n=2, logprobs=True, top_logprobs=1)
        for choice in whole.choices:
            assert choice.logprobs is not None
            assert "".join(one.token for one in choice.logprobs.content or ()) == choice.message.content
    tools: Any = [{"type": "function", "function": {"name": "look"}}]
    calls = [ToolCall(id="call_1", name="look", arguments="{}")]
    async with served(tmp_path, Replies(calls=calls), engine="vllm", vllm={"tool_parser": "hermes"}) as here:
        stream = await here.client.chat.completions.create(**ASK, n=2, stream=True, tools=tools)
        called = [c.index async for chunk in stream for c in chunk.choices if c.delta.tool_calls]
        assert sorted(called) == [0, 1]


@pytest.mark.parametrize("stream", [False, True])
async def test_one_choice_whose_replica_dies_goes_on_elsewhere_and_no_other_does(tmp_path: Path, stream: bool) -> None:
    async with stage(tmp_path, choice=1, times=1) as (here, replica):
        if stream:
            told = await texts(await here.client.chat.completions.create(**ASK, n=3, stream=True))
        else:
            choices = (await here.client.chat.completions.create(**ASK, n=3)).choices
            told = {choice.index: choice.message.content or "" for choice in choices}
        assert sorted(chat.choice for chat in replica.asked) == [0, 1, 1, 2]
        again = replica.asked[-1]
        assert (again.choice, len(again.given)) == (1, 3 if stream else 0)
        alone = [await here.client.chat.completions.create(**ASK | {"seed": seed_of(5, index)}) for index in range(3)]
        assert [told[index] for index in range(3)] == [one.choices[0].message.content for one in alone]


@pytest.mark.parametrize("stream", [False, True])
async def test_where_one_choice_is_lost_for_good_the_request_is(tmp_path: Path, stream: bool) -> None:
    async with stage(tmp_path, choice=2, times=MOST_RESCUES + 1) as (here, _):
        asking = here.client.chat.completions.create(**ASK | {"max_tokens": 900}, n=3, stream=stream)
        with pytest.raises(APIError) as caught:
            await texts(await asking)
        assert caught.value.code == "replica_lost"
        async with asyncio.timeout(20):
            while any(not call.task.done() for call in here.handle.calls):
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_of_one_is_that_of_all_with_its_own_status(tmp_path: Path, stream: bool) -> None:
    full = Overloaded("engine: full; fewer are allowed; come back", retry_after_s=3)
    async with stage(tmp_path, choice=1, times=1, after=0, error=full) as (here, _):
        with pytest.raises(RateLimitError) as caught:
            await here.client.chat.completions.create(**ASK, n=3, stream=stream)
        assert (caught.value.code, caught.value.response.headers["retry-after"]) == ("overloaded", "3")


async def test_what_was_held_back_for_a_choice_that_is_then_refused_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(tmp_path) as (here, _):
        desk, asked = here.gateway._desk, 0
        place = desk.place

        async def two_have_a_place(wish: Asked) -> Place:
            nonlocal asked
            asked += 1
            if asked < 3:
                given: Place = await place(wish)
                return given
            while any(not call.task.done() for call in here.handle.calls) or len(here.handle.calls) < 2:
                await asyncio.sleep(0.01)
            raise Overloaded("tier: full; fewer are allowed; come back", retry_after_s=3)

        monkeypatch.setattr(desk, "place", two_have_a_place)
        client = here.other("a", "small")
        with pytest.raises(RateLimitError) as caught:
            await client.chat.completions.create(**ASK, n=3, stream=True)
        assert caught.value.code == "overloaded"
        used: Any = await client.get(f"/usage?start_time={int(time.time()) - 3600}", cast_to=object)
        assert [one for bucket in used["data"] for one in bucket["results"]] == []
        monkeypatch.undo()
        told = await client.chat.completions.with_raw_response.create(**ASK)
        assert told.headers["x-ratelimit-remaining-requests"] == "4"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_ends_all_choices(tmp_path: Path, stream: bool) -> None:
    async with stage(tmp_path) as (here, replica):
        asking = asyncio.create_task(
            here.client.chat.completions.create(**ASK | {"max_tokens": 2000}, n=3, stream=stream)
        )
        async with asyncio.timeout(20):
            while len(replica.asked) < 3:
                await asyncio.sleep(0.01)
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asking
            while any(not call.task.done() for call in here.handle.calls):
                await asyncio.sleep(0.01)
        assert here.gateway._desk.ongoing()["mini"] == 0


async def test_limits_and_the_ledger_count_one_request_its_prompt_once_and_all_answers(tmp_path: Path) -> None:
    async with stage(tmp_path) as (here, _):
        client = here.other("a", "small")
        told = await client.chat.completions.with_raw_response.create(**ASK, n=4)
        assert told.headers["x-ratelimit-remaining-requests"] == "4"
        left = int(told.headers["x-ratelimit-remaining-tokens"])
        assert 2000 - left in range(4 * 8 + 1, 4 * 8 + 5)
        used = await client.get(f"/usage?start_time={int(time.time()) - 3600}", cast_to=object)
        (result,) = [one for bucket in used["data"] for one in bucket["results"]]  # type: ignore[index]
        assert (result["input_tokens"], result["output_tokens"], result["num_model_requests"]) == (PROMPT_TOKENS, 32, 1)
        narrow = here.other("b", "narrow")
        assert len((await narrow.chat.completions.create(**ASK, n=2)).choices) == 2
        with pytest.raises(RateLimitError) as caught:
            await narrow.chat.completions.create(**ASK, n=3)
        assert "ask for less" in caught.value.message


@pytest.mark.parametrize("n", [0, 9, 128, True, "2", 1.5])
async def test_more_choices_than_are_served_are_refused_with_the_bound(tmp_path: Path, n: Any) -> None:
    async with served(tmp_path) as here:
        with pytest.raises(BadRequestError) as caught:
            await here.client.chat.completions.create(**ASK, n=n)
        assert (caught.value.param, caught.value.code) == ("n", "invalid_value")


async def test_a_bad_value_beside_several_choices_is_told_once(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        with pytest.raises(APIStatusError) as caught:
            await here.client.chat.completions.create(**ASK, n=3, logit_bias={"x": 1})
        assert caught.value.status_code == 400


def test_seeds_of_choices_are_those_of_the_api_and_differ() -> None:
    for seed in (-(2**63), 0, 7, 2**63 - 1):
        seeds = [seed_of(seed, index) for index in range(8)]
        assert seeds[0] == seed
        assert len(set(seeds)) == 8
        assert all(0 <= one < 2**63 for one in seeds[1:])
