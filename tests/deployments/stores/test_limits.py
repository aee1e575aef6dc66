"""What every store of limits promises, on SQLite, a real PostgreSQL and a real Redis: one law for all gateways."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limit_histories import AMOUNTS, CLOCKS, START_S, Event, events
from limit_stores import Open, postgresql, redis, sqlite

from cluster.errors import Unavailable
from cluster.family import Family, LimitStore, load
from cluster.limits import Account, Limit, Reservation, Verdict, renew, reserve, settle, state
from deployments.stores.limits import Limits, limits_of
from deployments.stores.postgres_limits import PostgresLimits
from deployments.stores.redis_limits import RedisLimits
from deployments.stores.sqlite_limits import SqliteLimits

TOKENS = Limit(currency="tokens", amount=100, period="minute")
PLACES = Limit(currency="concurrent", amount=3, period="held")
VIDEO = Limit(currency="video_s", amount=100, period="day")
BUDGET = Limit(currency="usd", amount=100, period="month")
LIMITS = (TOKENS, BUDGET, PLACES)
GATEWAY = """
import asyncio, sys
from cluster.limits import Limit, Reservation

async def run():
    limits, granted = opened(), 0
    limit = Limit(currency="concurrent", amount=100, period="held")
    for number in range(30):
        asked = Reservation(id=f"{sys.argv[1]}-{number}", amounts={"concurrent": 7}, lease_s=3600)
        granted += (await limits.reserve("shared", [limit], asked)).granted
    await limits.close()
    print(granted)

