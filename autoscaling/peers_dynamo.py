"""NVIDIA Dynamo's SLA planner, for replicas that both prefill and decode. Every 180 s, from the interval's means:

    prefill = R*ISL/I * min(1, TTFT/TTFT_profiled) / thr_p(ISL)         R, ISL, OSL: requests, input and output tokens
    decode  = R*OSL/I / thr_d                                           of the next interval, each forecast by itself
    thr_d   = B/step of the largest batch with step <= target * ITL_profiled/ITL, at the context ISL + OSL/2
    replicas = max(ceil(prefill), ceil(decode)), at least one           (or the two shares summed: `combine`)

The profile is the tier's own latency model, so here the planner knows the service as well as one can. Requests count as
they arrive, which is earlier than where Dynamo counts them. The targets are the tier's promises unless given. The
reactive loop (optional, every 5 s) fits TTFT to queued prefill tokens and ITL to context tokens, both per replica; it
sees means over replicas, not each one, and one replica more or fewer is all that it asks. Its lower bound is the
interval's result. Dynamo's GPU budget of 8 is left out: max replicas bound the tier. Video has no planner and is held.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import numpy as np

from autoscaling import forecast
from autoscaling.peers import EPSILON_S, Peer, each
from autoscaling.signals import Spec, TierSeen, TierSpec
from cluster.cost import prefill_us_per_token, step_ms

Predictor = Literal["constant", "kalman", "ar"]
HISTORY_POINTS = 100  # of the forecasts: five hours
LEARNING_POINTS = 50  # of the reactive loop's fits
LEAST_POINTS = 5
CALM_SHARE = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamoParameters:
    """`predictor` "ar": a stand-in for Dynamo's default, see the forecasts. None for a target: the tier's promise."""

    interval_s: float = 180.0
    start_delay_s: float = 30.0
    predictor: Predictor = "ar"
    corrections: bool = True
    combine: Literal["max", "sum"] = "max"
    min_replicas: int = 1
    ttft_target_s: float | None = None
    itl_target_ms: float | None = None
    throughput_based: bool = True
    load_based: bool = False
    load_interval_s: float = 5.0


class Traffic(NamedTuple):
    """Means between two looks: requests that arrived, and of those that finished the rest."""

    requests_per_s: float
    isl_tokens: float
    osl_tokens: float
    ttft_s: float
    itl_ms: float
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Load and latency per replica, for the reactive loop."""

    prefill_tokens: float
    ttft_ms: float
    context_tokens: float
    itl_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamoState:
    """`base`: the look at the start of the interval that ends at `due_s`; `load_base`: the last look of all.

    `history`: requests, ISL and OSL per interval. `floor`: what the last interval asked for.
    """

    base_s: float
    base: TierSeen
    due_s: float
    load_base: TierSeen
    floor: int
    history: tuple[tuple[float, float, float], ...] = ()
    samples: tuple[Sample, ...] = ()


def dynamo(spec: Spec, parameters: DynamoParameters | Mapping[str, DynamoParameters]) -> Peer[DynamoState]:
    given = {name: own for name, own in each(spec, parameters).items() if name in spec.tiers}
    steps = {name: partial(_dynamo, own, spec.tiers[name]) for name, own in given.items()}
    ticks_s = [own.load_interval_s if own.load_based else min(own.interval_s, 10.0) for own in given.values()]
    return Peer(spec=spec, steps=steps, tick_s=min(ticks_s))


def _dynamo(
    p: DynamoParameters, tier: TierSpec, now_s: float, seen: TierSeen, target: int, state: DynamoState | None
) -> tuple[int, str, DynamoState]:
    if state is None:
        due_s = now_s + p.start_delay_s + p.interval_s
        first = DynamoState(base_s=now_s, base=seen, due_s=due_s, load_base=seen, floor=p.min_replicas)
        return max(target, p.min_replicas), "the first interval has not ended", first
    wanted, reason = target, "within an interval"
    if p.load_based:
        state, change = _reacted(p, tier, seen, state)
        wanted, reason = target + change, f"queued and context tokens ask for {change:+d}"
    if p.throughput_based and now_s >= state.due_s - EPSILON_S:
        traffic = _traffic(state.base, seen, now_s - state.base_s)
        state = replace(state, base_s=now_s, base=seen, due_s=now_s + p.interval_s)
        reason = "no traffic, the interval is skipped"
        if traffic is not None:
            point = (traffic.requests_per_s * p.interval_s, traffic.isl_tokens, traffic.osl_tokens)
            state = replace(state, history=(*state.history, point)[-HISTORY_POINTS:])
            state = replace(state, floor=max(p.min_replicas, planned(p, tier, traffic, seen.ready, state.history)))
            wanted = max(wanted, state.floor) if p.load_based else state.floor
            reason = f"{point[0]:.4g} requests of {point[1]:.4g} and {point[2]:.4g} tokens ask for {state.floor}"
    return max(wanted, state.floor), reason, state


