"""Who gets the GPUs: one pool for all tiers and video, replica by replica, each by what it is worth per GPU and second.

    language, n-th replica   usd per busy replica-second * (over(n - 1) - over(n)) / ranks
    video, n-th replica      the n-th highest usd per GPU-second among the jobs that can still be in time, then 0; times
                             `protect` for the replicas without which jobs miss their deadlines
    a replica that runs      times 1 + cold start/stay: a new one earns nothing while it starts

over(n) = E[max(0, need - n)], so a replica counts for as much of it as is expected to be busy. The need is the load
that is expected, and half a normal distribution more. Minima go first, then what must not be taken away, then the rest;
among these the highest value, ties to replicas that run, then to the claim named first. A replica takes its GPUs whole
or not at all: where one does not fit, the next claim has its turn.

Laws: never over the budget; never above wanted (or the minimum, if higher); never below the minima if these fit; with
equal ranks more GPUs never give any claim fewer; a claim that is worth more, all else equal, never gets fewer. With
unequal ranks more GPUs may give a claim fewer: a larger group that now fits takes the place of small ones.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heapreplace
from itertools import pairwise

from autoscaling.parameters import Parameters
from autoscaling.signals import VideoSeen, VideoSpec

LEAST_DEVIATION = 1e-3  # replicas; none at all would divide by zero
LEAST_GPU_S = 1.0  # what a job that is all but done counts as, so that its value stays finite


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """`ranks`: GPUs of one replica. `keep`: replicas that are taken away only for minima. `held`: that run or start.

    `values_usd_per_gpu_s`: of the first, second, ... replica, never rising; 0 beyond its end. `stay`: factor on those
    held, at least 1.
    """

    name: str
    ranks: int
    min: int
    wanted: int
    keep: int = 0
    held: int = 0
    values_usd_per_gpu_s: tuple[float, ...]
    stay: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Allotment:
    """Replicas per claim; `missing`: of the minima, those that do not fit, where there are any."""

    replicas: Mapping[str, int]
    missing: Mapping[str, int]


def allot(claims: Sequence[Claim], gpus: int) -> Allotment:
    queue = sorted(
        (_phase(claim, n), -_value(claim, n), n > claim.held, order, n)
        for order, claim in enumerate(claims)
        for n in range(1, min(max(claim.min, claim.wanted), gpus // claim.ranks) + 1)
    )
    replicas, left = [0] * len(claims), gpus
    for _, _, _, order, _ in queue:
        if claims[order].ranks <= left:
            left -= claims[order].ranks
            replicas[order] += 1
    given = {claim.name: count for claim, count in zip(claims, replicas, strict=True)}
    missing = {claim.name: claim.min - given[claim.name] for claim in claims if given[claim.name] < claim.min}
    return Allotment(replicas=given, missing=missing)


def _phase(claim: Claim, n: int) -> int:
    return 0 if n <= claim.min else 1 if n <= claim.keep else 2


def _value(claim: Claim, n: int) -> float:
    value = claim.values_usd_per_gpu_s[n - 1] if n <= len(claim.values_usd_per_gpu_s) else 0.0
    return value * claim.stay if n <= claim.held else value


def language_values(
    usd_per_busy_s: float, erlangs: float, deviation: float, replicas: int, ranks: int
) -> tuple[float, ...]:
    """In USD per GPU-second. The need is `erlangs` and half a normal distribution of that deviation more."""
    over = [_over(replica, erlangs, max(deviation, LEAST_DEVIATION)) for replica in range(replicas + 1)]
    return tuple(usd_per_busy_s / ranks * (fewer - more) for fewer, more in pairwise(over))


def _over(replicas: int, least: float, deviation: float) -> float:
    """E[max(0, need - replicas)]"""
    z = (replicas - least) / deviation
    if z <= 0:
        return deviation * (math.sqrt(2 / math.pi) - z)
    return deviation * (math.sqrt(2 / math.pi) * math.exp(-z * z / 2) - z * math.erfc(z / math.sqrt(2)))


def video_values(
    seen: VideoSeen, spec: VideoSpec, parameters: Parameters, now_s: float
) -> tuple[int, tuple[float, ...]]:
    """Replicas that the deadlines require, and the values in USD per GPU-second.

    Required: the fewest with which, earliest deadline first, as many jobs are in time as with the maximum. A job that
    is late anyhow earns nothing, so it gets only GPUs that nobody else wants.
    """
    cold_start_s = spec.cold_start_s if seen.cold_start_s is None else seen.cold_start_s
    soonest_s = 0.0 if seen.ready else cold_start_s
    runs = sorted(
        (
            job.deadline_s - now_s,
            parameters.deadline_margin * job.left_gpu_s / spec.gpus,
            job.value_usd / max(LEAST_GPU_S, job.left_gpu_s),
        )
        for job in seen.jobs
    )
    hopeful = [(due_s, run_s, worth) for due_s, run_s, worth in runs if soonest_s + run_s <= due_s]
    most = min(spec.max, len(hopeful))

    def in_time(replicas: int) -> int:
        free_s = [0.0] * min(seen.ready, replicas) + [cold_start_s] * (replicas - seen.ready)
        kept = 0
        for due_s, run_s, _ in hopeful:
            done_s = free_s[0] + run_s
            heapreplace(free_s, done_s)
            kept += done_s <= due_s
        return kept

    required = bisect_left(range(1, most + 1), in_time(most), key=in_time) + 1 if most else 0
    worths = sorted((worth for _, _, worth in hopeful), reverse=True)
    return required, tuple(worth * (parameters.protect if n < required else 1.0) for n, worth in enumerate(worths))
