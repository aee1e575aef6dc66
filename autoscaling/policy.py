"""The scaling policy of a whole family: `step(seen, memory, spec, parameters) -> (decision, memory)`, once per tick.

Each tier says what it needs, video takes one replica per job, and the budget decides who gets the GPUs. A tier without
signals keeps its target, and so does video; neither is read as zero demand. The targets leave out replicas that drain,
which hold their GPUs until they are done: who carries a decision out starts replicas as GPUs become free.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from autoscaling.budget import Allotment, Claim, allot, language_values, video_values
from autoscaling.demand import Need, TierMemory, need
from autoscaling.parameters import Parameters
from autoscaling.signals import Cause, Decision, Seen, Spec, Target, TierSeen, TierSpec, VideoSeen, VideoSpec

VIDEO = "video"  # no tier of a family is called so
# By so many standard deviations a tier wants more than it expects to need: what promises taught its margin, and what it
# holds until less has sufficed, count in the budget too.
WANTED_DEVIATIONS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """`targets`: the last ones, of the tiers and of video."""

    tiers: Mapping[str, TierMemory] = field(default_factory=dict)
    targets: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A Scaler: the policy with its parameters bound."""

    spec: Spec
    parameters: Parameters

    @property
    def tick_s(self) -> float:
        return self.parameters.tick_s

    def __call__(self, seen: Seen, memory: Memory | None) -> tuple[Decision, Memory]:
        return step(seen, memory, self.spec, self.parameters)


def scaler(spec: Spec, parameters: Parameters | None = None) -> Policy:
    return Policy(spec=spec, parameters=parameters or Parameters())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """What one tier or video asks of the budget, its last target, and why it asks."""

    claim: Claim
    last: int
    blind: bool
    reason: str


def step(seen: Seen, memory: Memory | None, spec: Spec, parameters: Parameters) -> tuple[Decision, Memory]:
    before = memory or Memory()
    wishes: dict[str, _Wish] = {}
    tiers: dict[str, TierMemory] = {}
    for name, tier in spec.tiers.items():
        look = seen.tiers.get(name)
        needed, remembered = need(look, before.tiers.get(name), tier, parameters, seen.now_s)
        if remembered is not None:
            tiers[name] = remembered
        last = _last(before, name, look, tier)
        wishes[name] = _language(name, needed, last, tier, _cold_start_s(look, tier), parameters)
    if spec.video is not None:
        last = _last(before, VIDEO, seen.video, spec.video)
        wishes[VIDEO] = _video(seen, last, spec.video, parameters)
    allotment = allot([wish.claim for wish in wishes.values()], seen.gpus)
    targets = {name: _target(wish, allotment) for name, wish in wishes.items()}
    after = Memory(tiers=tiers, targets={name: target.replicas for name, target in targets.items()})
    video = targets.pop(VIDEO, None)
    return Decision(tiers=targets, video=video), after


def _last(before: Memory, name: str, look: TierSeen | VideoSeen | None, spec: TierSpec | VideoSpec) -> int:
    """The last target; at first what is there, and where nobody can see that, the minimum."""
    there = spec.min if look is None else look.ready + look.starting
    return before.targets.get(name, there)


def _cold_start_s(look: TierSeen | VideoSeen | None, spec: TierSpec | VideoSpec) -> float:
    return spec.cold_start_s if look is None or look.cold_start_s is None else look.cold_start_s


def _language(name: str, needed: Need, last: int, spec: TierSpec, cold_start_s: float, parameters: Parameters) -> _Wish:
    wanted = last if needed.blind else needed.replicas
    deviation = max(0.0, wanted - needed.erlangs) / WANTED_DEVIATIONS
    claim = Claim(
        name=name,
        ranks=spec.ranks,
        min=spec.min,
        wanted=wanted,
        keep=last if needed.blind else 0,
        held=last,
        values_usd_per_gpu_s=language_values(needed.usd_per_busy_s, needed.erlangs, deviation, wanted, spec.ranks),
        stay=1 + cold_start_s / parameters.stay_s,
    )
    return _Wish(
        claim=claim,
        last=last,
        blind=needed.blind,
        reason=_blind(last) if needed.blind else _reason(needed, spec, parameters),
    )


def _blind(last: int) -> str:
    return f"no signals: the last target {last} holds"


def _reason(needed: Need, spec: TierSpec, parameters: Parameters) -> str:
    if not (needed.awake or needed.replicas):
        return f"no request for {spec.idle_s:g} s: asleep"
    held = f", {needed.replicas} until less has sufficed" if needed.replicas > needed.wanted else ""
    most = ", the most allowed" if needed.wanted == spec.max < needed.erlangs + needed.margin else ""
    return (
        f"load {needed.load_short:.2f} ({parameters.short_s:g} s) {needed.load_long:.2f} ({parameters.long_s:g} s), "
        f"trend +{needed.trend:.2f}: {needed.ahead:.2f} expected; backlog {needed.backlog:.2f}, "
        f"margin {needed.margin:.2f} at z {needed.z:.2f}: "
        f"{needed.wanted} wanted{most}{held}"
    )


def _video(seen: Seen, last: int, spec: VideoSpec, parameters: Parameters) -> _Wish:
    look = seen.video
    if look is None:
        claim = Claim(
            name=VIDEO, ranks=spec.gpus, min=spec.min, wanted=last, keep=last, held=last, values_usd_per_gpu_s=()
        )
        return _Wish(claim=claim, last=last, blind=True, reason=_blind(last))
    required, values = video_values(look, spec, parameters, seen.now_s)
    wanted = max(spec.min, min(spec.max, len(look.jobs)))
    claim = Claim(
        name=VIDEO,
        ranks=spec.gpus,
        min=spec.min,
        wanted=wanted,
        keep=0 if parameters.lending else min(last, wanted),
        held=last,
        values_usd_per_gpu_s=values,
        stay=1 + _cold_start_s(look, spec) / parameters.stay_s,
    )
    left_gpu_s = sum(job.left_gpu_s for job in look.jobs)
    reason = f"{len(look.jobs)} jobs, {left_gpu_s:.0f} GPU-s left, {required} required by deadlines: {wanted} wanted"
    return _Wish(claim=claim, last=last, blind=False, reason=reason)


def _target(wish: _Wish, allotment: Allotment) -> Target:
    claim = wish.claim
    replicas = allotment.replicas[claim.name]
    cause: Cause = "rise" if replicas > wish.last else "fall" if replicas < wish.last else "hold"
    reason = wish.reason
    if wish.blind:
        cause = "blind"
    if replicas < claim.wanted:
        cause = "budget"
        reason += f"; the budget leaves {replicas}"
    if claim.name in allotment.missing:
        reason += f", below the minimum {claim.min}"
    return Target(replicas=replicas, wanted=claim.wanted, cause=cause, reason=reason)
