"""The autoscalers that people use today, rebuilt in our own words to be measured against. Here: static and Ray Serve's.

Each looks at one deployment at a time: a tier, or the video replicas ("video", a job counts as a request). None knows a
GPU budget across deployments, so `wanted` equals `replicas`, and all are clipped to min and max. A deployment whose
signals are missing keeps its last target. Parameters have the stock values of their systems, and may differ by
deployment. AIBrix and Dynamo have modules of their own. Ray, in requests that are queued or running:

    desired = running * ongoing / (target * running)      ongoing: mean over the look-back window
    scaled  = ceil(running + factor * (desired - running))
    target  = scaled, once it has been on the same side of the target for longer than that side's delay

Then min and max, as Ray 2.60 does. A test compares this with the installed Ray, tick by tick.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from autoscaling.signals import Cause, Decision, Seen, Spec, Target, TierSeen, TierSpec, VideoSpec

S = TypeVar("S")
P = TypeVar("P")
Step = Callable[[float, TierSeen, int, S | None], tuple[int, str, S]]  # now_s, seen, last target, state
Samples = tuple[tuple[float, float], ...]  # at_s, value; the oldest first

EPSILON_S = 1e-6  # sums of ticks miss a delay by rounding alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory(Generic[S]):
    """Per deployment the last target, and what its policy remembers."""

    targets: Mapping[str, int]
    states: Mapping[str, S]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer(Generic[S]):
    """One policy for each deployment by itself. A deployment without a policy keeps the replicas it has."""

    spec: Spec
    steps: Mapping[str, Step[S]]
    tick_s: float

    def __call__(self, seen: Seen, memory: Memory[S] | None) -> tuple[Decision, Memory[S]]:
        states = dict(memory.states) if memory else {}
        targets: dict[str, Target] = {}
        for name, bounds in deployments(self.spec).items():
            at = _seen(seen, name)
            last = memory.targets[name] if memory else clip(at.ready + at.starting if at else bounds.min, bounds)
            if at is None:
                targets[name] = Target(replicas=last, wanted=last, cause="blind", reason="no signals: the target holds")
            elif name not in self.steps:
                targets[name] = Target(replicas=last, wanted=last, cause="hold", reason="no policy for it")
            else:
                wanted, reason, states[name] = self.steps[name](seen.now_s, at, last, states.get(name))
                count = clip(wanted, bounds)
                targets[name] = Target(replicas=count, wanted=count, cause=_cause(count, last), reason=reason)
        counts = {name: target.replicas for name, target in targets.items()}
        video = targets.pop("video", None)
        return Decision(tiers=targets, video=video), Memory(targets=counts, states=states)


def deployments(spec: Spec) -> dict[str, TierSpec | VideoSpec]:
    """Tiers by name, and "video", which no tier is called."""
    return {**spec.tiers, "video": spec.video} if spec.video else {**spec.tiers}


def _seen(seen: Seen, name: str) -> TierSeen | None:
    if name != "video":
        return seen.tiers.get(name)
    video = seen.video
    if video is None:
        return None
    return TierSeen(
        ready=video.ready, starting=video.starting, draining=video.draining, ongoing_requests=len(video.jobs)
    )


def clip(replicas: int, bounds: TierSpec | VideoSpec) -> int:
    return max(bounds.min, min(bounds.max, replicas))


def _cause(count: int, last: int) -> Cause:
    return "rise" if count > last else "fall" if count < last else "hold"


def each(spec: Spec, parameters: P | Mapping[str, P]) -> dict[str, P]:
    """The parameters of each deployment: the same for all, or those given by name."""
    if isinstance(parameters, Mapping):
        return {name: parameters[name] for name in deployments(spec) if name in parameters}
    return dict.fromkeys(deployments(spec), parameters)


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticParameters:
    """`replicas`: of every deployment, or by name; those not named stay at their minimum."""

    replicas: int | Mapping[str, int] = 1


def static(spec: Spec, parameters: StaticParameters) -> Peer[None]:
    given = parameters.replicas
    counts = {
        name: given if isinstance(given, int) else given.get(name, bounds.min)
        for name, bounds in deployments(spec).items()
    }
    return Peer(spec=spec, steps={name: partial(_static, count) for name, count in counts.items()}, tick_s=10.0)


def _static(count: int, now_s: float, seen: TierSeen, target: int, state: None) -> tuple[int, str, None]:
    return count, "static", None


@dataclass(frozen=True, slots=True, kw_only=True)
class RayParameters:
    """Ray Serve's autoscaling_config. Requests are counted where they are, at routers and on replicas."""

    target_ongoing_requests: float = 2.0
    look_back_s: float = 30.0
    metrics_interval_s: float = 10.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    downscale_to_zero_delay_s: float | None = None
    upscaling_factor: float = 1.0
    downscaling_factor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RayDelay:
    """On which side of the target more (1) or fewer (-1) replicas have been wanted, and since when."""

    side: int = 0
    since_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RayState:
    """Samples of ongoing requests; the controller knows those up to `pushed_s`."""

    samples: Samples
    pushed_s: float
    delay: RayDelay


