"""Whether experts should move now: only where their load has drifted, and the time gained pays for the move."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.experts import Placement, place


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """`loads` [parts, layers, experts] are tokens routed in each part of the window, oldest first, `part_s` long each.

    `since_s`: since experts moved last, infinite where they never did.
    """

    loads: NDArray[np.int64]
    part_s: float
    since_s: float = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a better balance is worth. `share` of a step's time grows with the largest rank load; moving one copy of an
    expert costs `move_s`; a placement is taken to hold for `horizon_s`, or as long as measured drift lets it.
    """

    share: float = 0.5
    move_s: float = 0.01
    horizon_s: float = 600.0
    least_tokens: int = 1000
    cooldown_s: float = 60.0
    margin: float = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """`placement` is None where experts stay. Imbalance is max/mean of rank loads, in the mean over layers."""

    placement: Placement | None
    reason: str
    imbalance_now: float = 1.0
    imbalance_then: float = 1.0
    moved: int = 0


def judge(window: Window, placement: Placement, terms: Terms) -> Judgement:
    total = window.loads.sum(0)
    tokens = int(total.sum(1).min()) if total.size else 0
    if tokens < terms.least_tokens:
        return Judgement(placement=None, reason=f"{tokens} tokens in a layer; at least {terms.least_tokens}")
    if window.since_s < terms.cooldown_s:
        return Judgement(
            placement=None, reason=f"{window.since_s:.0f} s since the last move; at least {terms.cooldown_s:.0f}"
        )
    now = imbalance(total, placement)
    planned = place(total, ranks=placement.ranks, slots=len(placement.slots[0]), old=placement)
    then = imbalance(total, planned)
    moved = moves(placement, planned)
    saved = terms.share * (now - then) / (1 - terms.share + terms.share * now)
    gain_s, price_s = saved * terms.horizon_s, moved * terms.move_s
    figures = f"imbalance {now:.3f} to {then:.3f} gains {gain_s:.1f} s; {moved} copies cost {price_s:.1f} s"
    good = now - then > terms.margin and gain_s > price_s
    return Judgement(
        placement=planned if good else None,
        reason=figures if good else f"not worth it: {figures}",
        imbalance_now=now,
        imbalance_then=then,
        moved=moved,
    )


def imbalance(loads: NDArray[np.int64], placement: Placement) -> float:
    """max/mean of the ranks' loads [layers, experts], copies alike; the mean over layers that have load."""
    slots = np.array(placement.slots)
    found = []
    for row, own in zip(loads, slots, strict=True):
        each = row / np.bincount(own, minlength=len(row))
        ranks = each[own].reshape(placement.ranks, -1).sum(1)
        if ranks.any():
            found.append(ranks.max() / ranks.mean())
    return float(np.mean(found)) if found else 1.0


def moves(old: Placement, new: Placement) -> int:
    """Copies that lie on a rank which had none of that expert."""
    return sum(
        len(set(after[r * new.room : (r + 1) * new.room]) - set(before[r * old.room : (r + 1) * old.room]))
        for before, after in zip(old.slots, new.slots, strict=True)
        for r in range(new.ranks)
    )
