"""Which rows go to which copy of an expert, so that the most loaded rank of this batch has least to do."""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def split(counts: Ints, slots: Ints, ranks: int) -> Ints:
    """Rows of each source rank for each slot, [sources, slots], from its rows for each expert, [sources, experts].

    Sums over an expert's slots are its counts. Where loads allow, rows stay on their own rank.
    """
    copies = np.bincount(slots, minlength=counts.shape[1])
    if copies.max(initial=0) <= 1:
        return counts[:, slots]
    where = np.arange(len(slots)) // (len(slots) // ranks)
    planned = _targets(counts.sum(0), slots, where, copies, ranks)
    home = where == np.arange(len(counts))[:, None]
    sent = np.where(home, np.minimum(counts[:, slots], planned), 0)
    order = np.argsort(slots, kind="stable")
    for expert in np.flatnonzero(copies):
        own = order[slots[order] == expert]
        ends = np.cumsum(counts[:, expert] - sent[:, own].sum(1))
        fills = np.cumsum(planned[own] - sent[:, own].sum(0))
        before = np.concatenate([[0], ends[:-1]])[:, None]
        filled = np.concatenate([[0], fills[:-1]])
        sent[:, own] += np.maximum(np.minimum(ends[:, None], fills) - np.maximum(before, filled), 0)
    return sent


def _targets(total: Ints, slots: Ints, where: Ints, copies: Ints, ranks: int) -> Ints:
    """Rows of each slot: each expert in turn fills the valleys that the others leave it."""
    planned = np.where(copies[slots] == 1, total[slots], 0)
    load = np.bincount(where, planned, ranks).astype(np.int64)
    several = np.flatnonzero(copies > 1)
    several = several[np.argsort(-total[several], kind="stable")]
    for _ in range(8):
        for expert in several:
            own = np.flatnonzero(slots == expert)
            base = load[where[own]] - planned[own]
            fill = _fill(base, int(total[expert]))
            load[where[own]] = base + fill
            planned[own] = fill
    return planned


def _fill(base: Ints, amount: int) -> Ints:
    """Adds `amount` to `base` so that the largest sum is least, in whole rows."""
    order = np.argsort(base, kind="stable")
    heights = base[order]
    spare = np.arange(1, len(base) + 1) * heights - np.cumsum(heights)
    lowest = int((spare <= amount).sum())
    level, rest = divmod(amount + int(heights[:lowest].sum()), lowest)
    fill = np.zeros_like(base)
    fill[order[:lowest]] = level - heights[:lowest] + (np.arange(lowest) < rest)
    return fill
