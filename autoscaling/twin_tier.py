"""One tier in the twin: orders, starts, drains and losses of its replicas, and the counters that policies see."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from autoscaling.signals import TierSeen
from autoscaling.twin_held import HeldQueue
from autoscaling.twin_pool import Nodes, Pool, Start
from autoscaling.twin_replica import Hold, Replica, Request

Schedule = Callable[[float, Callable[[float, int], None], int], None]  # when, what, its argument
OUTPUT_SHARE = 0.01  # of a finished answer in the running mean of lengths
PRIOR_OUTPUT_TOKENS = 200.0


@dataclass(slots=True)
class Counters:
    """As in TierSeen; they only grow."""

    arrived_requests: int = 0
    arrived_prompt_tokens: int = 0
    finished_requests: int = 0
    finished_output_tokens: int = 0
    kept: int = 0
    missed: int = 0
    ttft_s_sum: float = 0.0
    tpot_s_sum: float = 0.0
    duration_s_sum: float = 0.0


@dataclass(slots=True)
class TwinTier:
    """`freed`: GPUs came back; `opened`: a replica is ready; `released`: a hold ended, for the bill."""

    pool: Pool
    nodes: Nodes
    imbalance: float
    schedule: Schedule
    cold_start_s: Callable[[], float]
    expected_cold_start_s: float
    freed: Callable[[float], None]
    opened: Callable[[float, "TwinTier"], None]
    released: Callable[[Hold, float, float], None]
    held: HeldQueue = field(default_factory=HeldQueue)
    counters: Counters = field(default_factory=Counters)
    output_tokens: float = PRIOR_OUTPUT_TOKENS
    packing: bool = False
    starts: int = 0
    starts_s: float = 0.0
    _orders: int = 0

    def steer(self, now_s: float, target: int) -> None:
        """Order, cancel or drain replicas until `target` are there or on their way."""
        pool = self.pool
        surplus = self.size - target
        self.packing = target < pool.ready()
        if surplus <= 0:
            pool.pending += -surplus
            self.retry(now_s)
            return
        cancelled = min(surplus, pool.pending)
        pool.pending -= cancelled
        surplus -= cancelled
        for number in list(pool.starting)[::-1][:surplus]:
            self._give(pool.starting.pop(number), now_s)
            surplus -= 1
        for replica, _ in zip(pool.emptiest(), range(surplus), strict=False):
            self.drain(replica, now_s)
        self.freed(now_s)

    def retry(self, now_s: float) -> None:
        """Pending orders take the GPUs that are free now."""
        pool = self.pool
        while pool.pending:
            hold = self.nodes.take(pool.service.ranks)
            if hold is None:
                return
            pool.pending -= 1
            self.begin(now_s, hold, self.cold_start_s())

    def begin(self, now_s: float, hold: Hold, cold_s: float) -> None:
        self._orders += 1
        self.pool.starting[self._orders] = Start(hold=hold, order_s=now_s, ready_s=now_s + cold_s)
        self.schedule(now_s + cold_s, self._ready, self._orders)

    def _ready(self, now_s: float, number: int) -> None:
        start = self.pool.starting.pop(number, None)
        if start is None:
            return  # cancelled
        self.starts += 1
        self.starts_s += now_s - start.order_s
        self.open(now_s, start)

    def open(self, now_s: float, start: Start) -> None:
        pool = self.pool
        slot = pool.new_slot()
        pool.add(
            Replica(
                pool.service, slot, now_s, order_s=start.order_s, hold=start.hold, imbalance=self.imbalance
            )
        )  # fmt: skip
        self.opened(now_s, self)

    def drain(self, replica: Replica, now_s: float) -> None:
        self.pool.close(replica)
        if replica.sequences == 0:
            self.leave(replica, now_s)

    def leave(self, replica: Replica, now_s: float) -> None:
        """It is empty, or dead."""
        self.pool.remove(replica)
        self.nodes.give(replica.hold)
        self.released(replica.hold, replica.order_s, now_s)

    def _give(self, start: Start, now_s: float) -> None:
        self.nodes.give(start.hold)
        self.released(start.hold, start.order_s, now_s)

    def lose(self, now_s: float, node: int | None) -> list[Request]:
        """The node's replicas are gone, or without a node the fullest one; their requests are returned."""
        pool = self.pool
        if node is None:
            dead = sorted(pool.replicas.values(), key=lambda replica: -replica.sequences)[:1]
        else:
            dead = [replica for replica in pool.replicas.values() if any(at == node for at, _ in replica.hold)]
            for number in [n for n, start in pool.starting.items() if any(at == node for at, _ in start.hold)]:
                self._give(pool.starting.pop(number), now_s)
        lost: list[Request] = []
        for replica in dead:
            lost += replica.lost()
            replica.version += 1
            self.leave(replica, now_s)
        return lost

    def next_ready_s(self, now_s: float) -> float:
        """Seconds until the next replica is expected, as the live cluster would guess it from past starts."""
        expected_s = self.starts_s / self.starts if self.starts else self.expected_cold_start_s
        orders = [start.order_s for start in self.pool.starting.values()]
        if orders:
            return max(0.0, min(orders) + expected_s - now_s)
        return expected_s if not self.pool.replicas else math.inf

    @property
    def size(self) -> int:
        """Replicas there or on their way, without those that drain."""
        return self.pool.ready() + len(self.pool.starting) + self.pool.pending

    def holds(self) -> list[tuple[Hold, float]]:
        """All GPUs held, and since when."""
        return [(one.hold, one.order_s) for one in self.pool.replicas.values()] + [
            (one.hold, one.order_s) for one in self.pool.starting.values()
        ]

    def finished(self, output_tokens: int) -> None:
        self.counters.finished_requests += 1
        self.counters.finished_output_tokens += output_tokens
        self.output_tokens += max(OUTPUT_SHARE, 1 / self.counters.finished_requests) * (
            output_tokens - self.output_tokens
        )

    def seen(self) -> TierSeen:
        pool, counters = self.pool, self.counters
        ready = pool.ready()
        loads = pool.loads
        return TierSeen(
            ready=ready,
            starting=len(pool.starting) + pool.pending,
            draining=len(pool.replicas) - ready,
            ongoing_requests=int(sum(replica.sequences for replica in pool.replicas.values())),
            held_requests=len(self.held),
            waiting_prefill_tokens=int(loads.prefill_tokens.sum()) + self.held.prefill_tokens,
            cold_start_s=self.starts_s / self.starts if self.starts else None,
            **{name: getattr(counters, name) for name in Counters.__slots__},
        )
