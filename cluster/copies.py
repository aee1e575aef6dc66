"""Copies for experts and ranks for copies: the plans of a layer that `experts.place` chooses from.

What counts is the most loaded rank of batches to come, each shared over copies as `dispatch.split` does, not that of
the loads planned on. So experts have a load and a risk. In units of the mean rank load, an expert of load x whose
log drifts by a standard deviation s has x + b (s x)^2 / 2, the effective bandwidth of a normal load (Kelly 1991), at
b = sqrt(2 ln ranks) / (deviation of a rank), where the sum of exp(b load) over ranks tells the largest.
In a pooled plan an expert with copies shares one rank with those before it in its pool, so that what is too much for
one flows on to all; the rest of its copies go to ranks of their own. Experts without copies follow, heaviest first:
risk counts in full on a rank without copies, and divided by the copies that can give way on one with them.
"""

import numpy as np
from numpy.typing import NDArray

from cluster.dispatch import settle

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_SETTLE_EVERY = 8  # copies placed between two looks at how the pool shares its load
_FAR = 100.0  # mean rank loads
_POOL_RISK = 0.8  # the part of the risk of shared experts that their ranks are planned to keep room for
_HOME = 0.3  # mean rank loads that a copy may cost more where its expert is already
_TAIL = 2.0  # deviations above its load at which the heaviest of many experts is met


def replicate(loads: Floats, slots: int, ranks: int, drift: float = 0.0) -> Ints:
    """Copies [layers, experts] that fill the slots, at most one on each rank; `loads` [layers, experts].

    Without `drift`, the deviation of the logs, the largest load per copy is least, as in DeepSeek's EPLB. With it the
    largest of drifted ones is: the tail of a lognormal falls like a power, -z / drift at z deviations, so that
    copies go where they take most off the sum of that power of the loads per copy.
    """
    copies = np.ones(loads.shape, np.int64)
    layer = np.arange(len(loads))
    most = loads.max(1, keepdims=True)
    relative = loads / np.where(most > 0, most, 1.0)
    power = _TAIL / drift if drift else 1.0
    for _ in range(slots - loads.shape[1]):
        now = (relative / copies) ** power
        gain = now - (relative / (copies + 1)) ** power if drift else now
        copies[layer, np.where(copies < ranks, gain, -1.0).argmax(1)] += 1
    return copies


def pack(
    loads: Floats, copies: Ints, ranks: int, *, drift: float = 0.0, pool: int = 0, home: NDArray[np.bool_] | None = None
) -> Ints:
    """Experts of slots [layers, slots]; `loads` in mean rank loads.

    With `drift` plans are pooled: of each `pool` experts, heaviest copies first, all but the first share a rank with
    one before. Without, this is EPLB's greedy packing. `home` [layers, experts, ranks]: where experts are already;
    they stay where that costs little.
    """
    room = int(copies[0].sum()) // ranks
    order = np.lexsort((-loads / copies, (copies == 1) & (drift > 0)), axis=1)
    items = np.stack([np.repeat(own, count[own]) for own, count in zip(order, copies, strict=True)])
    follows = np.argsort(order, axis=1) % max(pool, 1) > 0  # not the first of its pool
    layer = np.arange(len(loads))
    packing = _Packing(loads, copies, ranks, drift, home)
    for nth, expert in enumerate(items.T):
        if drift and nth % _SETTLE_EVERY == 0:
            packing.settle()
        packing.add(expert, link=follows[layer, expert] & (expert != items[:, nth - 1]))
    slots = packing.slots
    # Rarely the last copies find only ranks that have one. Dealt out in turn, no rank gets two.
    stuck = packing.stuck
    slots[stuck] = items[stuck].reshape(-1, room, ranks).swapaxes(1, 2).reshape(-1, room * ranks)
    return slots


