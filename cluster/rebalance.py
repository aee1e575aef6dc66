"""Whether experts should move now: only where their loads have drifted, and the time gained pays for the move.

A plan is made from every second part of the window's newer half and tried on the others, which it has not seen: what
it gains from noise in its own parts it does not gain there. Both placements are taken as they serve, each batch shared
over copies.
A step takes 1 - share + share * imbalance of its balanced time, so a step's saving is
share * (now - then) / (1 - share + share * now), for as long as the plan holds. It holds until a rank's load has
wandered as far as the plan gains: under the plan, rank loads that lie further apart in time differ by more, and by how
much more, noise apart, is the speed of the drift.
"""

from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from cluster.dispatch import settle
from cluster.errors import ConfigurationError
from cluster.experts import Placement, moves, place

Floats = NDArray[np.float64]

LEAST_PARTS = 4
CERTAIN = 3.0  # standard errors that a gain must be above zero


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """`loads` [parts, layers, experts] are tokens routed in each part of the window, oldest first, `part_s` long each.

    `since_s`: since experts moved last, infinite where they never did.
    """

    loads: NDArray[np.int64]
    part_s: float
    since_s: float = inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a better balance is worth. `share` of a balanced step's time grows with the largest rank load.

    Moving one copy of an expert costs `move_s`. A plan is taken to hold for `horizon_s`, or less where drift is fast.
    Nothing moves on fewer than `least_tokens` per layer, within `cooldown_s` of the last move, or for a fall of
    max/mean below `least_gain`.
    """

    share: float = 0.5
    move_s: float = 0.01
    horizon_s: float = 600.0
    least_tokens: int = 1000
    cooldown_s: float = 60.0
    least_gain: float = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """`placement` is None where experts stay. Imbalance is max/mean of rank loads, in the mean over layers with load.

    `imbalance_then` and `moved` are of the plan, taken or not. Where none was made, imbalances are 1 and nothing moved.
    """

    placement: Placement | None
    reason: str
    imbalance_now: float = 1.0
    imbalance_then: float = 1.0
    moved: int = 0


def judge(window: Window, placement: Placement, terms: Terms) -> Judgement:
    """Whether to move, why, and where to. The same window gives the same answer.

    Raises ConfigurationError where a load is negative or the window is not of the placement's layers.
    """
    _check(window, placement)
    if waiting := _waiting(window, terms):
        return Judgement(placement=None, reason=waiting)
    recent = window.loads[-max(LEAST_PARTS, len(window.loads) // 2) :]
    tried = recent[-1::-2]
    planned = place(recent[-2::-2].sum(0), ranks=placement.ranks, slots=len(placement.slots[0]), old=placement)
    each_now, each_then = (_imbalance(rank_loads(tried, p)) for p in (placement, planned))
    now, then = float(each_now.mean()), float(each_then.mean())
    moved = moves(placement, planned)
    fall = each_now - each_then
    # What parts differ by, and not less than counts of single tokens would.
    error = max(float(fall.std(ddof=1)) / len(fall) ** 0.5, (placement.ranks / max(int(tried.sum()), 1)) ** 0.5)
    least = max(terms.least_gain, CERTAIN * error)
    holds_s = min(terms.horizon_s, _holds_s(window, planned, now - then))
    gain_s = holds_s * terms.share * (now - then) / (1 - terms.share + terms.share * now)
    price_s = moved * terms.move_s
    refused = ""
    if not moved:
        refused = "no better placement is known: "
    elif now - then <= least:
        refused = f"a fall of {least:.3f} is least: "
    elif gain_s <= price_s:
        refused = "the move does not pay: "
    return Judgement(
        placement=None if refused else planned,
        reason=f"{refused}imbalance {now:.3f} to {then:.3f} would gain {gain_s:.2f} s in {holds_s:.0f} s; "
        f"moving {moved} copies takes {price_s:.2f} s",
        imbalance_now=now,
        imbalance_then=then,
        moved=moved,
    )


def rank_loads(loads: NDArray[np.int64], placement: Placement) -> Floats:
    """[parts, layers, ranks] of max/mean units: each mean is 1, or 0 without load; copies share at their best."""
    slots = np.array(placement.slots, np.int64)
    copies = np.stack([np.bincount(row, minlength=loads.shape[2]) for row in slots])
    ranks = settle(loads.swapaxes(0, 1).astype(np.float64), slots, copies, placement.ranks)[1].swapaxes(0, 1)
    means = ranks.mean(2, keepdims=True)
    scaled: Floats = ranks / np.where(means > 0, means, 1.0)
    return scaled


def _imbalance(ranks: Floats) -> Floats:
    """Of each part, in the mean over layers that have load; 1 where none has."""
    largest = ranks.max(2)
    counted = (largest > 0).sum(1)
    mean: Floats = np.where(counted > 0, largest.sum(1) / np.maximum(counted, 1), 1.0)
    return mean


def _holds_s(window: Window, planned: Placement, gain: float) -> float:
    ranks = rank_loads(window.loads, planned)
    far = len(ranks) // 2
    near, wide = (((ranks[lag:] - ranks[:-lag]) ** 2).mean() for lag in (1, far))
    speed = (wide - near) / ((far - 1) * window.part_s)  # square of mean rank loads, per second
    return gain**2 / speed if gain > 0 and speed > 0 else inf


def _waiting(window: Window, terms: Terms) -> str:
    if not window.loads.shape[1]:
        return "no layer has experts"
    parts = len(window.loads)
    if parts < LEAST_PARTS:
        return f"the window has {parts} parts; {LEAST_PARTS} are least"
    tokens = int(window.loads.sum((0, 2)).min())
    if tokens < terms.least_tokens:
        return f"a layer has {tokens} tokens in the window; {terms.least_tokens} are least"
    if window.since_s < terms.cooldown_s:
        return f"experts moved {window.since_s:.0f} s ago; {terms.cooldown_s:.0f} s are least"
    return ""


def _check(window: Window, placement: Placement) -> None:
    layers, experts = len(placement.slots), 1 + max(map(max, placement.slots), default=-1)
    if window.loads.shape[1:] != (layers, experts):
        raise ConfigurationError(
            f"expert window: {window.loads.shape[1:]} of layers and experts; {(layers, experts)} are placed; "
            "count what is placed"
        )
    if window.loads.size and window.loads.min() < 0:
        raise ConfigurationError(f"expert window: {window.loads.min()} tokens; 0 or more; count them anew")
