"""Which expert lies in which slot of which rank of an expert group.

Plans are those of `copies`, tried on drawn loads: the one kept is that whose largest rank load is least in the mean.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.copies import align, pack, replicate
from cluster.dispatch import settle
from cluster.errors import ConfigurationError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CASES = 64
TOLERANCE = 0.01  # of max/mean, that moving every copy must win; moving some, in proportion
_SMALL_POOL = 3  # experts


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

    Each layer takes the best of `old`, a greedy plan and pooled ones, judged on drifted loads by their max/mean after
    `dispatch.split`, to which a plan that moves copies adds their share of all slots times `TOLERANCE`. Pooled plans
    keep experts where they are in `old` if that costs little. All copies of an expert lie on one node. Raises
    ConfigurationError where experts do not fill the slots, or slots the ranks and nodes, or a load is negative or not
    finite.
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
    before = home = None
    if old is not None and old.ranks == ranks and np.shape(old.slots) == (layers, slots):
        before = np.array(old.slots, np.int64)
        held = _held(before, ranks, experts)
        home = np.take_along_axis(held, members[..., None], 1) if nodes == 1 else None
    packed = _plans(local, slots // nodes, ranks // nodes, drift.deviation, home)
    plans = [np.take_along_axis(members, plan, 1).reshape(layers, slots) for plan in packed]
    if before is not None:
        plans = [before, *(plan if nodes > 1 else align(plan, before, ranks, experts) for plan in plans)]
    cases = _drifted(loads, drift)
    found = np.stack([_largest(cases, plan, ranks) for plan in plans])
    if before is not None:
        found += [TOLERANCE * (1 - (held & _held(plan, ranks, experts)).sum((1, 2)) / slots) for plan in plans]
    chosen = np.stack(plans)[found.argmin(0), np.arange(layers)]
    return Placement(ranks=ranks, slots=tuple(map(tuple, chosen.tolist())))


def _plans(loads: Floats, slots: int, ranks: int, drift: float, home: NDArray[np.bool_] | None) -> list[Ints]:
    """EPLB's; one whose experts with copies are all in one pool; one of small pools, with copies against drift."""
    copies, experts = replicate(loads, slots, ranks), loads.shape[1]
    plans = [pack(loads, copies, ranks)]
    if drift:
        safer = replicate(loads, slots, ranks, drift)
        plans.append(pack(loads, copies, ranks, drift=drift, pool=experts, home=home))
        plans.append(pack(loads, safer, ranks, drift=drift, pool=_SMALL_POOL, home=home))
    return plans


def _held(slots: Ints, ranks: int, experts: int) -> NDArray[np.bool_]:
    """[layers, experts, ranks]: which ranks have which experts."""
    held = np.zeros((len(slots), experts, ranks), np.bool_)
    held[np.arange(len(slots))[:, None], slots, np.arange(slots.shape[1]) // (slots.shape[1] // ranks)] = True
    return held


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
    home = pack(loads.reshape(layers, groups, size).sum(2), np.ones((layers, groups), np.int64), nodes)
    members = (home[..., None] * size + np.arange(size)).reshape(layers, experts)
    shape = (layers * nodes, experts // nodes)
    return np.take_along_axis(loads, members, 1).reshape(shape), members.reshape(shape)


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
