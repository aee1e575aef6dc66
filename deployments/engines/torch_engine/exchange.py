"""How rows reach their experts and come back: one rank computes all itself, several exchange rows twice per layer.

Where an expert has copies on several ranks, each batch is split over them: every rank gathers the same counts, computes
the same split from them, and so knows what it sends and what it gets.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from cluster.dispatch import split
from deployments.engines.torch_engine.kv import on
from deployments.engines.torch_engine.moe import Carry, Experts

Ints = NDArray[np.int64]


@dataclass(slots=True)
class Watch:
    """How long this rank's experts computed in each layer of a watched step. A GPU is waited for, so watch few."""

    watching: bool = False
    _layers_s: list[float] = field(default_factory=list)

    def run(self, experts: Experts, rows: Tensor, counts: Tensor) -> Tensor:
        if not self.watching:
            return experts(rows, counts)
        began_s = _now_s(rows)
        out = experts(rows, counts)
        self._layers_s.append(_now_s(rows) - began_s)
        return out

    def taken(self) -> list[float]:
        """Of each layer, once. Empty where no step was watched since it was asked last."""
        layers_s, self._layers_s = self._layers_s, []
        return layers_s


def _now_s(rows: Tensor) -> float:
    if rows.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


class Stay:
    """The exchange of a single rank, which holds every expert once."""

    def __init__(self, slots: tuple[int, ...]) -> None:
        self.place(slots)

    def place(self, slots: tuple[int, ...]) -> None:
        self._slots = len(slots)

    def __call__(self, slots: Tensor) -> tuple[Tensor, Carry]:
        return slots, partial(self._carry, _counts(slots, self._slots))

    def _carry(self, counts: Tensor, experts: Experts, rows: Tensor, meanwhile: Callable[[], None]) -> Tensor:
        meanwhile()
        return experts(rows, counts)


class AllToAll:
    """The exchange of one layer between `ranks`. `slots[slot]` is the expert there."""

    def __init__(self, rank: int, ranks: int, slots: tuple[int, ...], watch: Watch) -> None:
        self._rank, self._ranks, self._watch = rank, ranks, watch
        self.place(slots)

    def place(self, slots: tuple[int, ...]) -> None:
        """Experts lie there from now on."""
        self._slots = np.array(slots, np.int64)
        self._room = len(slots) // self._ranks
        first = first_slots(slots)
        self._first = first if len(first) < len(slots) else None  # None: no expert has copies
        self._by_expert = np.lexsort((np.arange(len(slots)), first[self._slots]))

    def __call__(self, slots: Tensor) -> tuple[Tensor, Carry]:
        counts = _counts(slots, len(self._slots))
        gathered = counts.new_empty(self._ranks * len(counts))
        dist.all_gather_single(gathered, counts)
        sent = gathered.view(self._ranks, -1).cpu().numpy()
        if self._first is not None:
            sent = split(sent[:, self._first], self._slots, self._ranks)
            slots = self._spread(slots, sent[self._rank])
        return slots, partial(self._carry, sent)

    def _spread(self, first: Tensor, sent: Ints) -> Tensor:
        """The slot of each row: an expert's rows go to its copies in turn, as many as were allotted."""
        chosen = on(first.device, self._by_expert.repeat(sent[self._by_expert]))
        return torch.empty_like(first).index_copy_(0, first.argsort(stable=True), chosen)

    def _carry(self, sent: Ints, experts: Experts, rows: Tensor, meanwhile: Callable[[], None]) -> Tensor:
        incoming = sent.reshape(self._ranks, self._ranks, self._room)[:, self._rank]
        going, coming = _per_rank(sent[self._rank].reshape(self._ranks, self._room)), _per_rank(incoming)
        arrived = rows.new_empty(sum(coming), rows.shape[1])
        travel = dist.all_to_all_single(arrived, rows, coming, going, async_op=True)
        # They lie by (source, slot); the experts want them by slot.
        slot = np.tile(np.arange(self._room), self._ranks).repeat(incoming.ravel())
        order, counts = on(rows.device, slot.argsort(kind="stable")), on(rows.device, incoming.sum(0))
        meanwhile()
        travel.wait()
        out = self._watch.run(experts, arrived.index_select(0, order), counts)
        returned = torch.empty_like(rows)
        dist.all_to_all_single(returned, torch.empty_like(out).index_copy_(0, order, out), going, coming)
        return returned


def first_slots(slots: tuple[int, ...]) -> Ints:
    """Of each expert, the first slot that holds it."""
    return np.unique(np.array(slots, np.int64), return_index=True)[1].astype(np.int64)


def _counts(slots: Tensor, number: int) -> Tensor:
    """Rows of each slot. `bincount` is faster, but would make a GPU wait."""
    if slots.device.type == "cpu":
        return torch.bincount(slots, minlength=number)
    return slots.new_zeros(number).scatter_add_(0, slots, torch.ones_like(slots))


def _per_rank(rows: NDArray[Any]) -> list[int]:
    return [int(number) for number in rows.sum(1)]
