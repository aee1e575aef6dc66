"""Plans' limits, from the official client, through the whole gateway on the real SQLite store."""

import asyncio
import contextlib
import random
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, AsyncOpenAI, BadRequestError, RateLimitError
from redis_server import redis_server
from sdk import USAGE, Replies, Served, served

from cluster.access import KeyRecord
from cluster.errors import MorayError
from cluster.limits import Standing
from deployments.gateway import batch_runs, quota, response_runs
from deployments.gateway.quota import tenant_of
from deployments.stores.limits import LIMITS_FILE

TOKENS = USAGE.prompt_tokens + USAGE.completion_tokens
PLANS: dict[str, Any] = {
    "small": {"tiers": ["mini", "turbo"], "requests_per_minute": 3, "tokens_per_minute": 3000, "context_tokens": 1000},
    "large": {"tiers": ["mini", "turbo"], "requests_per_minute": 50, "gpu_seconds_per_minute": 60},
    "narrow": {"tiers": ["mini"], "concurrent": 2},
    "paid": {"tiers": ["mini"], "budget_usd_per_month": 0.00005},
    "open": {"tiers": ["mini"]},
}
HELLO: dict[str, Any] = {"model": "mini", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 20}


@pytest.fixture
def replies() -> Replies:
    return Replies("Hel", "lo", step_s=0.01)


@contextlib.asynccontextmanager
async def stopped(folder: Path, replies: Replies) -> AsyncIterator[Served]:
    """For limits no time passes: nothing flows back."""
    async with served(folder, replies, plans=PLANS) as here:
        here.gateway._chat._bookings._quotas._limits._clock = lambda: 1e9
        yield here


@pytest.fixture
async def here(tmp_path: Path, replies: Replies) -> AsyncIterator[Served]:
    async with stopped(tmp_path, replies) as here:
        yield here


async def ask(client: AsyncOpenAI, **changes: Any) -> Any:
    return await client.chat.completions.with_raw_response.create(**{**HELLO, **changes})


async def standing(here: Served, plan: str) -> dict[str, Standing]:
    """What is left of a plan to the keys of the default project, once what was used is counted."""
    await settled(here)
    record = next(key for key in here.gateway._keys.list() if key.plan == plan)
    limits = here.gateway._family.plans[plan].limits
    found = await here.gateway._chat._bookings._quotas._limits.state(tenant_of(record), limits)
    return {one.limit.name: one for one in found}


def spent(one: Standing) -> float:
    return one.limit.amount - one.remaining


async def settled(here: Served) -> None:
    """Until no request is open any more."""
    quotas = here.gateway._chat._bookings._quotas
    async with asyncio.timeout(60):
        while quotas._open:
            await asyncio.sleep(0.01)


async def at_once(clients: list[AsyncOpenAI], times: int, replies: Replies) -> list[Any]:
    """The answers or errors; none ends before all are begun or refused."""
    replies.may_end.clear()
    asking = [asyncio.create_task(ask(clients[n % len(clients)])) for n in range(times)]
    async with asyncio.timeout(60):
        while len(replies.asked) + sum(one.done() for one in asking) < times:
            await asyncio.sleep(0.01)
    replies.may_end.set()
    return await asyncio.gather(*asking, return_exceptions=True)


async def refused(client: AsyncOpenAI, **changes: Any) -> RateLimitError:
    with pytest.raises(RateLimitError) as caught:
        await ask(client, **changes)
    return caught.value


async def test_an_answer_tells_what_is_left_as_the_api_does(here: Served) -> None:
    client = here.other("a", "small")
    told = (await ask(client)).headers
    assert (told["x-ratelimit-limit-requests"], told["x-ratelimit-remaining-requests"]) == ("3", "2")
    assert told["x-ratelimit-limit-tokens"] == "3000"
    assert int(told["x-ratelimit-remaining-tokens"]) in range(2960, 2980), "the prompt's guess, and max_tokens"
    assert told["x-ratelimit-reset-requests"].endswith("s")
    streamed = await ask(client, stream=True)
    assert streamed.headers["x-ratelimit-remaining-requests"] == "1"
    async for _ in streamed.parse():
        pass
    response = await client.responses.with_raw_response.create(model="mini", input="hello", max_output_tokens=20)
    assert response.headers["x-ratelimit-remaining-requests"] == "0"
    left = await standing(here, "small")
    assert spent(left["requests_per_minute"]) == 3, "each is counted once"
    assert spent(left["tokens_per_minute"]) == 3 * TOKENS, "by what they truly took"