asyncio.run(run())
"""


@pytest.fixture(params=["sqlite", "postgresql", "redis"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    match request.param:
        case "sqlite":
            return sqlite(tmp_path / "state")
        case "postgresql":
            return postgresql(request.getfixturevalue("database"))
    return redis(request.getfixturevalue("redis_keeping"))


@asynccontextmanager
async def gateway(opened: Open, **words: Any) -> AsyncIterator[Limits]:
    limits = opened(**words)
    try:
        yield limits
    finally:
        await limits.close()


def asked(key: str, **amounts: Any) -> Reservation:
    words: dict[Any, float] = amounts
    return Reservation(id=key, amounts=words)


def stopped() -> float:
    return START_S


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_history_is_judged_as_the_law_judges_it(opened: Open, data: st.DataObject) -> None:
    clock = CLOCKS[data.draw(st.sampled_from(["minute", "day", "month"]))]
    history = data.draw(events(clock, AMOUNTS))
    asyncio.run(_compared(opened, token_hex(8), history))


async def _compared(opened: Open, tenant: str, history: list[Event]) -> None:
    limits = (TOKENS, BUDGET, PLACES)
    account, now_s = Account(), 0.0
    told: Any
    law: Any
    async with gateway(opened, clock=lambda: now_s) as store:
        for event in history:
            now_s = event.at_s
            match event.what:
                case "reserve":
                    told = await store.reserve(tenant, limits, event.asked)
                    account, law = reserve(account, limits, event.asked, now_s)
                case "settle":
                    told = await store.settle(tenant, event.id, event.amounts)
                    account, law = settle(account, event.id, event.amounts, now_s)
                case "renew":
                    told = await store.renew(tenant, [event.id, "b"], 60)
                    account, law = renew(account, [event.id, "b"], 60, now_s)
            assert told == law
            assert await store.state(tenant, limits) == state(account, limits, now_s)


async def test_gateways_that_share_a_store_count_as_one(opened: Open) -> None:
    async with gateway(opened, clock=stopped) as one, gateway(opened, clock=stopped) as other:

        async def grants(limits: Limits, name: str) -> int:
            asks = (limits.reserve("key_a", [TOKENS], asked(f"{name}{number}", tokens=7)) for number in range(20))
            return sum(verdict.granted for verdict in await asyncio.gather(*asks))

        granted = await asyncio.gather(grants(one, "a"), grants(other, "b"))
        assert sum(granted) == 14  # 14 * 7 = 98 of 100
        assert [each.remaining for each in await other.state("key_a", [TOKENS])] == [2]


def test_processes_that_share_a_store_grant_what_is_there_and_nothing_beyond(opened: Open) -> None:
    words = [sys.executable, "-c", opened.code + GATEWAY]
    path = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    gateways = [subprocess.Popen([*words, name], stdout=subprocess.PIPE, env=path) for name in "abc"]
    assert sum(int(gateway.communicate()[0]) for gateway in gateways) == 14  # 14 * 7 = 98 of 100


async def test_what_one_tenant_takes_is_nobody_elses(opened: Open) -> None:
    async with gateway(opened, clock=stopped) as limits:
        for tenant in ("key_a", "key_{b}", "key:a", "ключ"):
            assert (await limits.reserve(tenant, [TOKENS], asked("same id", tokens=100))).granted
            assert not (await limits.reserve(tenant, [TOKENS], asked("another", tokens=1))).granted


async def test_a_gateway_that_died_leaves_its_reservations_to_their_leases(opened: Open) -> None:
    now_s = START_S
    async with gateway(opened, clock=lambda: now_s) as limits:
        await limits.reserve("key_a", LIMITS, asked("a", tokens=10, usd=60, concurrent=3))
        assert not (await limits.reserve("key_a", LIMITS, asked("b", concurrent=1))).granted
    now_s += 60
    async with gateway(opened, clock=lambda: now_s) as again:
        assert (await again.reserve("key_a", LIMITS, asked("b", concurrent=1))).granted
        assert not await again.settle("key_a", "a", {"usd": 0})
        assert [each.remaining for each in await again.state("key_a", LIMITS)] == [100, 40, 2]


async def test_a_refusal_says_what_is_left_and_when_to_come_back(opened: Open) -> None:
    async with gateway(opened, clock=stopped) as limits:
        await limits.reserve("key_a", [TOKENS], asked("a", tokens=90))
        refused = await limits.reserve("key_a", [TOKENS], asked("b", tokens=30))
        assert (refused.refused, refused.retry_after_s) == (TOKENS, 12.0)  # 20 missing, 100 each minute
        assert not (await limits.reserve("key_a", [TOKENS], asked("c", tokens=101))).retry_after_s


async def test_a_store_tells_the_time_itself(opened: Open) -> None:
    async with gateway(opened) as limits:
        first = await limits.reserve("key_a", LIMITS, asked("a", tokens=100, usd=1))
        assert 0 < first.standings[0].reset_s <= 60
        assert 0 < first.standings[1].reset_s <= 31 * 86_400


async def test_what_is_no_amount_is_told_before_anything_is_asked(opened: Open) -> None:
    async with gateway(opened, clock=stopped) as limits:
        await limits.reserve("key_a", [TOKENS], asked("a", tokens=100))
        with pytest.raises(ValueError, match="a number from 0 on"):
            await limits.settle("key_a", "a", {"tokens": -1})
        assert await limits.refund("key_a", "a")
        assert (await limits.reserve("key_a", [TOKENS], asked("b", tokens=100))).granted


async def persistent(call: Callable[[], Any]) -> Any:
    """As a gateway that asks until it is answered."""
    while True:
        try:
            return await call()
        except Unavailable:
            await asyncio.sleep(0)


@pytest.mark.parametrize("opened", ["postgresql", "redis"], indirect=True)
async def test_nothing_is_lost_and_nothing_counted_twice_where_connections_are_cut(
    opened: Open, request: pytest.FixtureRequest
) -> None:
    server = request.getfixturevalue("redis_keeping" if "redis" in request.node.name else "database")
    limit = Limit(currency="usd", amount=1000, period="month")
    cutting = True

    async def cut() -> None:
        pause_s = 0.01
        while cutting:
            await asyncio.to_thread(server.cut)
            await asyncio.sleep(pause_s)
            pause_s *= 1.05  # a busy machine gets on, too

    async with gateway(opened, clock=stopped) as one, gateway(opened, clock=stopped) as other:

        async def work(limits: Limits, name: str) -> None:
            for number in range(8):
                key = f"{name}{number}"
                verdict: Verdict = await persistent(partial(limits.reserve, "a", [limit], asked(key, usd=5)))
                assert verdict.granted
                await persistent(partial(limits.settle, "a", key, {"usd": 3}))

        cutter = asyncio.create_task(cut())
        await asyncio.gather(*(work(limits, f"{n}-{m}-") for n, limits in enumerate((one, other)) for m in range(4)))
        cutting = False
        await cutter
        (standing,) = await persistent(lambda: one.state("a", [limit]))
        assert standing.remaining == 1000 - 3 * 64


def test_the_family_names_its_store(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    family = load("laptop")
    file = limits_of(family, tmp_path)
    assert isinstance(file, SqliteLimits)
    assert (tmp_path / "limits.sqlite").exists()
    redis_url, postgres_url = request.getfixturevalue("redis_keeping").url, request.getfixturevalue("database").fresh()
    assert isinstance(limits_of(_counted_in(family, redis_url), tmp_path), RedisLimits)
    others = limits_of(_counted_in(family, postgres_url), tmp_path)
    assert isinstance(others, PostgresLimits)
    for store in (file, others):
        asyncio.run(store.close())


def _counted_in(family: Family, store: str) -> Family:
    return family.model_copy(update={"limits": LimitStore(store=store)})