def ray(spec: Spec, parameters: RayParameters | Mapping[str, RayParameters]) -> Peer[RayState]:
    """Ray's loop runs every 0.1 s; every 1 s decides at most 0.9 s later, against delays of 30 s and more."""
    steps = {name: partial(_ray, given) for name, given in each(spec, parameters).items()}
    return Peer(spec=spec, steps=steps, tick_s=1.0)


def _ray(
    p: RayParameters, now_s: float, seen: TierSeen, target: int, state: RayState | None
) -> tuple[int, str, RayState]:
    samples, pushed_s = _recorded(p, now_s, seen.ongoing_requests + seen.held_requests, state)
    ongoing = ray_mean([sample for sample in samples if sample[0] <= pushed_s], now_s)
    before = state.delay if state else RayDelay()
    replicas, delay = ray_target(p, now_s, Load(running=seen.ready, ongoing=ongoing), target, before)
    reason = f"{ongoing:.4g} requests on average, {p.target_ongoing_requests:g} meant for each of {seen.ready}"
    return replicas, reason, RayState(samples=samples, pushed_s=pushed_s, delay=delay)


def _recorded(p: RayParameters, now_s: float, ongoing: int, state: RayState | None) -> tuple[Samples, float]:
    """A sample at every fifth of the window or oftener; they are pruned to the window and sent once an interval."""
    if state is None:
        return ((now_s, float(ongoing)),), now_s
    samples, pushed_s = state.samples, state.pushed_s
    if now_s - samples[-1][0] >= min(0.2 * p.look_back_s, p.metrics_interval_s) - EPSILON_S:
        samples = (*samples, (now_s, float(ongoing)))
    if now_s - pushed_s < p.metrics_interval_s - EPSILON_S:
        return samples, pushed_s
    recent = tuple(sample for sample in samples if sample[0] > now_s - p.look_back_s)
    return recent or ((now_s, float(ongoing)),), now_s


def ray_mean(samples: Sequence[tuple[float, float]], now_s: float) -> float:
    """Over time: each sample lasts until the next, the last one until now."""
    ends = [at_s for at_s, _ in samples[1:]] + [max(now_s, samples[-1][0] + 1e-3)]
    area = sum(value * (end_s - at_s) for (at_s, value), end_s in zip(samples, ends, strict=True))
    return area / (ends[-1] - samples[0][0])


class Load(NamedTuple):
    running: int
    ongoing: float


def ray_target(p: RayParameters, now_s: float, load: Load, target: int, delay: RayDelay) -> tuple[int, RayDelay]:
    """The next target before min and max, which Ray 2.60 applies after the delays."""
    if load.running == 0 and (load.ongoing > 0 or target > 0):
        # Nothing runs: no delay, and the delay under way is left as it is.
        return max(math.ceil(p.upscaling_factor), target) if load.ongoing > 0 else target, delay
    desired = max(0, _ray_desired(p, load))
    side = (desired > target) - (desired < target)
    if side == 0:
        return target, RayDelay()
    since_s = delay.since_s if delay.since_s is not None and delay.side == side else now_s
    if side > 0:
        delay_s = p.upscale_delay_s
    else:
        to_zero = target == 1
        desired = desired if to_zero else max(1, desired)
        own_s = p.downscale_to_zero_delay_s
        delay_s = own_s if to_zero and own_s is not None else p.downscale_delay_s
    if now_s - since_s + EPSILON_S >= delay_s:
        return desired, RayDelay()
    return target, RayDelay(side=side, since_s=since_s)


def _ray_desired(p: RayParameters, load: Load) -> int:
    if load.running == 0:
        return 0
    running = load.running
    desired = running * (load.ongoing / (p.target_ongoing_requests * running))
    factor = p.upscaling_factor if desired > running else p.downscaling_factor
    scaled = math.ceil(running + factor * (desired - running))
    # A small factor rounds up to where it was: one fewer at least.
    return scaled - 1 if math.ceil(desired) < running and scaled == running else scaled
