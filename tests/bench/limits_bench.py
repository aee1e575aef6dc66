"""What limits cost and whether they hold: eight gateways, processes of their own, on each store at once.

One request is a reserve and a settle of a tenant with five limits, which gateways share (`hot`: they take turns) or
have each for itself (`own`). `bare`: two round trips to the same store by the same client in the same run: PING, SELECT
1, or an empty BEGIN IMMEDIATE. Overshoot: the same gateways ask a budget for five times what it holds; what was granted
beyond it. `away`: calls that the store did not answer in time.
"""

import asyncio
import contextlib
import itertools
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from postgres import Server, postgres
from redis_server import redis_server

from cluster.errors import Unavailable
from cluster.limits import Limit, Reservation
from deployments.stores.limit_rows import ANSWER_S
from deployments.stores.postgres_limits import PostgresLimits
from deployments.stores.redis_limits import RedisLimits
from deployments.stores.sqlite_limits import SqliteLimits

GATEWAYS = 8
SECONDS = 3.0
START_S = 60.0
WIDE = (
    Limit(currency="requests", amount=1e9, period="minute"),
    Limit(currency="tokens", amount=1e12, period="minute"),
    Limit(currency="gpu_s", amount=1e9, period="minute"),
    Limit(currency="concurrent", amount=1e6, period="held"),
    Limit(currency="usd", amount=1e9, period="month"),
)
TIGHT = Limit(currency="usd", amount=500, period="month")
ASKS, ASKED_USD = 200, 1.5  # each gateway: 8 * 200 * 1.5 = 2400 of 500
AIM = {"overshoot": 0, "added_own_to_bare_p50": 6}

Row = dict[str, Any]


def run(quick: bool = False) -> Row:
    rows = {}
    spawn = multiprocessing.get_context("spawn")
    with spawn.Manager() as manager, postgres() as database, spawn.Pool(GATEWAYS) as pool:
        together = _Together(pool, manager.Barrier(GATEWAYS))
        for store in ("redis", "postgresql", "sqlite"):
            with _served(store, database) as place:
                rows[store] = _measured(together, store, place, SECONDS / 4 if quick else SECONDS)
            print(json.dumps({store: rows[store]}), file=sys.stderr, flush=True)
    met = all(
        row["overshoot_usd"] <= 0 and row["own_to_bare_p50"] <= AIM["added_own_to_bare_p50"] for row in rows.values()
    )
    return {"figures": rows, "aim": AIM, "met": met, "runs": 1}


class _Together:
    """Gateways that begin together: what each of them returns."""

    def __init__(self, pool: Any, barrier: Any) -> None:
        self._pool, self._barrier = pool, barrier

    def __call__(self, work: Callable[..., Awaitable[Any]], *words: Any) -> list[Any]:
        words = (self._barrier, *words)
        return list(self._pool.starmap(_gateway, [(work, each, *words) for each in range(GATEWAYS)], chunksize=1))


@contextlib.contextmanager
def _served(store: str, database: Server) -> Iterator[str]:
    if store == "redis":
        with redis_server("--appendonly", "yes") as server:
            yield server.url
    elif store == "postgresql":
        yield database.fresh()
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield str(Path(folder) / "limits.sqlite")


def _opened(store: str, place: str) -> Any:
    match store:
        case "sqlite":
            return SqliteLimits(Path(place))
        case "redis":
            return RedisLimits(place, lasting=True)
    return PostgresLimits(place)


def _measured(together: _Together, store: str, place: str, seconds: float) -> Row:
    asyncio.run(_opened(store, place).close())  # its tables
    found: dict[str, list[float]] = {}
    for part in ("bare", "own", "hot"):
        found[part] = list(itertools.chain(*together(_timed, store, place, part, seconds)))
    told = together(_greedy, store, place, "greedy", 0)
    granted = sum(told)
    p50, p99 = ({part: float(np.percentile(ms, of)) for part, ms in found.items()} for of in (50, 99))
    return {
        "ms": {part: {"p50": round(p50[part], 3), "p99": round(p99[part], 3), "n": len(found[part])} for part in found},
        "own_to_bare_p50": round(p50["own"] / p50["bare"], 2),
        "own_to_bare_p99": round(p99["own"] / p99["bare"], 2),
        "hot_to_bare_p50": round(p50["hot"] / p50["bare"], 2),
        "hot_to_bare_p99": round(p99["hot"] / p99["bare"], 2),
        "requests_per_s_hot": round(len(found["hot"]) / seconds),
        "granted_usd": granted * ASKED_USD,
        "overshoot_usd": max(0.0, granted * ASKED_USD - TIGHT.amount),
        "away": sum(ms >= ANSWER_S * 1e3 for each in found.values() for ms in each),
    }


def _gateway(
    work: Callable[..., Awaitable[Any]], number: int, barrier: Any, store: str, place: str, *words: Any
) -> Any:
    async def begun() -> Any:
        limits = _opened(store, place)
        await limits.state(f"warm {number}", WIDE)
        await asyncio.to_thread(barrier.wait, START_S)
        try:
            return await work(limits, number, *words)
        finally:
            await limits.close()

    return asyncio.run(begun())


async def _timed(limits: Any, number: int, part: str, seconds: float) -> list[float]:
    """Milliseconds of each request, or of two bare round trips."""
    took_ms, tenant, counter = [], "shared" if part == "hot" else f"tenant {number}", itertools.count()
    ends_s = time.perf_counter() + seconds

    async def request() -> None:
        key = f"{number}-{part}-{next(counter)}"
        amounts: dict[Any, float] = {"requests": 1, "tokens": 900, "gpu_s": 0.4, "concurrent": 1, "usd": 0.02}
        verdict = await limits.reserve(tenant, WIDE, Reservation(id=key, amounts=amounts))
        assert verdict.granted, verdict
        assert await limits.settle(tenant, key, {"tokens": 700, "gpu_s": 0.3, "usd": 0.015})

    async def bare() -> None:
        for _ in range(2):
            await _round_trip(limits)

    once = bare if part == "bare" else request
    while time.perf_counter() < ends_s:
        begun_s = time.perf_counter()
        with contextlib.suppress(Unavailable):  # told by the time that it took
            await once()
        took_ms.append((time.perf_counter() - begun_s) * 1e3)
    return took_ms


async def _round_trip(limits: Any) -> None:
    """Of the store alone, by the client and on the thread that the limits use."""
    if isinstance(limits, RedisLimits):
        await limits._redis.ping()
        return

    def ask() -> None:
        if isinstance(limits, SqliteLimits):
            with limits._file.transaction():
                return
        connection = limits._taken()
        connection.execute("SELECT 1").fetchall()
        limits._idle.append(connection)

    await asyncio.get_running_loop().run_in_executor(limits._threads, ask)


async def _greedy(limits: Any, number: int, _part: str, _seconds: float) -> int:
    """How many were granted."""
    granted = 0
    for each in range(ASKS):
        asked = Reservation(id=f"{number}-{each}", amounts={"usd": ASKED_USD})
        granted += (await limits.reserve("greedy", [TIGHT], asked)).granted
    return granted
