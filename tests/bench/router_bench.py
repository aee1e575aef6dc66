"""What a choice costs: added latency and CPU per request through gateway and router, with 256 streams held.

One-token requests to a quick tier, at a steady pace, through `moray up`, and then straight into the same simulated
engine in this process. The held streams are of a slow tier beside it: they keep gateway, links and router busy, but not
the quick engine. CPU is that of the server's whole process tree, less what the held streams take alone.
"""

import asyncio
import json
import statistics
import sys
import threading
import time
from typing import Any

import numpy as np
from bench.live_world import COST, cpu_s, fixed, plain, sent, served, tier
from integration.server import Server, eventually

from cluster.family import Family
from cluster.request import Generation, Message, Piece, Sampling
from deployments.engines.simulated import SimulatedEngine

HELD = 256
HOLD_TOKENS = 600
RATE_RPS = 40.0
SECONDS = 20.0
PROMPT = 50
ALONE_S = 10.0
QUICK = COST | {"a_ms": 2, "b_ms_per_seq": 0, "c_ms_per_ktok": 0, "prefill_us_per_token": {64: 1}}
SLOW = COST | {"a_ms": 150, "b_ms_per_seq": 0, "c_ms_per_ktok": 0, "prefill_us_per_token": {64: 1}}
TIERS = {
    "quick": tier("quick", replicas=fixed(2), cost=QUICK),
    "slow": tier("slow", replicas=fixed(2), cost=SLOW, max_running=256, slo={"ttft_s": 30, "tpot_ms": 400}),
}
AIM = {"added_p50_ms": 6, "added_p99_ms": 30, "cpu_ms_per_request": 10, "broken": 0}


def run(quick: bool = False) -> dict[str, Any]:
    with served(TIERS, 1, 4) as (server, family):
        sent(server, *_words(SECONDS / 4))
        held: dict[str, Any] = {}
        holding = threading.Thread(target=lambda: held.update(sent(server, *_hold())))
        holding.start()
        eventually(lambda: server.metric("moray_streams", tier="slow") >= HELD * 0.95, 60, "streams held")
        alone_s = _cpu_share(server)
        before_s, begun_s = cpu_s(server), time.monotonic()
        streams = server.metric("moray_streams", tier="slow")
        found = sent(server, *_words(SECONDS / 4 if quick else SECONDS))
        spent_s = cpu_s(server) - before_s - alone_s * (time.monotonic() - begun_s)
        streams_after = server.metric("moray_streams", tier="slow")
        holding.join()
    direct = asyncio.run(_direct(family, found["all"]["requests"]))
    through_ms = [(one["first_s"] - one["sent_s"]) * 1e3 for one in found["answers"] if one["first_s"] is not None]
    table = {
        "through_ms": _spread(through_ms),
        "direct_ms": _spread(direct["ms"]),
        "direct_cpu_ms_per_request": round(direct["cpu_ms"], 3),
        "cpu_share_of_held_streams": round(alone_s, 3),
        "streams": [streams, streams_after],
        "load": plain(found),
        "held": plain(held),
    }
    figures = {
        "added_p50_ms": round(table["through_ms"]["p50"] - table["direct_ms"]["p50"], 2),
        "added_p99_ms": round(table["through_ms"]["p99"] - table["direct_ms"]["p99"], 2),
        "cpu_ms_per_request": round(spent_s * 1e3 / found["all"]["requests"], 2),
        "broken": sum(found["all"]["failed"].values()) + sum(held["all"]["failed"].values()),
    }
    met = all(figures[name] <= aim for name, aim in AIM.items())
    print(json.dumps(table), file=sys.stderr, flush=True)
    return {"figures": figures, "aim": AIM, "met": met, "runs": 1, "table": table}


def _words(seconds: float) -> tuple[str, ...]:
    made = ("--synthetic", f"{RATE_RPS}:{PROMPT}:1", "--duration-s", f"{seconds:g}")
    return *made, "--models", "quick"


def _hold() -> tuple[str, ...]:
    """All within five seconds, each for a minute and a half."""
    made = ("--synthetic", f"{HELD / 5}:{PROMPT}:{HOLD_TOKENS}", "--duration-s", "5")
    return *made, "--models", "slow"


def _cpu_share(server: Server) -> float:
    """CPU-seconds per second of the tree while only the held streams go on."""
    before_s, begun_s = cpu_s(server), time.monotonic()
    threading.Event().wait(ALONE_S)
    return (cpu_s(server) - before_s) / (time.monotonic() - begun_s)


async def _direct(family: Family, count: int) -> dict[str, Any]:
    """The engine alone, asked at the same mean rate."""
    engine = SimulatedEngine(family.tiers["quick"])
    await engine.start()
    prompt = engine.encode([Message(role="user", content="go " * (PROMPT - 1))])
    gaps_s = np.random.default_rng(0).exponential(1 / RATE_RPS, count)
    loop, took_ms = asyncio.get_running_loop(), []
    cpu_before_s = time.process_time()

    async def one(number: int) -> None:
        done: asyncio.Future[Piece] = loop.create_future()
        begun_s = time.perf_counter()
        generation = Generation(request_id=str(number), prompt=prompt, sampling=Sampling(max_tokens=1))
        engine.submit(generation, done.set_result)
        await done
        took_ms.append((time.perf_counter() - begun_s) * 1e3)

    async with asyncio.TaskGroup() as asking:
        for number, gap_s in enumerate(gaps_s.tolist()):
            await asyncio.sleep(gap_s)
            asking.create_task(one(number))
    await engine.stop()
    return {"ms": took_ms, "cpu_ms": (time.process_time() - cpu_before_s) * 1e3 / count}


def _spread(values: list[float]) -> dict[str, float]:
    return {"p50": round(statistics.median(values), 3), "p99": round(float(np.percentile(values, 99)), 3)}
