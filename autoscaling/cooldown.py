"""How long what a tier once wanted counts: its target rises at once and falls slowly.

    target = the most of what was wanted, each demand fading by fall_share (at least 1) per fall_every_s, but not before
             calm_s and a cold start have passed

Law, sleep excepted: target(t + fall_every_s) >= target(t) - max(1, fall_share*target(t)).
"""

import math
from dataclasses import dataclass

from autoscaling.parameters import Parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """`wanted` replicas, which begin to fade calm_s after `until_s`."""

    wanted: int
    until_s: float


def remembered(demands: tuple[Demand, ...], now: Demand, parameters: Parameters, now_s: float) -> tuple[Demand, ...]:
    """With the new one, and without those that want no more than it, and no longer. The oldest first."""
    lasting = (
        demand for demand in demands if demand.until_s > now.until_s or faded(demand, parameters, now_s) > now.wanted
    )
    return *lasting, now


def faded(demand: Demand, parameters: Parameters, now_s: float) -> int:
    """What is left of a demand: all of it for calm_s, then a share less at once and again every fall_every_s."""
    left, falls = demand.wanted, math.floor((now_s - demand.until_s - parameters.calm_s) / parameters.fall_every_s) + 1
    for _ in range(falls):
        if left == 0:
            break
        left -= max(1, int(left * parameters.fall_share))
    return left
