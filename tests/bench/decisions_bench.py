"""What a decision costs: a route over so many replicas, admission, a tier, the next held request, a family's scaling.

Each figure is the median of runs on one core; beside it stands the ratio to a decision of power of two choices over the
same replicas (or over 8) in the same run, since microseconds are those of this machine alone. `route` finds a replica
that keeps all promises, `route, packing` the fullest of those, and `route, nobody` none: every replica is late.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from autoscaling.budget import Claim, allot
from autoscaling.parameters import Parameters
from autoscaling.peer_routing import two_choices
from autoscaling.policy import Memory, step
from autoscaling.signals import JobSeen, Seen, Spec, TierSeen, VideoSeen, spec_of
from cluster.admission import Due, Head, decide, next_head
from cluster.cost import Service, fluid_rps, service
from cluster.family import Family, load
from cluster.loads import Ask, Choice, Loads
from cluster.routing import choose
from cluster.tiering import Wish, spill, tiers_for
from deployments.simulate_cluster import lifted

REPLICAS = (1, 8, 40, 1000)
GPUS = 1000
RUNS = 9
RUN_S = 0.1
REPLICAS_BUSY = {"ultra": 40, "pro": 60, "turbo": 200, "mini": 100}  # 860 GPUs
VIDEO_JOBS = 60
PROMPT_TOKENS, OUTPUT_TOKENS = 1000, 200
WARM_TICKS = 400  # the memory is full then
AIM_ROUTE_US, AIM_STEP_MS = 100.0, 10.0

Row = dict[str, Any]


def run() -> Row:
    family = lifted(load("h200"), GPUS)
    timed = _Timed()
    for replicas in REPLICAS:
        _routes(timed, service(family.tiers["pro"], "pro"), replicas)
    _others(timed, family)
    for name, share in (("slack", 0.65), ("binding", 2.0)):
        _scaling(timed, family, name, share)
    routes = [row["median_us"] for name, row in timed.rows.items() if name.startswith("route") and "/1000" in name]
    steps = [row["median_us"] / 1000 for name, row in timed.rows.items() if name.startswith("family step")]
    return {
        "figures": {"decisions": timed.rows, "worst_route_us": max(routes), "worst_family_step_ms": max(steps)},
        "aim": {"route_us": f"<= {AIM_ROUTE_US:g} over 1,000 replicas", "family_step_ms": f"<= {AIM_STEP_MS:g}"},
        "met": {"route_us": max(routes) <= AIM_ROUTE_US, "family_step_ms": max(steps) <= AIM_STEP_MS},
        "runs": RUNS,
    }


class _Timed:
    """`rows`: by decision, microseconds as median, lowest and highest of all runs; and the ratio to the base."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    def add(self, name: str, call: Callable[[], object], base: str | None = None) -> None:
        began_s = time.perf_counter()
        call()
        count = max(1, int(RUN_S / max(1e-7, time.perf_counter() - began_s)))
        runs_us = []
        for _ in range(RUNS):
            began_s = time.perf_counter()
            for _ in range(count):
                call()
            runs_us.append((time.perf_counter() - began_s) / count * 1e6)
        median = statistics.median(runs_us)
        self.rows[name] = {
            "median_us": round(median, 2),
            "lowest": round(min(runs_us), 2),
            "highest": round(max(runs_us), 2),
        }
        if base is not None:
            self.rows[name]["to_p2c"] = round(median / self.rows[base]["median_us"], 2)


def _loads(tier: Service, replicas: int, sequences: tuple[int, int], queued_s: float) -> Loads:
    """Replicas with so many sequences each, and as much prefill queued."""
    rng = np.random.default_rng(0)
    running = rng.integers(*sequences, replicas).astype(float)
    return Loads(
        sequences=running,
        kv_tokens=running * (PROMPT_TOKENS + OUTPUT_TOKENS / 2),
        kv_capacity_tokens=np.full(replicas, float(tier.kv_tokens)),
        prefill_tokens=np.full(replicas, queued_s * 20_000),
        prefill_done_s=queued_s + rng.random(replicas) / 100,
        correction=1 + rng.normal(0, 0.02, replicas),
        heard_s=np.zeros(replicas),
        ongoing=running,
        open=np.ones(replicas, dtype=bool),
    )


