"""Experts move between ranks while streams run: one layer at a time, between two steps, on all ranks alike.

A rank sends from the weights that it computes with, and receives beside them; slots change only when all has arrived.
So no step sees half a layer, and what lies beside is at most one layer's changed slots.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from deployments.engines.torch_engine.moe import Experts

Slots = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """The expert in each slot of a layer from now on. Layers are those that have experts."""

    layer: int
    slots: Slots


def settled(old: Slots, new: Slots, ranks: int) -> Slots:
    """`new` with the slots of each rank in another order: what stays on a rank stays in its slot."""
    room = len(old) // ranks
    runs = [slice(rank * room, (rank + 1) * room) for rank in range(ranks)]
    order: list[int] = []
    for before, after in ((old[run], new[run]) for run in runs):
        coming = iter(expert for expert in after if expert not in before)
        order += [expert if expert in after else next(coming) for expert in before]
    return tuple(order)


def transfers(old: Slots, new: Slots, ranks: int) -> list[tuple[int, int]]:
    """(from slot, to slot) of every copy that is new on its rank; copies of one expert take turns as sources."""
    holders = {expert: [slot for slot, held in enumerate(old) if held == expert] for expert in set(new)}
    changed = [slot for slot, (before, after) in enumerate(zip(old, new, strict=True)) if before != after]
    return [(holders[new[slot]][slot % len(holders[new[slot]])], slot) for slot in changed]


def transfer(experts: Experts, pairs: list[tuple[int, int]], rank: int) -> None:
    """This rank's part in it. Raises RuntimeError where another rank is lost; slots may then be half changed.

    All ranks go through the same pairs in the same order: nccl, which ignores tags, matches by order alone.
    """
    room = len(experts.gate_up)
    operations: list[dist.P2POp] = []
    arriving: list[tuple[torch.Tensor, torch.Tensor]] = []
    for source, target in pairs:
        for tag, weights in enumerate((experts.gate_up, experts.down), 2 * target + 1):
            if source // room == rank:
                operations.append(dist.P2POp(dist.isend, weights[source % room], target // room, tag=tag))
            elif target // room == rank:
                arrived = torch.empty_like(weights[target % room])
                arriving.append((weights[target % room], arrived))
                operations.append(dist.P2POp(dist.irecv, arrived, source // room, tag=tag))
    for work in dist.batch_isend_irecv(operations) if operations else ():
        work.wait()
    for place, arrived in arriving:
        place.copy_(arrived)
