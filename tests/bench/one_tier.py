"""One tier alone on as many GPUs as it asks for: the traces it is rehearsed on, and one run.

Every policy begins with the same replicas: what the busiest minute of the first ten needs at 0.85 load, plus one. Of
m-large a fifth of the clients' rate is sampled, of deepseek-r1 a half; azure's one hour is superposed 20 times.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from autoscaling.report import Figures
from autoscaling.signals import Decision, Scaler, Seen, Spec, TierSpec, spec_of
from autoscaling.twin import Scenario, rehearse
from cluster.batching import SLACK_SHARE
from cluster.cost import slo_batch, work_s
from cluster.family import Family, load
from cluster.loads import Router
from cluster.servegen import Fitted, generate
from cluster.traces import parse_azure, parse_mooncake
from cluster.workload import Workload, scale, window
from deployments.simulate_cluster import lifted, started_in
from deployments.trace_files import fitted, lines

GPUS = 8000
FIRST_S = 600.0
FIRST_LOAD = 0.85
SLACK = 1.02  # of a bill that is summed from tick to tick
Chunking = Literal["slack", "fixed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """`start_s`, `duration_s`: the stretch. `share`: of the sampled rate, or the factor on a raw trace."""

    name: str
    file: str
    tier: str
    share: float
    start_s: float = 0.0
    duration_s: float = math.inf


def _hours(day: int, hour: float) -> float:
    return 86400.0 * day + 3600.0 * hour


STRETCH_S = 2400.0
# The rates of the ten-minute windows, whole: day 153 to 171, night 97 to 111 (the lowest hour of the week), spike 201,
# 151, 219 and 408 (the steepest rise of the week), rise of r1 20, 20, 18 and 32 requests/s.
TRACES = {
    trace.name: trace
    for trace in (
        Trace(name="azure x20", file="azure2023_code.csv.gz", tier="pro", share=20),
        Trace(
            name="m-large day",
            file="servegen_m-large",
            tier="pro",
            share=0.2,
            start_s=_hours(3, 10),
            duration_s=STRETCH_S,
        ),
        Trace(
            name="m-large night",
            file="servegen_m-large",
            tier="pro",
            share=0.2,
            start_s=_hours(1, 7.5),
            duration_s=STRETCH_S,
        ),
        Trace(
            name="m-large spike",
            file="servegen_m-large",
            tier="pro",
            share=0.2,
            start_s=_hours(0, 22.5),
            duration_s=STRETCH_S,
        ),
        Trace(
            name="deepseek-r1",
            file="servegen_deepseek-r1",
            tier="ultra",
            share=0.5,
            start_s=_hours(0, 21),
            duration_s=STRETCH_S,
        ),
    )
}
MOONCAKE = {
    trace.name: trace
    for trace in (
        Trace(name="mooncake x1", file="mooncake_synth.jsonl.gz", tier="pro", share=1),
        Trace(name="mooncake x2.2", file="mooncake_synth.jsonl.gz", tier="pro", share=2.2),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class World:
    """A trace as one seed draws it. `first`: replicas at the start. `load`: mean work in replicas."""

    tier: str
    family: Family
    workload: Workload
    seed: int
    first: int
    load: float

    @property
    def spec(self) -> Spec:
        return spec_of(self.family)

    @property
    def tier_spec(self) -> TierSpec:
        return self.spec.tiers[self.tier]


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What stands beside a scaling policy."""

    router: Router
    admission: bool = True
    chunking: Chunking = "slack"


