"""Which expert lies in which slot of which rank of an expert group."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.errors import ConfigurationError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def linear(experts: int, ranks: int) -> tuple[int, ...]:
    """The rank of each expert: in order, in runs whose lengths differ by one at most."""
    return tuple(expert * ranks // experts for expert in range(experts))


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
    room = _room(experts, experts + redundant, ranks)
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


def place(load: Floats | Ints, *, ranks: int, slots: int, nodes: int = 1, old: Placement | None = None) -> Placement:
    """Slots for loads [layers, experts], so that the largest rank load is small. No copy leaves the node it is on.

    Raises ConfigurationError where the slots do not fill ranks and nodes, or a load is negative or not finite.
    """
    loads = np.asarray(load, np.float64)
    experts = loads.shape[1]
    _room(experts, slots, ranks)
    if not (np.isfinite(loads).all() and (loads >= 0).all()):
        raise ConfigurationError("expert loads: negative or not finite; counts of tokens; count them again")
    copies = _copies(loads, slots, ranks)
    packed = np.stack([_pack(row, count, ranks) for row, count in zip(loads, copies, strict=True)])
    return Placement(ranks=ranks, slots=tuple(tuple(row) for row in packed.tolist()))


def rebalance_experts(
    weight: Any,
    num_replicas: int,
    num_groups: int,
    num_nodes: int,
    num_ranks: int,
    old_global_expert_indices: Any = None,
) -> Ints:
    """vLLM's EPLB policy interface over `place`: weight [layers, experts] -> expert of each slot [layers, replicas]."""
    old = None
    if old_global_expert_indices is not None:
        old = Placement(ranks=num_ranks, slots=tuple(map(tuple, np.asarray(old_global_expert_indices).tolist())))
    nodes = num_nodes if num_groups % num_nodes == 0 else 1
    placed = place(np.asarray(weight, np.float64), ranks=num_ranks, slots=num_replicas, nodes=nodes, old=old)
    return np.array(placed.slots, np.int64)


def _room(experts: int, slots: int, ranks: int) -> int:
    if ranks < 1 or slots % ranks:
        raise ConfigurationError(
            f"expert slots: {slots} over {ranks} ranks; each rank has equally many; change `redundant` or the ranks"
        )
    if not experts <= slots <= experts * ranks:
        raise ConfigurationError(
            f"expert slots: {slots} for {experts} experts on {ranks} ranks; {experts} to {experts * ranks}, one per "
            "expert and at most one copy of it per rank; change `redundant`"
        )
    return slots // ranks


def _copies(loads: Floats, slots: int, ranks: int) -> Ints:
    layers, experts = loads.shape
    copies = np.ones((layers, experts), np.int64)
    every = np.arange(layers)
    for _ in range(slots - experts):
        each = np.where(copies < ranks, loads / copies, -1.0)
        copies[every, each.argmax(1)] += 1
    return copies


def _pack(load: Floats, copies: Ints, ranks: int) -> Ints:
    room = int(copies.sum()) // ranks
    each = load / copies
    order = np.lexsort((-each, copies == 1))
    total = np.zeros(ranks)
    held: list[list[int]] = [[] for _ in range(ranks)]
    for expert in order.tolist():
        free = [rank for rank in range(ranks) if len(held[rank]) < room]
        if len(free) < copies[expert]:
            dealt = np.repeat(order, copies[order])
            return dealt.reshape(room, ranks).T.reshape(-1)
        for rank in sorted(free, key=lambda rank: (total[rank], rank))[: copies[expert]]:
            held[rank].append(expert)
            total[rank] += each[expert]
    return np.array(held, np.int64).reshape(-1)