async def test_who_has_none_left_is_told_which_limit_and_when_to_come_back(here: Served) -> None:
    client = here.other("a", "small")
    for _ in range(3):
        await ask(client)
    error = await refused(client)
    assert (error.code, error.type) == ("rate_limit_exceeded", "rate_limit_error")
    assert "requests_per_minute" in error.message
    assert 1 <= int(error.response.headers["retry-after"]) <= 20
    assert error.response.headers["x-ratelimit-remaining-requests"] == "0"
    page = (await here.raw("GET", "/metrics?only=gateway")).body.decode()
    assert 'moray_limit_refusals_total{limit="requests_per_minute"} 1.0' in page


async def test_keys_of_a_project_share_its_plans_limits_and_no_other_plans(here: Served, replies: Replies) -> None:
    one, same, large, unlimited = (
        here.other(n, p) for n, p in zip("abcd", ["small", "small", "large", "open"], strict=True)
    )
    for client in (one, same, one):
        await ask(client)
    await refused(same)
    for client in (large, unlimited, here.client):
        told = await ask(client)
        assert (told.headers.get("x-ratelimit-limit-requests") == "50") is (client is large)
    assert len(replies.asked) == 6


async def test_a_budget_that_is_spent_is_another_error(here: Served) -> None:
    client = here.other("a", "paid")
    await ask(client, max_tokens=20)
    await ask(client, max_tokens=10)  # 2 USD per million tokens: 0.000024 each
    error = await refused(client, max_tokens=20)
    assert (error.code, error.type) == ("insufficient_quota", "insufficient_quota")
    assert "budget_usd_per_month" in error.message
    assert error.response.headers["x-should-retry"] == "false"


async def test_more_than_a_limit_ever_grants_is_told_so_and_a_guess_is_not_refused(here: Served) -> None:
    client = here.other("a", "small")
    error = await refused(here.other("b", "paid"), max_tokens=2000)
    assert "ask for less" in error.message
    assert "retry-after" not in error.response.headers
    await ask(here.other("c", "paid"), max_tokens=None)
    with pytest.raises(BadRequestError) as caught:
        await ask(client, max_tokens=999)
    assert caught.value.code == "context_length_exceeded"
    assert "1000" in caught.value.message


async def test_an_answer_is_held_to_the_plans_context(here: Served, replies: Replies) -> None:
    await ask(here.other("a", "small"), max_tokens=None)
    most = replies.asked[-1].sampling.max_tokens
    assert most is not None
    assert most in range(990, 1000)


async def test_at_once_no_more_are_served_than_the_limit_grants(here: Served, replies: Replies) -> None:
    clients = [here.other(f"a{n}", "narrow") for n in range(3)]
    told = await at_once(clients, 12, replies)
    assert sum(not isinstance(one, BaseException) for one in told) == len(replies.asked) == 2
    assert {one.code for one in told if isinstance(one, RateLimitError)} == {"rate_limit_exceeded"}
    assert (await standing(here, "narrow"))["concurrent"].remaining == 2
    await ask(clients[0])


async def test_many_at_once_overshoot_no_limit(here: Served) -> None:
    clients = [here.other(f"a{n}", "large") for n in range(4)]
    told = await asyncio.gather(*(ask(clients[n % 4]) for n in range(60)), return_exceptions=True)
    served = sum(not isinstance(one, BaseException) for one in told)
    left = (await standing(here, "large"))["requests_per_minute"]
    assert served == spent(left) == 50


async def test_what_failed_before_a_token_is_given_back(tmp_path: Path) -> None:
    failing = Replies(error=MorayError("engine: it broke; none; ask again"))
    async with stopped(tmp_path, failing) as here:
        client = here.other("a", "small")
        for stream in (False, True):
            with contextlib.suppress(APIStatusError):
                told = await ask(client, stream=stream)
                with contextlib.suppress(Exception):
                    async for _ in told.parse():
                        pass
        assert {name: spent(one) for name, one in (await standing(here, "small")).items()} == {
            "requests_per_minute": 0,
            "tokens_per_minute": 0,
        }


async def test_a_stream_that_is_cut_takes_what_it_gave(tmp_path: Path) -> None:
    cut = Replies("a", "b", "c", error=MorayError("engine: it broke; none; ask again"))
    async with stopped(tmp_path, cut) as here:
        client = here.other("a", "small")
        told = await ask(client, stream=True, max_tokens=900)
        with pytest.raises(Exception, match="broke"):
            async for _ in told.parse():
                pass
        left = await standing(here, "small")
        assert spent(left["requests_per_minute"]) == 1
        assert 0 < spent(left["tokens_per_minute"]) < 40, "three tokens and the prompt, of 900 reserved"


