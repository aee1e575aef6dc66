"""Which rows go to which copy of an expert, so that the most loaded rank of this batch has least to do.

Each expert in turn pours its rows into the valleys that all others leave it, until nothing changes. That descends the
sum of squared rank loads, one block at a time; its minimum over these shares is also that of the largest load.
`split` does it in whole rows for one layer; `settle` for many layers and many loads at once, in fractions, to plan.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SWEEPS = 16
_FULL = 1e30  # the level of a rank that does not exist: nothing is poured there


def split(counts: Ints, slots: Ints, ranks: int) -> Ints:
    """Rows of each source rank for each slot [ranks, slots], from its rows for each expert [ranks, experts].

    Sums over an expert's slots are its counts. Rows stay on their own rank where its copy is not full. The same
    counts give the same answer everywhere, so ranks need not agree on it in words.
    """
    experts = counts.shape[1]
    if len(slots) == experts:
        alone: Ints = counts[:, slots]
        return alone
    where = np.arange(len(slots)) // (len(slots) // ranks)
    planned = _planned(counts.sum(0).tolist(), slots.tolist(), len(slots) // ranks, ranks)
    sent: Ints = np.where(where == np.arange(len(counts))[:, None], np.minimum(counts[:, slots], planned), 0)
    # What is left of sources and of slots are two rows of intervals on one line, expert after expert: each piece
    # of a source goes to the slots whose intervals it overlaps.
    order = np.argsort(slots, kind="stable")
    left = counts - np.add.reduceat(sent[:, order], np.searchsorted(slots[order], np.arange(experts)), axis=1)
    room = (planned - sent.sum(0))[order]
    fills = np.cumsum(room)
    ends = np.cumsum(left.T.reshape(-1)).reshape(experts, -1).T[:, slots[order]]
    begins = ends - left[:, slots[order]]
    sent[:, order] += np.maximum(np.minimum(ends, fills) - np.maximum(begins, fills - room), 0)
    return sent


def settle(loads: Floats, slots: Ints, copies: Ints, ranks: int, sweeps: int = SWEEPS) -> tuple[Floats, Floats]:
    """Loads of slots [layers, cases, slots] and of ranks [layers, cases, ranks] once copies share at their best.

    `loads` [layers, cases, experts]; `slots` [layers, slots] and `copies` [layers, experts] hold for all cases.
    """
    layers, cases, _ = loads.shape
    width = slots.shape[1]
    each = np.zeros((layers, cases, width + 1))
    each[..., :width] = np.take_along_axis(loads / copies[:, None], slots[:, None], 2)
    total = np.full((layers, cases, ranks + 1), _FULL)
    total[..., :ranks] = each[..., :width].reshape(layers, cases, ranks, -1).sum(3)
    layer, case = np.arange(layers)[:, None, None], np.arange(cases)[None, :, None]
    several, own = _owners(slots, copies)
    amounts = np.where(
        np.take_along_axis(copies, several, 1)[:, None] > 1, np.take_along_axis(loads, several[:, None], 2), 0
    )
    for _ in range(sweeps):
        for nth in range(several.shape[1]):
            at = own[:, nth, : int((own[:, nth] < width).sum(1).max())][:, None]
            rank = at // (width // ranks)
            base = total[layer, case, rank] - each[layer, case, at]
            under = np.cumsum(np.sort(base, 2), 2) + amounts[:, :, nth, None]
            level = (under / np.arange(1, at.shape[2] + 1)).min(2)
            poured = np.maximum(level[..., None] - base, 0)
            each[layer, case, at] = poured
            total[layer, case, rank] = base + poured
    return each[..., :width], total[..., :ranks]


def _owners(slots: Ints, copies: Ints) -> tuple[Ints, Ints]:
    """Experts with several copies [layers, n] and their slots [layers, n, most copies], filled up beyond the last."""
    width = slots.shape[1]
    order = np.argsort(slots, axis=1, kind="stable")
    several = np.argsort(-copies, axis=1, kind="stable")[:, : int((copies > 1).sum(1).max())]
    count = np.take_along_axis(copies, several, 1)[..., None]
    nth = np.arange(copies.max())
    at = np.take_along_axis(np.cumsum(copies, 1) - copies, several, 1)[..., None] + nth
    found = np.take_along_axis(order, np.minimum(at, width - 1).reshape(len(slots), -1), 1).reshape(at.shape)
    return several, np.where((nth < count) & (count > 1), found, width)


def _planned(total: list[int], slots: list[int], room: int, ranks: int) -> Ints:
    """Rows of each slot. Plain Python: there are a few experts with copies, and each has a few."""
    own: dict[int, list[int]] = {}
    for slot, expert in enumerate(slots):
        own.setdefault(expert, []).append(slot)
    planned, load = [0] * len(slots), [0] * ranks
    for expert, at in own.items():
        share, rest = divmod(total[expert], len(at))
        for nth, slot in enumerate(at):
            planned[slot] = share + (nth < rest)
            load[slot // room] += planned[slot]
    several = sorted((expert for expert, at in own.items() if len(at) > 1), key=lambda expert: -total[expert])
    least = -(-sum(load) // ranks)
    for _ in range(SWEEPS):
        moved = [_pour(total[expert], own[expert], planned, load, room) for expert in several]
        if max(moved) <= 1 or max(load) <= least:
            break
    return np.array(planned, np.int64)


def _pour(amount: int, at: list[int], planned: list[int], load: list[int], room: int) -> int:
    """Shares an expert's rows anew over its slots, lowest ranks first. The most rows that a slot gained or lost."""
    base = sorted((load[slot // room] - planned[slot], slot) for slot in at)
    below = lowest = 0
    while lowest < len(base) and lowest * base[lowest][0] - below <= amount:
        below += base[lowest][0]
        lowest += 1
    level, rest = divmod(amount + below, lowest)
    most = 0
    for nth, (height, slot) in enumerate(base):
        poured = level + (nth < rest) - height if nth < lowest else 0
        most = max(most, abs(poured - planned[slot]))
        planned[slot] = poured
        load[slot // room] = height + poured
    return most
