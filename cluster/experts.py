"""Which expert lies in which slot of which rank of an expert group.

What counts is the most loaded rank of batches to come, each shared over copies as `dispatch.split` does, not that of
the loads planned on. So experts have a load and a risk. In units of the mean rank load, an expert of load x whose
log drifts by a standard deviation s has x + b (s x)^2 / 2, the effective bandwidth of a normal load (Kelly 1991), at
b = sqrt(2 ln ranks) / (deviation of a rank), where the sum of exp(b load) over ranks tells the largest.
Copies first, as DeepSeek's EPLB gives them: to the most load per copy. In the pooled plan each expert with copies
shares one rank with those before it, so that what is too much for one flows on to all; the rest of its copies go to
ranks of their own. Experts without copies follow, heaviest first: risk counts in full on a rank without copies, and
divided by the copies that can give way on one with them. The greedy plan is EPLB's: no pool and no risk.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.dispatch import settle
from cluster.errors import ConfigurationError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CASES = 16
TOLERANCE = 0.01  # of max/mean
_SETTLE_EVERY = 8  # copies placed between two looks at how the pool shares its load
_FAR = 100.0  # mean rank loads
_POOL_RISK = 0.8  # the part of the risk of shared experts that their ranks are planned to keep room for


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """`slots[layer][slot]` is the expert in a physical slot. Each rank has a run of equally many slots.

    Every expert has a slot in every layer; one with several has a copy in each, never two on one rank.
    """

    ranks: int
    slots: tuple[tuple[int, ...], ...]

    @property
    def room(self) -> int:
        """Slots of one rank in one layer."""
        return len(self.slots[0]) // self.ranks if self.slots else 0


def even(*, layers: int, experts: int, ranks: int, redundant: int = 0) -> Placement:
    """The start, before any load is known: experts in order, and extra copies spread, each of another rank's expert.

    Raises ConfigurationError where experts and copies do not fill the ranks.
    """
    _check(experts, _Shape(ranks=ranks, slots=experts + redundant, nodes=1, groups=1))
    room = (experts + redundant) // ranks
    held = [list(range(-(-rank * experts // ranks), -(-(rank + 1) * experts // ranks))) for rank in range(ranks)]
    copies = [1] * experts
    for rank, own in enumerate(held):
        following = -(-(rank + 1) * experts // ranks)
        while len(own) < room:
            absent = (expert for expert in range(experts) if expert not in own)
            chosen = min(absent, key=lambda expert: (copies[expert], (expert - following) % experts))
            own.append(chosen)
            copies[chosen] += 1
    return Placement(ranks=ranks, slots=(tuple(expert for own in held for expert in own),) * layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How far loads move between a plan and its use: `deviation` of their logs. Cases are drawn from `seed`."""

    deviation: float = 0.3
    seed: int = 0


def place(
    load: Floats | Ints,
    *,
    ranks: int,
    slots: int,
    nodes: int = 1,
    old: Placement | None = None,
    drift: Drift = Drift(),
) -> Placement:
    """Slots for loads [layers, experts], such that the largest rank load stays small when the loads drift.

    Each layer takes the best of `old`, the greedy plan and the pooled plan, judged on drifted loads by their max/mean
    after `dispatch.split`. A layer keeps `old` where a plan would win less than `TOLERANCE`. All copies of an expert
    lie on one node. Raises ConfigurationError where experts do not fill the slots, or slots the ranks and nodes, or a
    load is negative or not finite.
    """
    loads = np.asarray(load, np.float64)
    return _place(loads, _Shape(ranks=ranks, slots=slots, nodes=nodes, groups=loads.shape[1]), old, drift)


def moves(old: Placement, new: Placement) -> int:
    """Copies that lie on a rank which had none of that expert before: what must be sent."""
    return sum(
        len(set(after[start : start + new.room]) - set(before[start : start + new.room]))
        for before, after in zip(old.slots, new.slots, strict=True)
        for start in range(0, len(after), new.room)
    )