async def test_clients_that_leave_at_any_time_leave_nothing_held(here: Served) -> None:
    client, chance = here.other("a", "narrow"), random.Random(7)
    for turn in range(20):
        asking = asyncio.create_task(ask(client, stream=turn % 2 == 0))
        await asyncio.sleep(chance.uniform(0, 0.03))
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError, RateLimitError):
            await asking
        if turn % 10 == 9:
            await settled(here)
    quotas = here.gateway._chat._bookings._quotas
    async with asyncio.timeout(60):
        while quotas._tasks - {quotas._renewing}:
            await asyncio.sleep(0.01)
    assert (await standing(here, "narrow"))["concurrent"].remaining == 2


async def test_a_store_that_does_not_answer_refuses_those_with_limits_alone(here: Served) -> None:
    limited, unlimited = here.other("a", "small"), here.other("b", "open")
    with contextlib.closing(sqlite3.connect(here.folder / LIMITS_FILE, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(APIStatusError) as caught:
            await ask(limited)
        assert (caught.value.status_code, caught.value.code) == (503, "unavailable")
        assert int(caught.value.response.headers["retry-after"]) >= 1
        for client in (unlimited, here.client):
            await ask(client)
        assert (await here.raw("GET", "/health")).status == 200
        other.execute("ROLLBACK")
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(APIStatusError):
                await ask(limited)
                break
    assert "moray_limit_failures_total 0.0" not in (await here.raw("GET", "/metrics?only=gateway")).body.decode()


async def test_a_long_answers_place_is_renewed(here: Served, replies: Replies, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "RENEW_S", 0.02)
    replies.may_end.clear()
    renewed: list[Any] = []
    limits = here.gateway._chat._bookings._quotas._limits
    renew = limits.renew

    async def heard(tenant: str, names: Any, lease_s: float) -> Any:
        renewed.append(await renew(tenant, names, lease_s))
        return renewed[-1]

    monkeypatch.setattr(limits, "renew", heard)
    asking = asyncio.create_task(ask(here.other("a", "narrow")))
    async with asyncio.timeout(60):
        while len(renewed) < 2:
            await asyncio.sleep(0.01)
    assert all(renewed)
    replies.may_end.set()
    await asking


async def test_a_line_of_a_batch_that_a_limit_refuses_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_runs, "TURN_S", 0.05)
    plans = {"slow": {"tiers": ["mini"], "concurrent": 1}}
    async with served(tmp_path, Replies("Hello"), plans=plans) as here:
        client = here.other("a", "slow")
        body = '{"model":"mini","messages":[{"role":"user","content":"hi"}]}'
        lines = "\n".join(
            f'{{"custom_id":"q{n}","method":"POST","url":"/v1/chat/completions","body":{body}}}' for n in range(4)
        )
        file = await client.files.create(file=("in.jsonl", lines.encode()), purpose="batch")
        batch = await client.batches.create(
            completion_window="24h", endpoint="/v1/chat/completions", input_file_id=file.id
        )
        async with asyncio.timeout(60):
            while batch.status != "completed":
                await asyncio.sleep(0.05)
                batch = await client.batches.retrieve(batch.id)
        assert batch.request_counts is not None
        assert (batch.request_counts.completed, batch.request_counts.failed) == (4, 0)


async def test_a_response_in_the_background_waits_for_its_limit(here: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_runs, "TURN_S", 0.05)
    client = here.other("a", "narrow")
    made = [await client.responses.create(model="mini", input="hello", background=True) for _ in range(4)]
    async with asyncio.timeout(60):
        for one in made:
            while one.status not in ("completed", "failed"):
                await asyncio.sleep(0.02)
                one = await client.responses.retrieve(one.id)
            assert one.status == "completed"


async def test_redis_that_dies_refuses_those_with_limits_alone(tmp_path: Path, replies: Replies) -> None:
    with redis_server("--appendonly", "yes") as server:
        async with served(tmp_path, replies, plans=PLANS, store=server.url) as here:
            clients = [here.other(f"a{n}", "narrow") for n in range(3)]
            told = await at_once(clients, 9, replies)
            assert sum(not isinstance(one, BaseException) for one in told) == 2
            assert (await standing(here, "narrow"))["concurrent"].remaining == 2
            server.stop()
            with pytest.raises(APIStatusError) as caught:
                await ask(clients[0])
            assert (caught.value.status_code, caught.value.code) == (503, "unavailable")
            await ask(here.client)


def test_an_account_is_a_projects_for_one_plan() -> None:
    def key(**words: Any) -> KeyRecord:
        return KeyRecord(name="a", created_s=0.0, revoked_s=None, **{"id": "k", "plan": "p", **words})

    assert tenant_of(key(id="a")) == tenant_of(key(id="b"))
    others = [key(org="o"), key(project="o"), key(plan="o"), key(org="a/b", project="c"), key(org="a", project="b/c")]
    assert len({tenant_of(one) for one in [key(), *others]}) == 6