@functools.lru_cache(maxsize=2)
def world(traces: Path, trace: Trace, cold_start_s: float, seed: int) -> World:
    family = started_in(_alone(trace.tier), cold_start_s)
    workload = _drawn(traces, trace, seed)
    busy_s, tier = _work_s(workload, spec_of(family).tiers[trace.tier]), trace.tier
    minute = (workload.arrival_s // 60).astype(int)
    busiest_s = float(np.bincount(minute, weights=busy_s)[: int(FIRST_S // 60)].max())
    return World(
        tier=tier,
        family=family,
        workload=workload,
        seed=seed,
        first=math.ceil(busiest_s / 60 / FIRST_LOAD) + 1,
        load=float(busy_s.sum() / workload.arrival_s[-1]),
    )


def _alone(tier: str) -> Family:
    family = lifted(load("h200"), GPUS)
    only = family.tiers[tier]
    only = only.model_copy(update={"replicas": only.replicas.model_copy(update={"min": 1, "initial": 1})})
    return family.model_copy(update={"tiers": {tier: only}, "video": None, "auto": None, "plans": {}})


@functools.lru_cache(maxsize=1)
def _drawn(traces: Path, trace: Trace, seed: int) -> Workload:
    path = traces / trace.file
    if trace.file.startswith("servegen"):
        return generate(
            _fitted(path),
            start_s=trace.start_s,
            duration_s=trace.duration_s,
            fraction=trace.share,
            seed=seed,
            model=trace.tier,
        )
    parse = parse_azure if trace.file.startswith("azure") else parse_mooncake
    whole = scale(parse(lines(path), str(path), model=trace.tier), trace.share, seed)
    return window(whole, trace.start_s, trace.duration_s)


@functools.lru_cache(maxsize=2)
def _fitted(path: Path) -> Fitted:
    return fitted(path)


def mean_request(workload: Workload) -> tuple[float, float, float]:
    """Prompt and output tokens, and the context of a running sequence."""
    prompt, output = workload.prompt_tokens.astype(float), workload.output_tokens.astype(float)
    return float(prompt.mean()), float(output.mean()), float((output * (prompt + output / 2)).sum() / output.sum())


def _work_s(workload: Workload, spec: TierSpec) -> Any:
    batch = slo_batch(spec, *mean_request(workload), SLACK_SHARE)
    return work_s(spec.cost, batch, workload.prompt_tokens.astype(float), workload.output_tokens.astype(float))


class Hopeless(Exception):
    """A run that was stopped: it can no longer be the one sought."""


@dataclass(slots=True, kw_only=True)
class Limits:
    """A run is stopped once it has missed more than this share of all requests, or costs more than so many GPU-hours.

    Both only grow during a run, so no run is stopped that would have stayed within them.
    """

    missed_share: float = 1.0
    gpu_hours: float = math.inf


@dataclass(slots=True, kw_only=True)
class _Meter:
    """The watch that stops a run."""

    world: World
    limits: Limits
    gpu_s: float = 0.0
    before_s: float = 0.0
    held: int = field(default=0)

    def __call__(self, seen: Seen, before: Any, decision: Decision, after: Any) -> None:
        tier = seen.tiers[self.world.tier]
        assert tier is not None
        now_s = min(seen.now_s, float(self.world.workload.arrival_s[-1]))
        self.gpu_s += self.held * self.world.tier_spec.ranks * (now_s - self.before_s)
        self.before_s, self.held = now_s, tier.ready + tier.starting + tier.draining
        if tier.missed > self.limits.missed_share * len(self.world.workload):
            raise Hopeless("misses")
        if self.gpu_s > SLACK * 3600 * self.limits.gpu_hours:
            raise Hopeless("GPU-hours")


def play(
    world: World, scaler: Scaler, serving: Serving, first: int | None = None, limits: Limits | None = None
) -> Figures:
    """`first`: replicas at the start, where not those of the world. Raises Hopeless beyond the limits."""
    scenario = Scenario(
        family=world.family,
        initial={world.tier: world.first if first is None else first},
        seed=world.seed,
        admission=serving.admission,
        chunking=serving.chunking,
    )
    meter = None if limits is None else _Meter(world=world, limits=limits)
    return rehearse(scenario, world.workload, None, scaler, serving.router, meter).figures


def as_row(figures: Figures) -> Mapping[str, Any]:
    return {
        "requests": figures.requests,
        "attainment": figures.attainment,
        "bad_minutes": figures.bad_minutes,
        "gpu_hours": figures.gpu_hours,
        "floor": figures.gpu_hours_floor,
        "ttft_p99_s": figures.ttft_p99_s,
        "tpot_p99_ms": figures.tpot_p99_ms,
        "rejected": sum(figures.rejected.values()),
        "failed": sum(figures.failed.values()),
    }
