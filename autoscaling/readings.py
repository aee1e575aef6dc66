"""From samples of the metric catalogue to signals: the same whether they were scraped or asked of Prometheus.

Gateways count what arrives and what ends, replicas say what waits in their engines, the cluster says which replicas
exist. What cannot be believed makes its tier blind, with a fault that says why; zero demand is only what a fresh sample
says.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Any, Literal

from autoscaling.policy import VIDEO
from autoscaling.policy import Memory as Past
from autoscaling.series import COUNTERS, GAUGES, SKEW_S, STALE_S, Look, Memory, View, taken
from autoscaling.signals import JobSeen, Seen, Spec, TierSeen, VideoSeen

Fault = Literal["unreachable", "stale", "missing", "contradictory", "skewed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """Replicas of a tier or of video that exist, as the cluster itself says."""

    ready: int = 0
    starting: int = 0
    draining: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """`counts`: by tier, and "video". None: the cluster could not be asked. `gpus`: that the family may hold now."""

    counts: Mapping[str, Count] | None
    gpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Flaw:
    """What is wrong with the signals of a tier or of video. A skewed clock alone makes nobody blind."""

    tier: str
    fault: Fault
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """`ages_s`: of the oldest signal that a tier's view rests on, of the tiers that are not blind."""

    seen: Seen
    memory: Memory | None
    flaws: tuple[Flaw, ...]
    ages_s: Mapping[str, float]


def read(
    look: Look, fleet: Fleet, jobs: tuple[JobSeen, ...] | None, memory: Memory | None, spec: Spec, now_s: float
) -> Reading:
    """The signals at `now_s`, our clock. `jobs`: unfinished video jobs, None where nobody knows them."""
    after, wrong = memory, dict[str, str]()
    if look.fault is None:
        after, wrong = taken(look, memory)
    flaws: list[Flaw] = []
    tiers: dict[str, TierSeen | None] = {}
    ages_s: dict[str, float] = {}
    for tier in spec.tiers:
        count = (fleet.counts or {}).get(tier)
        view = View(tier, after, look.now_s)
        flaw = _flaw(view, look, count, wrong.get(tier))
        tiers[tier] = None
        if flaw is not None:
            flaws.append(flaw)
        elif after is not None and count is not None:
            tiers[tier] = _tier(view, count, after)
            ages_s[tier] = view.age_s
    video = None
    if spec.video is not None:
        video, flaw = _video(fleet, jobs)
        flaws += [flaw] if flaw else []
    seen = Seen(now_s=now_s, gpus=fleet.gpus, tiers=tiers, video=video)
    return Reading(seen=seen, memory=after, flaws=(*flaws, *_skewed(look, spec, now_s)), ages_s=ages_s)


def asked_for(seen: Seen, asked: Set[str], past: Past) -> Seen:
    """With one held request in each tier that was asked for, sleeps, and is not seen: blind must not be deaf."""
    tiers = dict(seen.tiers)
    for tier in asked & tiers.keys():
        if tiers[tier] is None and not past.targets.get(tier):
            known = past.tiers.get(tier)
            last = TierSeen(ready=0) if known is None else known.seen
            tiers[tier] = replace(last, held_requests=1)
    return replace(seen, tiers=tiers)


def _flaw(view: View, look: Look, count: Count | None, wrong: str | None) -> Flaw | None:
    """Why the tier is blind."""
    if look.fault is not None:
        return Flaw(tier=view.tier, fault="unreachable", detail=look.fault)
    if count is None:
        return Flaw(tier=view.tier, fault="unreachable", detail="the cluster does not say which replicas exist")
    if wrong is not None:
        return Flaw(tier=view.tier, fault="contradictory", detail=wrong)
    if not view.gateways:
        if count.ready:
            detail = f"{count.ready} replicas are ready, but no gateway knows the tier"
            return Flaw(tier=view.tier, fault="contradictory", detail=detail)
        return Flaw(tier=view.tier, fault="missing", detail="no gateway knows the tier")
    if not any(view.fresh(last) for last in view.gateways.values()):
        newest_s = max(last.at_s for last in view.gateways.values())
        detail = f"the newest sample is {look.now_s - newest_s:.1f} s old; {STALE_S:g} s are allowed"
        return Flaw(tier=view.tier, fault="stale", detail=detail)
    missing = view.missing()
    if missing:
        return Flaw(tier=view.tier, fault="missing", detail=f"a gateway does not say {', '.join(sorted(set(missing)))}")
    return None


def _tier(view: View, count: Count, memory: Memory) -> TierSeen:
    figures: dict[str, Any] = {}
    for name in (*COUNTERS.values(), "kept", "missed"):
        total = memory.totals.get((view.tier, name), 0.0)
        figures[name] = total if name.endswith("_sum") else round(total)
    for metric, name in GAUGES.items():
        figures[name] = figures.get(name, 0) + round(view.sum(metric))
    return TierSeen(ready=count.ready, starting=count.starting, draining=count.draining, **figures)


def _video(fleet: Fleet, jobs: tuple[JobSeen, ...] | None) -> tuple[VideoSeen | None, Flaw | None]:
    count = (fleet.counts or {}).get(VIDEO)
    if count is None:
        return None, Flaw(tier=VIDEO, fault="unreachable", detail="the cluster does not say which replicas exist")
    if jobs is None:
        return None, Flaw(tier=VIDEO, fault="missing", detail="no gateway says which jobs there are")
    return VideoSeen(ready=count.ready, starting=count.starting, draining=count.draining, jobs=jobs), None


def _skewed(look: Look, spec: Spec, now_s: float) -> tuple[Flaw, ...]:
    ahead_s = look.now_s - now_s
    if look.fault is not None or abs(ahead_s) <= SKEW_S:
        return ()
    detail = f"the clock of the source is {ahead_s:+.1f} s from ours"
    return tuple(Flaw(tier=tier, fault="skewed", detail=detail) for tier in spec.tiers)
