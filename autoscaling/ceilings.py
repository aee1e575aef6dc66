"""What the past would have needed at least: the fluid floor, a clairvoyant plan, and the best constant size.

    floor   GPU-seconds of a minute = requests * work of its mean request at the largest batch that keeps the pace
    plan    need(t)   = ceil(k * mean over 30 s around t of the work that arrives, by true lengths, in replicas)
            target(t) = most that is needed in [t, t + cold start]

So a plan orders what it will need one cold start ahead, and lets go of nothing that it would have to order again before
that could be ready. k is to be the least of a grid that keeps the promises: a heuristic, hence an upper estimate of the
optimum. The floor ignores whole replicas, waiting and variety, and counts a prefix as cached once anybody has sent it;
where even one request breaks the pace it counts a batch of one. The optimum lies between the two.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from autoscaling.peers import Peer
from autoscaling.signals import Spec, TierSeen, TierSpec
from cluster.cost import slo_batch, work_s
from cluster.family import StepCost
from cluster.workload import Floats, Workload

FLOOR_S = 60.0
BIN_S = 10.0
Schedule = tuple[tuple[float, int], ...]  # from when, replicas


@dataclass(frozen=True, slots=True, kw_only=True)
class ClairvoyantParameters:
    """`k`: replicas per replica of mean work. `mean_s`: a multiple of 10 s."""

    k: float = 1.2
    mean_s: float = 30.0


def floor_gpu_hours(workload: Workload, tier: TierSpec) -> float:
    """Of one tier's requests."""
    if len(workload) == 0:
        return 0.0
    prompt, output = workload.prompt_tokens.astype(float), workload.output_tokens.astype(float)
    cached = _cached_tokens(workload)
    saved_s = cached * _us_per_token(tier.cost, prompt) / 1e6
    minute = (workload.arrival_s // FLOOR_S).astype(int)
    requests = np.bincount(minute)
    sums = [np.bincount(minute, weights=column) for column in (prompt, output, prompt - cached, saved_s)]
    replica_s = 0.0
    for at in np.flatnonzero(requests):
        tokens_in, tokens_out, computed, saved = (float(column[at]) / int(requests[at]) for column in sums)
        batch = slo_batch(tier, computed, tokens_out)
        replica_s += int(requests[at]) * (float(work_s(tier.cost, batch, tokens_in, tokens_out)) - saved)
    return replica_s * tier.ranks / 3600


def plan(workload: Workload, tier: TierSpec, parameters: ClairvoyantParameters, cold_start_s: float) -> Schedule:
    """Targets of one tier, whose requests alone the workload holds; the minimum after the last of them."""
    if len(workload) == 0:
        return ((0.0, tier.min),)
    arrived = np.bincount((workload.arrival_s // BIN_S).astype(int), weights=_work_s(workload, tier)) / BIN_S
    window = np.ones(max(1, round(parameters.mean_s / BIN_S)))
    # Convolved in full and cut, so that a trace shorter than the window keeps its length; fewer bins at the ends.
    first = (len(window) - 1) // 2
    total, bins = (np.convolve(row, window)[first : first + len(arrived)] for row in (arrived, np.ones(len(arrived))))
    need = np.clip(np.ceil(parameters.k * total / bins - 1e-9), tier.min, tier.max).astype(int)
    ahead = int(np.ceil(cold_start_s / BIN_S))
    padded = np.concatenate([need, np.full(ahead, tier.min)])
    most = np.lib.stride_tricks.sliding_window_view(padded, ahead + 1).max(axis=1)
    changes = [0, *(np.flatnonzero(np.diff(most)) + 1)]
    return (*((float(at * BIN_S), int(most[at])) for at in changes), (float(len(most) * BIN_S), tier.min))


def clairvoyant(spec: Spec, plans: Mapping[str, Schedule]) -> Peer[None]:
    return Peer(spec=spec, steps={name: partial(_clairvoyant, given) for name, given in plans.items()}, tick_s=BIN_S)


def _clairvoyant(given: Schedule, now_s: float, seen: TierSeen, target: int, state: None) -> tuple[int, str, None]:
    at_s, replicas = given[max(0, bisect_right(given, now_s, key=lambda entry: entry[0]) - 1)]
    return replicas, f"planned from {at_s:g} s on", None


def best_static(attainment: Callable[[int], float], least: int, most: int, goal: float = 0.99) -> int:
    """The fewest replicas that attain the goal, `most` where none does. Attainment must not fall with replicas."""
    return min(most, least + bisect_right(range(least, most + 1), False, key=lambda count: attainment(count) >= goal))


def _work_s(workload: Workload, tier: TierSpec) -> Floats:
    """Replica-seconds of each request, at the batch that the mean request allows."""
    prompt, output = workload.prompt_tokens.astype(float), workload.output_tokens.astype(float)
    cached = _cached_tokens(workload)
    batch = slo_batch(tier, float(np.mean(prompt - cached)), float(np.mean(output)))
    return work_s(tier.cost, batch, prompt, output) - cached * _us_per_token(tier.cost, prompt) / 1e6


def _cached_tokens(workload: Workload) -> Floats:
    """Of each prompt, those that an endless cache would hold; the last token is always computed."""
    cached = np.zeros(len(workload))
    seen: set[int] = set()
    for index, blocks in enumerate(workload.blocks or ()):
        depth = next((depth for depth, block in enumerate(blocks) if block not in seen), len(blocks))
        cached[index] = depth * workload.block_tokens
        seen.update(blocks[depth:])
    return np.minimum(cached, workload.prompt_tokens - 1)


def _us_per_token(cost: StepCost, prompt: Floats) -> Floats:
    lengths, us = zip(*sorted(cost.prefill_us_per_token.items()), strict=True)
    return np.asarray(np.interp(np.log(prompt), np.log(lengths), us))
