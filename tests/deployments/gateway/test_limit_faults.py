"""The whole gateway under limits whose store restarts, comes late or lies about the time, and gateways that die."""

import asyncio
import contextlib
import json
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, AsyncOpenAI, RateLimitError
from postgres import Server as Postgres
from postgres import postgres
from redis_server import Server as Redis
from redis_server import redis_server
from sdk import Replies, Served, served
from shell import Exchange, application

from cluster.errors import Unavailable
from cluster.limits import LEASE_S
from deployments.gateway import quota
from deployments.gateway.quota import tenant_of
from deployments.stores.keys import KEYS_FILE, KeyStore
from deployments.stores.usage import USAGE_FILE

PLANS: dict[str, Any] = {
    "paid": {"tiers": ["mini"], "budget_usd_per_month": 0.01, "concurrent": 20, "requests_per_minute": 5},
    "crowd": {"tiers": ["mini"], "budget_usd_per_month": 0.005, "concurrent": 200},
    "open": {"tiers": ["mini"]},
}
HELLO: dict[str, Any] = {"model": "mini", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 20}
ANSWER_USD = (4 + 2 * 10) / 1e6  # of what the replica of a test counts
RESERVED_USD = (10 + 2 * 20) / 1e6  # at most


async def ask(client: AsyncOpenAI) -> None:
    await client.chat.completions.create(**HELLO)