def _traffic(base: TierSeen, seen: TierSeen, elapsed_s: float) -> Traffic | None:
    """None where a mean has nothing to be taken over."""
    arrived = seen.arrived_requests - base.arrived_requests
    finished = seen.finished_requests - base.finished_requests
    if arrived <= 0 or finished <= 0:
        return None
    return Traffic(
        requests_per_s=arrived / elapsed_s,
        isl_tokens=(seen.arrived_prompt_tokens - base.arrived_prompt_tokens) / arrived,
        osl_tokens=(seen.finished_output_tokens - base.finished_output_tokens) / finished,
        ttft_s=(seen.ttft_s_sum - base.ttft_s_sum) / finished,
        itl_ms=(seen.tpot_s_sum - base.tpot_s_sum) / finished * 1000,
        duration_s=(seen.duration_s_sum - base.duration_s_sum) / finished,
    )


def planned(
    p: DynamoParameters, tier: TierSpec, traffic: Traffic, ready: int, history: Sequence[tuple[float, float, float]]
) -> int:
    """Replicas for the next interval."""
    requests, isl, osl = (_ahead(p.predictor, column) for column in zip(*history, strict=True))
    isl, osl = max(1.0, isl), max(1.0, osl)
    prefill_share, decode_slowdown = _corrections(p, tier, traffic, ready)
    prefill = requests * isl / p.interval_s * prefill_share * prefill_us_per_token(tier.cost, isl) / 1e6
    tokens_per_s = decode_tokens_per_s(tier, (p.itl_target_ms or tier.slo.tpot_ms) / decode_slowdown, isl + osl / 2)
    decode = requests * osl / p.interval_s / tokens_per_s if tokens_per_s else float(p.min_replicas)
    return math.ceil(prefill + decode) if p.combine == "sum" else max(math.ceil(prefill), math.ceil(decode))


def _ahead(predictor: Predictor, values: Sequence[float]) -> float:
    match predictor:
        case "constant":
            return forecast.constant(values)
        case "kalman":
            return forecast.kalman(values)
        case _:
            return forecast.ar(values)


def _corrections(p: DynamoParameters, tier: TierSpec, traffic: Traffic, ready: int) -> tuple[float, float]:
    """Measured over profiled: of the first token, at most 1; and of the pace, where there was one."""
    if not p.corrections:
        return 1.0, 1.0
    alone_s = traffic.isl_tokens * prefill_us_per_token(tier.cost, max(1.0, traffic.isl_tokens)) / 1e6
    # While requests wait, their durations would put more into a batch than any profile has.
    batch = min(tier.max_running, traffic.requests_per_s * traffic.duration_s / max(1, ready))
    profiled_ms = step_ms(tier.cost, batch, batch * (traffic.isl_tokens + traffic.osl_tokens / 2))
    share = min(1.0, traffic.ttft_s / alone_s) if alone_s else 1.0
    return share, traffic.itl_ms / profiled_ms if traffic.itl_ms > 0 else 1.0


def decode_tokens_per_s(tier: TierSpec, target_ms: float, context_tokens: float) -> float:
    """Of one replica, at the largest batch that keeps the target and fits; 0 where none does."""
    most = min(tier.max_running, int(tier.kv_tokens / context_tokens))

    def step(batch: int) -> float:
        return step_ms(tier.cost, batch, batch * context_tokens)

    batch = bisect_right(range(1, most + 1), target_ms, key=step)
    return batch / step(batch) * 1000


def _reacted(p: DynamoParameters, tier: TierSpec, seen: TierSeen, state: DynamoState) -> tuple[DynamoState, int]:
    """One more where either load exceeds what its target allows; one fewer where both would do with less."""
    traffic = _traffic(state.load_base, seen, p.load_interval_s)
    state = replace(state, load_base=seen)
    if traffic is None or seen.ready == 0:
        return state, 0
    sample = Sample(
        prefill_tokens=seen.waiting_prefill_tokens / seen.ready + traffic.isl_tokens,
        ttft_ms=traffic.ttft_s * 1000,
        context_tokens=seen.ongoing_requests / seen.ready * (traffic.isl_tokens + traffic.osl_tokens / 2),
        itl_ms=traffic.itl_ms,
    )
    samples = (*state.samples, sample)[-LEARNING_POINTS:]
    state = replace(state, samples=samples)
    if seen.starting or seen.draining or len(samples) < LEAST_POINTS:
        return state, 0
    ttft_ms, itl_ms = 1000 * (p.ttft_target_s or tier.slo.ttft_s), p.itl_target_ms or tier.slo.tpot_ms
    changes = (
        _change([(one.prefill_tokens, one.ttft_ms) for one in samples], ttft_ms, seen.ready),
        _change([(one.context_tokens, one.itl_ms) for one in samples], itl_ms, seen.ready),
    )
    return state, 1 if 1 in changes else -1 if changes == (-1, -1) else 0


def _change(points: Sequence[tuple[float, float]], target_ms: float, replicas: int) -> int:
    """What the last point asks for, by a line through all of them; nothing where no line rises."""
    loads, latencies = np.array(points).T
    spread = float(np.var(loads))
    slope = float(np.mean((loads - loads.mean()) * (latencies - latencies.mean()))) / spread if spread else 0.0
    if slope <= 0:
        return 0
    limit = float(loads.mean()) + (target_ms - float(latencies.mean())) / slope
    if loads[-1] > limit:
        return 1
    return -1 if loads[-1] < limit * (replicas - 1) / replicas * CALM_SHARE else 0
