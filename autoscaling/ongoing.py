"""How many replicas of one tier: `step(seen, memory, spec) -> (decision, memory)`, one call per control tick.

    wanted = ceil((ongoing + queued) / target_ongoing), clamped to [min, max]
    target = the most that was wanted in the last idle_s

So it rises at once, from zero with the first request that waits, and falls only after less has sufficed for idle_s.
The start counts as wanted, and so does the last target while a signal is missing: nobody knows then that less would do.
Memory is the stack of demands not yet outlived, at most max + 1 of them. Ignored: how long a replica takes to start,
the other tiers, and the GPU budget, which caps the targets of all tiers together.
"""

from dataclasses import dataclass
from typing import Literal

from cluster.family import Replicas

Cause = Literal["rise", "fall", "hold", "blind"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TierSeen:
    """One look at a tier; None where a signal is missing. Ongoing requests are on replicas, queued ones on none yet."""

    now_s: float
    running_replicas: int | None
    target_replicas: int | None
    queued_requests: int | None
    ongoing_requests: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TierSpec:
    """`target_ongoing`: requests that one replica is meant to hold."""

    min: int
    max: int
    initial: int
    idle_s: float
    target_ongoing: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """`wanted` replicas, last seen wanted at `until_s`."""

    wanted: int
    until_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Demands from the largest and oldest to the smallest and latest, and the target they made."""

    target: int | None = None
    demands: tuple[Demand, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    target_replicas: int
    cause: Cause
    reason: str


def spec_of(replicas: Replicas, target_ongoing: int) -> TierSpec:
    return TierSpec(
        min=replicas.min,
        max=replicas.max,
        initial=replicas.initial,
        idle_s=replicas.idle_s,
        target_ongoing=target_ongoing,
    )


def step(seen: TierSeen, memory: Memory, spec: TierSpec) -> tuple[Decision, Memory]:
    """The target now. The same arguments give the same decision, so a log of them can be replayed."""
    last = _clamp(_first(memory.target, seen.target_replicas, spec.initial), spec)
    wanted = _wanted(seen, spec)
    before = memory.demands or (Demand(wanted=last, until_s=seen.now_s),)
    demands = _updated(before, last if wanted is None else wanted, seen.now_s, spec.idle_s)
    target = _clamp(demands[0].wanted, spec)
    decision = Decision(
        target_replicas=target,
        cause="blind" if wanted is None else "rise" if target > last else "fall" if target < last else "hold",
        reason=_reason(seen, spec, wanted, last, target),
    )
    return decision, Memory(target=target, demands=demands)


def _first(*given: int | None) -> int:
    return next(value for value in given if value is not None)


def _clamp(replicas: int, spec: TierSpec) -> int:
    return max(spec.min, min(spec.max, replicas))


def _wanted(seen: TierSeen, spec: TierSpec) -> int | None:
    if seen.ongoing_requests is None or seen.queued_requests is None:
        return None
    return _clamp(-(-(seen.ongoing_requests + seen.queued_requests) // spec.target_ongoing), spec)


def _updated(before: tuple[Demand, ...], wanted: int, now_s: float, idle_s: float) -> tuple[Demand, ...]:
    """The stack with what is wanted now on top: smaller ones are covered by it, larger ones live on for idle_s.

    The demand of the tick before may have lasted until now, so its time starts now.
    """
    latest = Demand(wanted=before[-1].wanted, until_s=now_s)
    larger = [demand for demand in (*before[:-1], latest) if demand.wanted > wanted and now_s - demand.until_s < idle_s]
    return (*larger, Demand(wanted=wanted, until_s=now_s))


def _reason(seen: TierSeen, spec: TierSpec, wanted: int | None, last: int, target: int) -> str:
    requests = f"{_shown(seen.ongoing_requests)} ongoing and {_shown(seen.queued_requests)} queued"
    running = f"{_shown(seen.running_replicas)} of {last} run"
    if wanted is None:
        return f"{requests}, {running}: without that signal the last target holds"
    given = f"{requests} at {spec.target_ongoing} a replica want {wanted}, {running}"
    if target < last:
        return f"{given}: down to {target}, more was not wanted for {spec.idle_s:g} s"
    if target > wanted:
        return f"{given}: held until less has sufficed for {spec.idle_s:g} s"
    return f"{given}: up from {last} at once" if target > last else f"{given}: as it is"


def _shown(count: int | None) -> str:
    return "unknown" if count is None else str(count)