def _routes(timed: _Timed, tier: Service, replicas: int) -> None:
    ask = Ask(prompt_tokens=PROMPT_TOKENS, expected_output_tokens=OUTPUT_TOKENS, us_per_token=60.0, draw=0.37)
    busy, late = _loads(tier, replicas, (5, 40), 0.1), _loads(tier, replicas, (5, 40), 10.0)
    assert choose(busy, ask, tier, 0.0, False).feasible
    assert choose(busy, ask, tier, 0.0, True).feasible
    assert not choose(late, ask, tier, 0.0, False).feasible
    base = f"two choices/{replicas}"
    timed.add(base, lambda: two_choices(busy, ask, tier, 0.0, False))
    timed.add(f"route/{replicas}", lambda: choose(busy, ask, tier, 0.0, False), base)
    timed.add(f"route, packing/{replicas}", lambda: choose(busy, ask, tier, 0.0, True), base)
    timed.add(f"route, nobody/{replicas}", lambda: choose(late, ask, tier, 0.0, False), base)
    hits = replace(ask, hit_tokens=np.where(np.arange(replicas) % 3, 0.0, 512.0))
    timed.add(f"route, prefixes/{replicas}", lambda: choose(busy, hits, tier, 0.0, False), base)


def _others(timed: _Timed, family: Family) -> None:
    tier, base = service(family.tiers["pro"], "pro"), "two choices/8"
    ask = Ask(prompt_tokens=PROMPT_TOKENS, expected_output_tokens=OUTPUT_TOKENS, us_per_token=60.0, draw=0.37)
    late: Choice = choose(_loads(tier, 8, (5, 40), 10.0), ask, tier, 0.0, False)
    due = Due(now_s=3.0, arrived_s=0.0, ttft_s=2.0, tpot_ms=50.0, patience_s=30.0, wait_s=20.0)
    timed.add("admission", lambda: decide(late, due), base)
    wish, plan = Wish(model="gpt-5.2", prompt_tokens=PROMPT_TOKENS, tools=True), family.plans["professional"]
    timed.add("tiering", lambda: tiers_for(wish, plan, family), base)
    found = tiers_for(wish, plan, family)
    timed.add("spill", lambda: spill(found, [False] * (len(found.tiers) - 1) + [True]), base)
    heads = [
        Head(tenant=f"t{number}", priority=number % 3, deadline_s=float(number), cost_gpu_s=1.0)
        for number in range(100)
    ]
    served = {head.tenant: 100.0 - head.deadline_s for head in heads}
    timed.add("next held request of 100 tenants", lambda: next_head(heads, served), base)


def _scaling(timed: _Timed, family: Family, name: str, share: float) -> None:
    """A family whose demand is that share of `REPLICAS_BUSY`, once its memory is full."""
    spec, parameters = spec_of(family), Parameters()
    memory: Memory | None = None
    for tick in range(WARM_TICKS):
        before = memory
        seen = _seen(family, spec, tick * parameters.tick_s, share, memory.targets if memory else REPLICAS_BUSY)
        decision, memory = step(seen, before, spec, parameters)
    held = sum(target.replicas * spec.tiers[tier].ranks for tier, target in decision.tiers.items())
    assert (decision.tiers["ultra"].cause == "budget") == (name == "binding"), (held, decision)
    timed.add(f"family step/{name}", lambda: step(seen, before, spec, parameters), "two choices/8")
    claims = [
        Claim(
            name=tier,
            ranks=spec.tiers[tier].ranks,
            min=1,
            wanted=int(share * count),
            held=count,
            values_usd_per_gpu_s=tuple(1 / (n + 1) for n in range(int(share * count))),
        )
        for tier, count in REPLICAS_BUSY.items()
    ]
    timed.add(f"budget alone/{name}", lambda: allot(claims, GPUS), "two choices/8")


def _seen(family: Family, spec: Spec, now_s: float, share: float, targets: Mapping[str, int]) -> Seen:
    tiers = {}
    for name, tier in spec.tiers.items():
        busy = share * REPLICAS_BUSY[name]
        arrived = int(busy * fluid_rps(tier, PROMPT_TOKENS, OUTPUT_TOKENS) * now_s * (1 + 0.02 * np.sin(now_s / 40)))
        tiers[name] = TierSeen(
            ready=targets.get(name, tier.min),
            arrived_requests=arrived,
            arrived_prompt_tokens=arrived * PROMPT_TOKENS,
            finished_requests=arrived,
            finished_output_tokens=arrived * OUTPUT_TOKENS,
            finished_context_token_steps=arrived * OUTPUT_TOKENS * (PROMPT_TOKENS + OUTPUT_TOKENS // 2),
            kept=arrived,
            ongoing_requests=int(20 * busy),
            held_requests=3,
            waiting_prefill_tokens=5000,
        )
    jobs = tuple(
        JobSeen(left_gpu_s=600.0 - 5 * number, deadline_s=now_s + 600 + 20 * number, value_usd=0.5)
        for number in range(int(share * VIDEO_JOBS))
    )
    video = VideoSeen(ready=targets.get("video", 0), jobs=jobs)
    return Seen(now_s=now_s, gpus=GPUS, tiers=dict(tiers), video=video)