def rebalance_experts(
    weight: NDArray[Any],
    num_replicas: int,
    num_groups: int,
    num_nodes: int,
    num_ranks: int,
    old_global_expert_indices: NDArray[np.int64] | None = None,
) -> Ints:
    """vLLM's EPLB policy interface over `place`: weight [layers, experts] -> expert of each slot [layers, replicas].

    As in DeepSeek's EPLB, nodes count only where they share the groups evenly. vLLM shares rows evenly over copies,
    for which a pooled plan is worse than a greedy one: so this is the greedy plan.
    """
    old = None
    if old_global_expert_indices is not None:
        old = Placement(ranks=num_ranks, slots=tuple(map(tuple, np.asarray(old_global_expert_indices).tolist())))
    nodes, groups = (num_nodes, num_groups) if num_groups % num_nodes == 0 else (1, 1)
    loads = np.asarray(weight, np.float64)
    shape = _Shape(ranks=num_ranks, slots=num_replicas, nodes=nodes, groups=groups)
    return np.array(_place(loads, shape, old, Drift(deviation=0.0)).slots, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """Each of the `groups` of experts lies whole, with all its copies, on one of the `nodes`."""

    ranks: int
    slots: int
    nodes: int
    groups: int


def _place(given: Floats, shape: _Shape, old: Placement | None, drift: Drift) -> Placement:
    layers, experts = given.shape
    ranks, slots, nodes = shape.ranks, shape.slots, shape.nodes
    _check(experts, shape)
    wrong = ~np.isfinite(given) | (given < 0)
    if wrong.any():
        layer, expert = np.argwhere(wrong)[0]
        raise ConfigurationError(
            f"expert loads: layer {layer}, expert {expert}: {given[layer, expert]}; 0 or more tokens; count them anew"
        )
    sums = given.sum(1, keepdims=True)
    loads = given / np.where(sums > 0, sums, 1.0) * ranks
    local, members = _nodes(loads, nodes, shape.groups)
    copies = _replicate(local, slots // nodes, ranks // nodes)
    packed = [_pack(local, copies, ranks // nodes, deviation) for deviation in sorted({0.0, drift.deviation})]
    plans = [np.take_along_axis(members, plan, 1).reshape(layers, slots) for plan in packed]
    cases = _drifted(loads, drift)
    if old is None or old.ranks != ranks or np.shape(old.slots) != (layers, slots):
        found = np.stack([_largest(cases, plan, ranks) for plan in plans])
    else:
        before = np.array(old.slots, np.int64)
        plans = [before, *(plan if nodes > 1 else _align(plan, before, ranks, experts) for plan in plans)]
        found = np.stack([_largest(cases, plan, ranks) for plan in plans])
        found[0] -= TOLERANCE
    chosen = np.stack(plans)[found.argmin(0), np.arange(layers)]
    return Placement(ranks=ranks, slots=tuple(map(tuple, chosen.tolist())))


def _check(experts: int, shape: _Shape) -> None:
    ranks, slots, nodes, groups = shape.ranks, shape.slots, shape.nodes, shape.groups
    if ranks < 1 or slots % ranks:
        raise ConfigurationError(
            f"expert slots: {slots} over {ranks} ranks; each rank has equally many; change `redundant` or the ranks"
        )
    if not experts <= slots <= experts * ranks // nodes:
        raise ConfigurationError(
            f"expert slots: {slots} for {experts} experts on {ranks} ranks; {experts} to {experts * ranks // nodes}, "
            "at least one copy per expert and at most one on each rank of its node; change `redundant`"
        )
    if ranks % nodes or groups % nodes or experts % groups:
        raise ConfigurationError(
            f"expert nodes: {nodes} for {ranks} ranks and {experts} experts in {groups} groups; nodes share ranks and "
            "groups evenly, groups the experts; plan with one node"
        )


def _nodes(loads: Floats, nodes: int, groups: int) -> tuple[Floats, Ints]:
    """Each node of each layer as a layer of its own: loads [layers * nodes, experts of a node], and who they are."""
    layers, experts = loads.shape
    size = experts // groups
    home = _pack(loads.reshape(layers, groups, size).sum(2), np.ones((layers, groups), np.int64), nodes, 0.0)
    members = (home[..., None] * size + np.arange(size)).reshape(layers, experts)
    shape = (layers * nodes, experts // nodes)
    return np.take_along_axis(loads, members, 1).reshape(shape), members.reshape(shape)


def _replicate(loads: Floats, slots: int, ranks: int) -> Ints:
    copies = np.ones(loads.shape, np.int64)
    layer = np.arange(len(loads))
    for _ in range(slots - loads.shape[1]):
        copies[layer, np.where(copies < ranks, loads / copies, -1.0).argmax(1)] += 1
    return copies


def _pack(loads: Floats, copies: Ints, ranks: int, drift: float) -> Ints:
    """Slots [layers, slots]. With `drift` pooled, without it greedy."""
    room = int(copies[0].sum()) // ranks
    order = np.lexsort((-loads / copies, (copies == 1) & (drift > 0)), axis=1)
    items = np.stack([np.repeat(own, count[own]) for own, count in zip(order, copies, strict=True)])
    packing = _Packing(loads, copies, ranks, drift)
    for nth, expert in enumerate(items.T):
        if drift and nth % _SETTLE_EVERY == 0:
            packing.settle()
        packing.add(expert, first=expert != items[:, nth - 1])
    slots = packing.slots
    # Rarely the last copies find only ranks that have one. Dealt out in turn, no rank gets two.
    stuck = packing.stuck
    slots[stuck] = items[stuck].reshape(-1, room, ranks).swapaxes(1, 2).reshape(-1, room * ranks)
    return slots


class _Packing:
    """All layers at once, slot after slot. Arrays [layers, ranks] unless said otherwise; loads in mean rank loads."""

    def __init__(self, loads: Floats, copies: Ints, ranks: int, drift: float) -> None:
        layers, experts = loads.shape
        self.room = int(copies[0].sum()) // ranks
        self.slots = np.full((layers, ranks * self.room), experts, np.int64)  # `experts`: nobody yet
        self.stuck = np.zeros(layers, np.bool_)
        self._loads, self._copies, self._layer = loads, copies, np.arange(layers)
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

    def add(self, expert: Ints, *, first: NDArray[np.bool_]) -> None:
        """One copy of `expert` [layers]; `first` [layers] where it has none yet."""
        layer = self._layer
        load, risk = self._each[layer, expert], self._risk[layer, expert]
        pooled = self._pooled[layer, expert]
        cost = np.where(pooled[:, None], self._cost_shared(first), self._cost_alone((load + risk)[:, None]))
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

    def _cost_shared(self, first: NDArray[np.bool_]) -> Floats:
        return self._shared + np.where((self._reach > 0) == first[:, None], 0.0, _FAR)

    def _cost_alone(self, load: Floats) -> Floats:
        alone = self._fixed + load
        relieved = self._total + load / np.maximum(self._reach, 1) + _POOL_RISK * self._shared_risk
        return np.where(self._reach > 0, np.maximum(relieved, alone), alone) + 1e-6 * self._fixed


def _align(plan: Ints, old: Ints, ranks: int, experts: int) -> Ints:
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


def _drifted(loads: Floats, drift: Drift) -> Floats:
    """[layers, cases, experts]: lognormal, each with its mirror, each with the sum of `loads`."""
    half = np.random.default_rng(drift.seed).standard_normal((CASES // 2, loads.shape[1]))
    cases = loads[:, None] * np.exp(drift.deviation * np.concatenate([half, -half]))
    sums = cases.sum(2, keepdims=True)
    scaled: Floats = cases * (loads.sum(1)[:, None, None] / np.where(sums > 0, sums, 1.0))
    return scaled


def _largest(cases: Floats, slots: Ints, ranks: int) -> Floats:
    copies = np.stack([np.bincount(row, minlength=cases.shape[2]) for row in slots])
    largest: Floats = settle(cases, slots, copies, ranks, 4)[1].max(2).mean(1)
    return largest