async def left(here: Served, plan: str) -> dict[str, float]:
    """However long the store does not answer, and once what is open is settled."""
    quotas = here.gateway._chat._bookings._quotas
    record = next(key for key in here.gateway._keys.list() if key.plan == plan)
    async with asyncio.timeout(60):
        while quotas._tasks - {quotas._renewing}:
            await asyncio.sleep(0.01)
        while True:
            with contextlib.suppress(Unavailable):
                found = await quotas._limits.state(tenant_of(record), here.gateway._family.plans[plan].limits)
                return {one.limit.currency: one.remaining for one in found}
            await asyncio.sleep(0.01)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be settled is tried again at once."""
    monkeypatch.setattr(quota, "AGAIN_S", 0.05)
    monkeypatch.setattr(quota, "WAIT_S", 0.05)


@pytest.fixture(params=["redis", "postgresql"])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[Redis | Postgres, str]]:
    if request.param == "redis":
        with redis_server("--appendonly", "yes") as redis:
            yield redis, redis.url
    else:
        with postgres() as database:
            yield database, database.fresh()


def again(server: Redis | Postgres) -> None:
    server.start("--appendonly", "yes") if isinstance(server, Redis) else server.start()


@pytest.mark.usefixtures("quick")
async def test_a_server_that_restarts_in_the_middle_loses_and_doubles_nothing(
    tmp_path: Path, server: tuple[Redis | Postgres, str]
) -> None:
    replies, (place, url) = Replies("Hello"), server
    async with served(tmp_path, replies, plans=PLANS, store=url) as here:
        client = here.other("a", "paid")
        replies.may_end.clear()
        asking = [asyncio.create_task(ask(client)) for _ in range(4)]
        async with asyncio.timeout(60):
            while len(replies.asked) < 4:
                await asyncio.sleep(0.01)
        await asyncio.to_thread(place.stop)
        try:
            with pytest.raises(APIStatusError) as caught:
                await ask(client)
            assert (caught.value.status_code, caught.value.code) == (503, "unavailable")
            replies.may_end.set()
            await asyncio.gather(*asking, ask(here.client), ask(here.other("b", "open")))
        finally:
            await asyncio.to_thread(again, place)
        now = await left(here, "paid")
        assert now["usd"] == pytest.approx(0.01 - 4 * ANSWER_USD)
        assert now["concurrent"] == 20


async def test_a_gateway_starts_before_its_store_of_limits_and_serves_those_without(
    tmp_path: Path, server: tuple[Redis | Postgres, str]
) -> None:
    place, url = server
    place.stop()
    async with served(tmp_path, Replies("Hello"), plans=PLANS, store=url) as here:
        limited = here.other("a", "paid")
        assert (await here.raw("GET", "/health")).status == 200
        await ask(here.other("b", "open"))
        with pytest.raises(APIStatusError) as caught:
            await ask(limited)
        assert caught.value.status_code == 503
        await asyncio.to_thread(again, place)
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(APIStatusError):
                    await ask(limited)
                    break


async def test_a_clock_that_jumps_grants_a_minute_when_it_is_over_and_none_twice(tmp_path: Path) -> None:
    async with served(tmp_path, Replies("Hello"), plans=PLANS) as here:
        client, limits = here.other("a", "paid"), here.gateway._chat._bookings._quotas._limits
        granted = []
        for at_s in (1e9, 1e9 + 61, 1e9 - 3600, 1e9 + 61, 1e9 + 122):
            limits._clock = lambda at_s=at_s: at_s
            told = await asyncio.gather(*(ask(client) for _ in range(8)), return_exceptions=True)
            assert all(one is None or isinstance(one, RateLimitError) for one in told)
            granted.append(told.count(None))
        assert granted == [5, 5, 0, 0, 5]


class Killed:
    """What a process that was killed says to a store."""

    def __getattr__(self, name: str) -> Any:
        async def nothing(*_: Any) -> None:
            raise Unavailable("limits: this gateway is dead; none; ask another")

        return nothing


class Crowd:
    """Gateways of one store, for which no time passes, and clients of one plan who may leave at any time."""

    def __init__(self, here: Served) -> None:
        self.here, self.now_s, self._chance = here, 1e9, random.Random(5)
        self._secret, _ = KeyStore(here.folder / KEYS_FILE).create("a", 0.0, "crowd")
        self.gateways: list[Any] = []
        self.lost = 0  # reservations under those that were killed, at most
        self._apps: list[Any] = []

    async def gather(self, gateways: int) -> None:
        handles = {name: self.here.handle for name in self.here.gateway._family.tiers}
        made = [await application(self.here.gateway._family, handles, key=f"of{n}") for n in range(gateways)]
        self.gateways = [self.here.gateway, *(gateway for gateway, _, _ in made)]
        self._apps = [self.here.app, *(app for _, app, _ in made)]
        for gateway in self.gateways:
            gateway._chat._bookings._quotas._limits._clock = lambda: self.now_s

    async def ask(self, numbers: range) -> None:
        headers = {"authorization": f"Bearer {self._secret}"}
        for number in numbers:
            body = json.dumps(HELLO | {"stream": number % 2 == 0}).encode()
            app = self._chance.choice(self._apps)
            asking = Exchange(app, "/v1/chat/completions", body, headers=headers).task
            await asyncio.wait((asking,), timeout=self._chance.choice((0.0, 0.002, 0.01, 0.05, 30)))
            asking.cancel()
            await asyncio.wait((asking,))

    def kill(self) -> None:
        self._apps.pop()
        bookings = self.gateways.pop()._chat._bookings
        self.lost += len(bookings._quotas._tasks) + sum(map(len, bookings._quotas._open.values()))
        bookings._quotas._limits = Killed()
        bookings._journal.put = bookings._journal.forget = lambda _: None
        for task in tuple(bookings._quotas._tasks):
            task.cancel()

    def charged_usd(self) -> float:
        with contextlib.closing(sqlite3.connect(self.here.folder / USAGE_FILE)) as file:
            ((nusd,),) = file.execute("SELECT coalesce(sum(price_nusd), 0) FROM usage_events")
        return float(nusd) / 1e9


async def test_gateways_that_die_and_clients_that_leave_lose_no_more_than_was_open(tmp_path: Path) -> None:
    budget, places = PLANS["crowd"]["budget_usd_per_month"], PLANS["crowd"]["concurrent"]
    async with served(tmp_path, Replies("Hel", "lo", step_s=0.001), plans=PLANS) as here:
        crowd = Crowd(here)
        await crowd.gather(20)
        asking = [asyncio.create_task(crowd.ask(range(n, 1000, 25))) for n in range(25)]
        for _ in range(20):
            await asyncio.wait(asking, timeout=0.1)
            crowd.kill()
        await asyncio.gather(*asking)
        spent = budget - (await left(here, "crowd"))["usd"]
        assert budget / 2 < spent <= budget + 1e-9, "they were many, and no more than it grants"
        lost = spent - crowd.charged_usd()
        assert -1e-9 < lost <= crowd.lost * RESERVED_USD, "what was open under who died stays spent, nothing else"
        crowd.now_s += LEASE_S
        assert (await left(here, "crowd"))["concurrent"] == places
