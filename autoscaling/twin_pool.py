"""GPUs and replicas of the twin: which node holds what, and one tier's replicas as the columns that routing reads."""

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import numpy as np

from autoscaling.twin_replica import Hold, Replica
from cluster.cost import Service
from cluster.loads import Loads
from cluster.prefix import PrefixIndex


class Nodes:
    """Nodes of equal size. A replica goes to the node with the fewest free GPUs that has room for all its ranks.

    One with more ranks than a node has takes whole nodes. Without a budget new nodes appear as they are needed.
    """

    def __init__(self, gpus_per_node: int, budget_gpus: int | None) -> None:
        self.size = gpus_per_node
        self.budget_gpus = budget_gpus
        self.used_gpus = 0
        self._free: dict[int, int] = {}
        if budget_gpus is not None:
            whole, rest = divmod(budget_gpus, gpus_per_node)
            self._free = {node: gpus_per_node for node in range(whole)} | ({whole: rest} if rest else {})
        self._next = len(self._free)
        self._largest = max(self._free.values(), default=0)

    @property
    def gpus(self) -> int:
        """That exist now."""
        return self.used_gpus + sum(self._free.values())

    def take(self, ranks: int) -> Hold | None:
        """None where no room is; free GPUs on several nodes do not make room for one group."""
        while True:
            hold = self._fit(ranks)
            if hold is not None:
                for node, gpus in hold:
                    self._free[node] -= gpus
                self.used_gpus += ranks
                return hold
            if self.budget_gpus is not None:
                return None
            self._free[self._next] = self.size
            self._next += 1

    def _fit(self, ranks: int) -> Hold | None:
        if ranks <= self.size:
            room = [(free, node) for node, free in self._free.items() if free >= ranks]
            return ((min(room)[1], ranks),) if room else None
        whole, rest = divmod(ranks, self.size)
        empty = [node for node, free in self._free.items() if free == self.size]
        if len(empty) < whole + bool(rest):
            return None
        full = tuple((node, self.size) for node in empty[:whole])
        return (*full, (empty[whole], rest)) if rest else full

    def give(self, hold: Hold) -> None:
        """GPUs of a node that has failed do not come back."""
        for node, gpus in hold:
            self.used_gpus -= gpus
            if node in self._free:
                self._free[node] += gpus

    def fail(self, node: int) -> None:
        self._free.pop(node, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A replica on its way: the GPUs that it holds, since when, and when it will be ready."""

    hold: Hold
    order_s: float
    ready_s: float


class Pool:
    """The replicas of one tier. A slot is an index into the columns; it is used again when its replica has left."""

    def __init__(self, name: str, service: Service, block_tokens: int | None) -> None:
        self.name = name
        self.service = service
        self.replicas: dict[int, Replica] = {}
        self.starting: dict[int, Start] = {}  # by number, the oldest order first
        self.pending = 0  # ordered, but no node has room
        self.prefix = PrefixIndex(block_tokens) if block_tokens else None
        self._free_slots: list[int] = []
        self._columns = self._empty(8)
        self.loads = self._sliced(0)

    def _empty(self, size: int) -> Loads:
        return Loads(
            sequences=np.zeros(size),
            kv_tokens=np.zeros(size),
            kv_capacity_tokens=np.full(size, float(self.service.kv_tokens)),
            prefill_tokens=np.zeros(size),
            prefill_done_s=np.zeros(size),
            correction=np.ones(size),
            heard_s=np.full(size, np.inf),  # a replica of the twin is always heard
            ongoing=np.zeros(size),
            open=np.zeros(size, dtype=bool),
        )

    def _sliced(self, used: int) -> Loads:
        return Loads(**{name: getattr(self._columns, name)[:used] for name in Loads.__slots__})

    @property
    def used_slots(self) -> int:
        return len(self.loads.open)

    def add(self, replica: Replica) -> None:
        self.replicas[replica.slot] = replica
        self.loads.open[replica.slot] = True
        self.show(replica)

    def new_slot(self) -> int:
        if self._free_slots:
            return heappop(self._free_slots)
        used = self.used_slots
        if used == len(self._columns.open):
            larger = self._empty(2 * used)
            for name in Loads.__slots__:
                getattr(larger, name)[:used] = getattr(self._columns, name)
            self._columns = larger
        self.loads = self._sliced(used + 1)
        return used

    def show(self, replica: Replica) -> None:
        """Write the replica's state into its columns."""
        loads, slot = self.loads, replica.slot
        loads.sequences[slot] = loads.ongoing[slot] = replica.sequences
        loads.kv_tokens[slot] = replica.kv_mean_tokens
        loads.prefill_tokens[slot] = replica.waiting_tokens
        loads.prefill_done_s[slot] = replica.prefill_done_s
        if replica.imbalance != 1.0:
            loads.correction[slot] = replica.correction

    def close(self, replica: Replica) -> None:
        replica.draining = True
        self.loads.open[replica.slot] = False

    def remove(self, replica: Replica) -> None:
        self.loads.open[replica.slot] = False
        del self.replicas[replica.slot]
        heappush(self._free_slots, replica.slot)
        if self.prefix is not None:
            self.prefix.drop(replica.slot)

    def ready(self) -> int:
        return sum(1 for replica in self.replicas.values() if not replica.draining)

    def emptiest(self) -> Iterator[Replica]:
        """Those that do not drain yet, the fewest sequences first."""
        heap = [(replica.sequences, slot) for slot, replica in self.replicas.items() if not replica.draining]
        heapify(heap)
        while heap:
            yield self.replicas[heappop(heap)[1]]
