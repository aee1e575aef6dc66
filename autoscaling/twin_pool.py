"""The replicas of one tier in the twin, as the columns that routing reads."""

from heapq import heappop, heappush

import numpy as np

from autoscaling.twin_replica import Replica
from cluster.cost import Service
from cluster.loads import Loads
from cluster.prefix import PrefixIndex

FIRST_SLOTS = 8


class Pool:
    """A slot is an index into the columns; it is used again when its replica has left."""

    def __init__(self, service: Service, block_tokens: int | None) -> None:
        self.service = service
        self.replicas: dict[int, Replica] = {}  # by slot
        self.ready = 0  # of them, without those that drain
        self.prefix = PrefixIndex(block_tokens) if block_tokens is not None else None
        self._free_slots: list[int] = []
        self._columns = self._empty(FIRST_SLOTS)
        self.loads = self._sliced(0)

    def _empty(self, size: int) -> Loads:
        return Loads(
            sequences=np.zeros(size),
            kv_tokens=np.zeros(size),
            kv_capacity_tokens=np.full(size, float(self.service.kv_tokens)),
            prefill_tokens=np.zeros(size),
            prefill_done_s=np.zeros(size),
            correction=np.ones(size),
            heard_s=np.full(size, np.inf),  # at any time it was heard just now
            ongoing=np.zeros(size),
            open=np.zeros(size, dtype=bool),
        )

    def _sliced(self, used: int) -> Loads:
        return Loads(**{name: getattr(self._columns, name)[:used] for name in Loads.__slots__})

    @property
    def slots(self) -> int:
        return len(self.loads.open)

    def new_slot(self) -> int:
        if self._free_slots:
            return heappop(self._free_slots)
        used = self.slots
        if used == len(self._columns.open):
            larger = self._empty(2 * used)
            for name in Loads.__slots__:
                getattr(larger, name)[:used] = getattr(self._columns, name)
            self._columns = larger
        self.loads = self._sliced(used + 1)
        return used

    def add(self, replica: Replica) -> None:
        self.replicas[replica.slot] = replica
        self.loads.open[replica.slot] = True
        self.ready += 1
        self.show(replica)

    def show(self, replica: Replica) -> None:
        """Write the replica's state, which is that of its last event, into its columns."""
        loads, slot = self.loads, replica.slot
        loads.sequences[slot] = loads.ongoing[slot] = replica.sequences
        # An engine in which a prompt waits for cache is full, however little of it those that run have filled so far.
        held = replica.kv_tokens + replica.waiting_prompt_tokens
        loads.kv_tokens[slot] = max(held, self.service.kv_tokens) if replica.blocked else held
        loads.prefill_tokens[slot] = replica.waiting_tokens
        loads.prefill_done_s[slot] = replica.prefill_done_s
        if replica.imbalance != 1.0:
            loads.correction[slot] = replica.correction

    def close(self, replica: Replica) -> None:
        """It drains: nothing new goes there."""
        replica.draining = True
        self.loads.open[replica.slot] = False
        self.ready -= 1

    def remove(self, replica: Replica) -> None:
        """It is gone, and with it what its columns said."""
        if not replica.draining:
            self.close(replica)
        loads, slot = self.loads, replica.slot
        loads.sequences[slot] = loads.ongoing[slot] = loads.kv_tokens[slot] = loads.prefill_tokens[slot] = 0.0
        del self.replicas[slot]
        heappush(self._free_slots, slot)
        if self.prefix is not None:
            self.prefix.drop(slot)
