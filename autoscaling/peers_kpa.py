"""AIBrix's pod autoscaler (KPA, after Knative's), by concurrency: mean requests over a long and a short window.

    wanted = ceil(mean / target), or the replicas that are ready where |mean - target| <= 10 %     for each window
    limits = at most half and at most double of those ready
    calm   the long window decides; panic, where the short one runs away from it: the larger, and no fewer meanwhile
    down   the smallest (or, as HPA does, the largest) recommendation of the last 300 s; up: at once

APA, the simpler algorithm beside it: ceil(ready * use), where the use of a replica is off its target by more than 10 %.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

from autoscaling.peers import EPSILON_S, Peer, Samples, clip, deployments, each
from autoscaling.signals import Spec, TierSeen, TierSpec, VideoSpec

VIDEO_RUNNING = 1  # jobs that a video replica works on at once
TARGET_SHARE = 0.7  # Knative's


@dataclass(frozen=True, slots=True, kw_only=True)
class KpaParameters:
    """AIBrix has no target of its own; None here: Knative's 70 % of what a replica can run.

    `panic_test`: the short window against the long one ("ratio"), or its replicas against those ready ("replicas").
    `down_choice`: of the recommendations in the down window the smallest, as AIBrix does, or the largest, as HPA does.
    `warm_up_s`: no scale-down before, since an empty history would want nothing.
    """

    algorithm: Literal["kpa", "apa"] = "kpa"
    target_ongoing_requests: float | None = None
    stable_window_s: float = 180.0
    panic_window_s: float = 60.0
    panic_test: Literal["ratio", "replicas"] = "ratio"
    panic_threshold: float = 2.0
    panic_hold_s: float = 0.0
    tolerance_share: float = 0.1
    max_up_rate: float = 2.0
    max_down_rate: float = 2.0
    activation_replicas: int = 1
    up_window_s: float = 0.0
    down_window_s: float = 300.0
    down_choice: Literal["min", "max"] = "min"
    warm_up_s: float = 120.0


KNATIVE = KpaParameters(
    stable_window_s=60.0, panic_window_s=6.0, panic_test="replicas", panic_hold_s=60.0, tolerance_share=0.0
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KpaState:
    """`panic_until_s` and the most that this panic has wanted; both None and 0 in calm. `wanted`: recommendations."""

    started_s: float
    samples: Samples
    panic_until_s: float | None = None
    panic_replicas: int = 0
    wanted: Samples = ()


def kpa(spec: Spec, parameters: KpaParameters | Mapping[str, KpaParameters]) -> Peer[KpaState]:
    bounds = deployments(spec)
    steps = {name: partial(_kpa, given, bounds[name]) for name, given in each(spec, parameters).items()}
    return Peer(spec=spec, steps=steps, tick_s=10.0)


def _kpa(
    p: KpaParameters, bounds: TierSpec | VideoSpec, now_s: float, seen: TierSeen, target: int, state: KpaState | None
) -> tuple[int, str, KpaState]:
    state = state or KpaState(started_s=now_s, samples=())
    ongoing = float(seen.ongoing_requests + seen.held_requests)
    samples = (*_since(state.samples, now_s - p.stable_window_s), (now_s, ongoing))
    windows = Windows(stable=_mean(samples), panic=_mean(_since(samples, now_s - p.panic_window_s)))
    running = bounds.max_running if isinstance(bounds, TierSpec) else VIDEO_RUNNING
    meant = p.target_ongoing_requests or TARGET_SHARE * running
    until_s = _panic_until_s(p, now_s, seen.ready, windows, meant, state)
    desired = kpa_replicas(p, seen.ready, windows.stable, meant)
    if until_s is not None:
        desired = max(desired, kpa_replicas(p, seen.ready, windows.panic, meant), state.panic_replicas)
    bounded = clip(desired, bounds)
    if now_s - state.started_s < p.warm_up_s:
        bounded = max(bounded, target)
    kept = _since(state.wanted, now_s - max(p.up_window_s, p.down_window_s))
    after = KpaState(
        started_s=state.started_s,
        samples=samples,
        panic_until_s=until_s,
        panic_replicas=0 if until_s is None else desired,
        wanted=(*kept, (now_s, float(bounded))),
    )
    mood = "calm" if until_s is None else "panic"
    reason = f"{windows.stable:.4g} requests, lately {windows.panic:.4g}, {meant:g} meant for each replica: {mood}"
    return _stabilised(p, now_s, target, after.wanted), reason, after


class Windows(NamedTuple):
    """Requests on average, over the long and the short window."""

    stable: float
    panic: float


def _since(samples: Samples, start_s: float) -> Samples:
    return tuple(sample for sample in samples if sample[0] > start_s + EPSILON_S)


def _mean(samples: Samples) -> float:
    return sum(value for _, value in samples) / len(samples)


def _panic_until_s(
    p: KpaParameters, now_s: float, ready: int, windows: Windows, meant: float, state: KpaState
) -> float | None:
    """None in calm."""
    if p.algorithm == "apa":
        return None
    if p.panic_test == "replicas":
        panics = math.ceil(windows.panic / meant) / max(1, ready) >= p.panic_threshold
    else:
        panics = windows.stable <= 0 or windows.panic / windows.stable > p.panic_threshold
    if panics:
        return now_s + p.panic_hold_s
    return state.panic_until_s if state.panic_until_s is not None and now_s < state.panic_until_s else None


def kpa_replicas(p: KpaParameters, ready: int, ongoing: float, meant: float) -> int:
    """What one window wants, before min and max."""
    low, high = math.floor(ready / p.max_down_rate), max(1, math.ceil(ready * p.max_up_rate))
    if p.algorithm == "apa":
        return _apa_replicas(p, max(1, ready), ongoing / max(1, ready) / meant, (low, high))
    # As in the source: the band compares the whole window with the target of one replica.
    steady = p.tolerance_share > 0 and abs(ongoing - meant) <= p.tolerance_share * meant
    desired = min(max(ready if steady else math.ceil(ongoing / meant), low), high)
    return max(desired, p.activation_replicas) if desired > 0 else desired


def _apa_replicas(p: KpaParameters, ready: int, use: float, limits: tuple[int, int]) -> int:
    """`use`: of one replica, as a share of what it is meant for."""
    if use > 1 + p.tolerance_share:
        return min(math.ceil(ready * use), limits[1])
    return max(math.ceil(ready * use), limits[0]) if use < 1 - p.tolerance_share else ready


def _stabilised(p: KpaParameters, now_s: float, target: int, wanted: Samples) -> int:
    """The latest recommendation is the last of `wanted`."""
    latest = int(wanted[-1][1])
    if latest > target:
        return max(target, int(min(value for at_s, value in wanted if now_s - at_s <= p.up_window_s)))
    if latest == target:
        return target
    values = [value for at_s, value in wanted if now_s - at_s <= p.down_window_s]
    return min(target, int(min(values) if p.down_choice == "min" else max(values)))
