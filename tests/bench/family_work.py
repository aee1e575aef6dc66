"""What the `family` benchmark replays: the h200 family on 64 GPUs, hours in which the demand moves between its tiers.

Arrivals are sampled from ServeGen's fits of real clients: ultra is deepseek-r1, pro is m-large. Turbo and mini have no
trace of their own and take other hours of m-large. The hours are put side by side so that the peaks of the tiers do not
coincide; fractions of the rates are chosen so that an hour keeps nearly all GPUs busy in the mean and wants more than
there are in its peaks. Video is a Poisson process. Every request belongs to a tenant with a plan of the family file.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from autoscaling.policy import VIDEO
from autoscaling.twin import Scenario
from cluster.batching import SLACK_SHARE
from cluster.cost import slo_batch, work_s
from cluster.family import Family, Tier, load
from cluster.servegen import WINDOW_S, generate
from cluster.synthetic import video_jobs
from cluster.workload import Jobs, Workload, assign_tenants, merge, taken, window
from deployments.simulate_cluster import lifted, started_in
from deployments.trace_files import fitted

GPUS = 64
COLD_START_S = 120.0
HOUR_S = 3600.0
VIDEO_DEADLINE_S = 1200.0
VIDEO_JOBS_PER_HOUR = 120.0  # 6 GPUs busy in the mean
VIDEO_MOST = (
    12  # replicas, or the independent ones would fill the cluster with them, a hundredth of the worth of others
)
# By tier, who asks: tenants, each called as its plan.
TENANTS: Mapping[str, Mapping[str, float]] = {
    "ultra": {"enterprise": 0.6, "pro": 0.4},
    "pro": {"professional": 0.5, "enterprise": 0.2, "team": 0.3},
    "turbo": {"plus": 0.4, "developer": 0.3, "team": 0.2, "professional": 0.1},
    "mini": {"developer": 0.9, "enterprise": 0.1},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One tier's hour: the trace, its first 10-minute window, and the fraction of its rate."""

    trace: str
    window: int
    fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One hour and one seed, before a policy has anything to say."""

    scenario: Scenario
    workload: Workload
    jobs: Jobs


HOURS: Mapping[str, Mapping[str, Part]] = {
    "ultra falls, pro rises": {
        "ultra": Part(trace="deepseek-r1", window=73, fraction=0.27),
        "pro": Part(trace="m-large", window=146, fraction=0.25),
        "turbo": Part(trace="m-large", window=588, fraction=0.40),
        "mini": Part(trace="m-large", window=164, fraction=0.25),
    },
    "ultra rises, pro falls": {
        "ultra": Part(trace="deepseek-r1", window=66, fraction=0.19),
        "pro": Part(trace="m-large", window=120, fraction=0.25),
        "turbo": Part(trace="m-large", window=840, fraction=0.40),
        "mini": Part(trace="m-large", window=936, fraction=0.25),
    },
    "all jump": {
        "ultra": Part(trace="deepseek-r1", window=128, fraction=0.25),
        "pro": Part(trace="m-large", window=132, fraction=0.25),
        "turbo": Part(trace="m-large", window=144, fraction=0.40),
        "mini": Part(trace="m-large", window=828, fraction=0.25),
    },
}


def world(traces: Path, hour: str, seed: int, duration_s: float) -> World:
    family = _as_offered(started_in(lifted(load("h200"), GPUS), COLD_START_S))
    family = family.model_copy(update={"cells": (family.cells[0].model_copy(update={"count": GPUS // 8}),)})
    parts = [
        _part(traces, tier, part, seed * len(HOURS[hour]) + number, duration_s)
        for number, (tier, part) in enumerate(HOURS[hour].items())
    ]
    workload = merge(*parts)
    assert family.video is not None
    jobs = video_jobs(family.video, VIDEO_JOBS_PER_HOUR, duration_s, seed)
    jobs = replace(jobs, deadline_s=jobs.arrival_s + VIDEO_DEADLINE_S)
    scenario = Scenario(
        family=family,
        gpus=GPUS,
        initial=_initial(family, workload),
        seed=seed,
        plans=dict(family.plans),
    )
    return World(scenario=scenario, workload=workload, jobs=jobs)


def _as_offered(family: Family) -> Family:
    """Nothing is paid for a late answer: nobody waits longer than for the promised first token. Video is capped."""
    tiers = {name: tier.model_copy(update={"patience_s": tier.slo.ttft_s}) for name, tier in family.tiers.items()}
    video = family.video
    assert video is not None
    video = video.model_copy(update={"replicas": video.replicas.model_copy(update={"max": VIDEO_MOST})})
    return family.model_copy(update={"tiers": tiers, "video": video})


def _part(traces: Path, tier: str, part: Part, seed: int, duration_s: float) -> Workload:
    drawn = generate(
        fitted(traces / f"servegen_{part.trace}"),
        start_s=part.window * WINDOW_S,
        duration_s=duration_s,
        fraction=part.fraction,
        seed=seed,
        model=tier,
    )
    return assign_tenants(drawn, TENANTS[tier], seed)


def busy_replicas(tier: Tier, requests: Workload, span_s: float) -> float:
    """That these requests keep busy, at the batch that they allow together."""
    prompt, output = requests.prompt_tokens.astype(float), requests.output_tokens.astype(float)
    mean_in, mean_out = float(prompt.mean()), float(output.mean())
    context = float((output * (prompt + output / 2)).sum() / output.sum())
    batch = slo_batch(tier, mean_in, mean_out, context, SLACK_SHARE)
    return len(requests) * float(work_s(tier.cost, batch, mean_in, mean_out, context)) / span_s


def _initial(family: Family, workload: Workload) -> dict[str, int]:
    """What the first ten minutes keep busy, rounded up, or less of those that hold the most; video has of the rest."""
    first = window(workload, 0.0, WINDOW_S)
    counts = {
        name: math.ceil(busy_replicas(tier, taken(first, np.flatnonzero(first.model == index)), WINDOW_S))
        for index, (name, tier) in enumerate(family.tiers.items())
    }
    ranks = {name: tier.ranks for name, tier in family.tiers.items()}
    while (left := GPUS - sum(count * ranks[name] for name, count in counts.items())) < 0:
        counts[max(counts, key=lambda name: counts[name] * ranks[name])] -= 1
    return counts | {VIDEO: min(left, VIDEO_MOST)}


def without_spill(world: World) -> World:
    plans = {name: plan.model_copy(update={"spill": "none"}) for name, plan in world.scenario.plans.items()}
    return replace(world, scenario=replace(world.scenario, plans=plans))