class _Packing:
    """All layers at once, slot after slot. Arrays [layers, ranks] unless said otherwise; loads in mean rank loads."""

    def __init__(self, loads: Floats, copies: Ints, ranks: int, drift: float, home: NDArray[np.bool_] | None) -> None:
        layers, experts = loads.shape
        self.room = int(copies[0].sum()) // ranks
        self.slots = np.full((layers, ranks * self.room), experts, np.int64)  # `experts`: nobody yet
        self.stuck = np.zeros(layers, np.bool_)
        self._loads, self._copies, self._layer = loads, copies, np.arange(layers)
        self._home = home
        self._each = loads / copies
        deviation = np.sqrt((loads**2 / copies).sum(1, keepdims=True) / ranks)
        bend = drift * np.sqrt(np.log(ranks) / 2) / np.where(deviation > 0, deviation, 1.0)
        self._risk = bend * self._each**2  # [layers, experts]
        self._pooled = (copies > 1) & (drift > 0)  # [layers, experts]
        self._held = np.zeros((layers, ranks), np.int64)
        self._has = np.zeros((layers, experts, ranks), np.bool_)
        self._fixed, self._shared, self._shared_risk, self._total = np.zeros((4, layers, ranks))
        self._reach = np.zeros((layers, ranks))  # copies of the experts that a rank shares

    def settle(self) -> None:
        placed = np.concatenate([self._has.sum(2), np.ones((len(self.slots), 1), np.int64)], 1)
        loads = np.pad(self._loads, ((0, 0), (0, 1)))[:, None]
        self._total = settle(loads, self.slots, np.maximum(placed, 1), self._total.shape[1], 2)[1][:, 0]

    def add(self, expert: Ints, *, link: NDArray[np.bool_]) -> None:
        """One copy of `expert` [layers]; `link` [layers]: to a rank of its pool."""
        layer = self._layer
        load, risk = self._each[layer, expert], self._risk[layer, expert]
        pooled = self._pooled[layer, expert]
        cost = np.where(pooled[:, None], self._cost_shared(link), self._cost_alone((load + risk)[:, None]))
        if self._home is not None:
            cost -= _HOME * self._home[layer, expert]
        cost[(self._held == self.room) | self._has[layer, expert]] = np.inf
        rank = cost.argmin(1)
        self.stuck |= np.isinf(cost[layer, rank])
        self.slots[layer, rank * self.room + np.minimum(self._held[layer, rank], self.room - 1)] = expert
        self._has[layer, expert, rank] = True
        self._held[layer, rank] += 1
        self._total[layer, rank] += load
        self._fixed[layer, rank] += np.where(pooled, 0, load + risk)
        self._shared[layer, rank] += np.where(pooled, load, 0)
        self._shared_risk[layer, rank] += np.where(pooled, risk, 0)
        self._reach[layer, rank] += np.where(pooled, self._copies[layer, expert], 0)

    def _cost_shared(self, link: NDArray[np.bool_]) -> Floats:
        return self._shared + np.where((self._reach > 0) == link[:, None], 0.0, _FAR)

    def _cost_alone(self, load: Floats) -> Floats:
        alone = self._fixed + load
        relieved = self._total + load / np.maximum(self._reach, 1) + _POOL_RISK * self._shared_risk
        return np.where(self._reach > 0, np.maximum(relieved, alone), alone) + 1e-6 * self._fixed


def align(plan: Ints, old: Ints, ranks: int, experts: int) -> Ints:
    """The plan with its ranks and slots in another order, such that more experts stay where they are."""
    layers, width = plan.shape
    room = width // ranks
    layer = np.arange(layers)
    has = np.zeros((2, layers, ranks, experts))
    for held, slots in zip(has, (old, plan), strict=True):
        held[layer[:, None], np.arange(width) // room, slots] = 1
    common = has[0] @ has[1].swapaxes(1, 2)
    source = np.zeros((layers, ranks), np.int64)
    for _ in range(ranks):
        most = common.reshape(layers, -1).argmax(1)
        target, taken = most // ranks, most % ranks
        source[layer, target] = taken
        common[layer, target] = -1
        common[layer, :, taken] = -1
    moved = np.take_along_axis(plan.reshape(layers, ranks, room), source[..., None], 1).reshape(-1, room)
    return np.stack([_in_place(new, now) for new, now in zip(moved, old.reshape(-1, room), strict=True)]).reshape(
        layers, width
    )


def _in_place(new: Ints, old: Ints) -> Ints:
    """The experts of one rank: those that stay keep their slots."""
    stays = np.isin(old, new)
    placed = old.copy()
    placed[~stays] = new[~np.isin(new, old)]
    return placed
