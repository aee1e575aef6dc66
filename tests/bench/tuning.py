"""Peers tuned per trace and cold start, and what hindsight finds: every grid searched as if in full.

Tuned: of a grid, then of two smaller steps of the target load around its best, the setting with the fewest GPU-hours
that attains the goal on the tuning seed; where none does, the one that attains most. Runs that can no longer be the one
sought are stopped, which changes nothing in what is found.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, Literal

from bench.one_tier import Hopeless, Limits, Serving, World, mean_request, play

from autoscaling import ceilings, peers
from autoscaling.peers import RayParameters, StaticParameters
from autoscaling.peers_dynamo import DynamoParameters, dynamo
from autoscaling.peers_kpa import KNATIVE, KpaParameters, kpa
from autoscaling.signals import Scaler
from cluster.cost import slo_batch

GOAL = 0.99
PeerName = Literal["ray", "kpa", "dynamo"]
Parameters = RayParameters | KpaParameters | DynamoParameters
SHARES = (0.75, 0.55, 0.95, 0.35)  # of the batch, or of the pace, that the promise allows; the likeliest first
FINER = (0.88, 1.12)
K = tuple(round(0.7 * 1.025**step, 4) for step in range(80))  # of the clairvoyant plan: 0.7 to 4.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One point of a grid. `share`: None for the stock parameters."""

    parameters: Parameters
    share: float | None = None

    def scaler(self, world: World) -> Scaler:
        given = self.parameters
        if isinstance(given, RayParameters):
            return peers.ray(world.spec, given)
        if isinstance(given, KpaParameters):
            return kpa(world.spec, given)
        return dynamo(world.spec, given)

    def as_row(self) -> dict[str, Any]:
        """What differs from the stock parameters."""
        stock = asdict(type(self.parameters)())
        return {name: value for name, value in asdict(self.parameters).items() if value != stock[name]}


STOCK: dict[PeerName, Setting] = {
    "ray": Setting(parameters=RayParameters()),
    "kpa": Setting(parameters=KpaParameters()),
    "dynamo": Setting(parameters=DynamoParameters()),
}


def _with_share(setting: Setting, share: float, world: World) -> Setting:
    """A share of what the promise allows the trace's mean request, as the parameter that this policy has for it."""
    given = setting.parameters
    if isinstance(given, DynamoParameters):
        made: Parameters = replace(given, itl_target_ms=share * world.tier_spec.slo.tpot_ms)
    else:
        made = replace(given, target_ongoing_requests=share * slo_batch(world.tier_spec, *mean_request(world.workload)))
    return Setting(parameters=made, share=share)


def grid(name: PeerName, world: World, coarse: bool) -> Iterator[Setting]:
    """16 settings, or 6."""
    match name:
        case "ray":
            ways: list[Parameters] = [
                RayParameters(look_back_s=back_s, upscale_delay_s=up_s, downscale_delay_s=down_s)
                for (back_s, up_s), down_s in product(((10, 0), (30, 30)), (60, 600))
            ]
        case "kpa":
            ways = [replace(kind, down_choice=down) for kind in (KNATIVE, KpaParameters()) for down in ("max", "min")]
        case "dynamo":
            fast = DynamoParameters(predictor="constant", interval_s=60, combine="sum")
            slow = DynamoParameters(predictor="ar", interval_s=180, combine="sum")
            ways = [fast, replace(fast, combine="max"), slow, replace(slow, combine="max")]
    shares = SHARES[:2] if coarse else SHARES
    for share, way in product(shares, ways[:3] if coarse else ways):
        yield _with_share(Setting(parameters=way), share, world)


@dataclass(slots=True)
class _Search:
    """The best so far. Misses count down to the goal, GPU-hours from there on."""

    world: World
    serving: Serving
    goal: float
    best: Setting | None = None
    missed: float = 1.0
    gpu_hours: float = math.inf

    def tried(self, setting: Setting) -> None:
        reached = self.missed <= 1 - self.goal
        limits = Limits(missed_share=max(1 - self.goal, self.missed), gpu_hours=self.gpu_hours if reached else math.inf)
        try:
            figures = play(self.world, setting.scaler(self.world), self.serving, limits=limits)
        except Hopeless:
            return
        missed = 1 - figures.attainment
        better = figures.gpu_hours < self.gpu_hours and missed <= 1 - self.goal if reached else missed < self.missed
        if better:
            self.best, self.missed, self.gpu_hours = setting, missed, figures.gpu_hours


def tuned(name: PeerName, world: World, serving: Serving, *, coarse: bool, goal: float) -> tuple[Setting, bool]:
    """And whether it attains the goal here."""
    search = _Search(world, serving, goal)
    for setting in grid(name, world, coarse):
        search.tried(setting)
    best = search.best
    if best is not None and best.share is not None and not coarse:
        for factor in FINER:
            search.tried(_with_share(best, best.share * factor, world))
    return search.best or STOCK[name], search.missed <= 1 - goal


def least_static(world: World, serving: Serving, guess: int, goal: float = GOAL) -> int:
    """The fewest replicas, there from the start, that attain the goal."""

    def attains(count: int) -> bool:
        made = peers.static(world.spec, StaticParameters(replicas=count))
        return _attains(world, made, serving, goal, first=count)

    return _least(attains, max(1, guess), most=math.ceil(10 * world.load) + 10)


def planned(world: World, step: int) -> Scaler:
    tier = world.tier_spec
    given = ceilings.ClairvoyantParameters(k=K[step])
    return ceilings.clairvoyant(world.spec, {world.tier: ceilings.plan(world.workload, tier, given, tier.cold_start_s)})


def least_k(world: World, serving: Serving, guess: int) -> int:
    """The step of the least k with which the clairvoyant plan attains the goal."""
    return _least(lambda step: _attains(world, planned(world, step), serving, GOAL), guess, most=len(K) - 1, least=0)


def _attains(world: World, scaler: Scaler, serving: Serving, goal: float, first: int | None = None) -> bool:
    try:
        return play(world, scaler, serving, first, Limits(missed_share=1 - goal)).attainment >= goal
    except Hopeless:
        return False


def _least(attains: Callable[[int], bool], guess: int, most: int, least: int = 1) -> int:
    """By growing steps from the guess, then by halves; the most where none attains."""
    low, high, stride = least - 1, most, 1  # low fails, high is taken to attain
    at = min(guess, most)
    if attains(at):
        high = at
        while high > least and attains(max(least, high - stride)):
            high, stride = max(least, high - stride), 2 * stride
        low = max(least - 1, high - stride)
    else:
        low = at
        while low + stride < most and not attains(low + stride):
            low, stride = low + stride, 2 * stride
        high = min(most, low + stride)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if attains(middle) else (middle, high)
    return high
