"""One tier in the twin: its replicas as they are opened, drained and lost, and the counters that policies see."""

import math
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field

from autoscaling.signals import TierSeen
from autoscaling.twin_nodes import Lease, Nodes, Orders, Schedule
from autoscaling.twin_pool import Pool
from autoscaling.twin_replica import Replica, Request
from autoscaling.twin_scenario import Route
from cluster.held import HeldQueue
from cluster.loads import Answers


@dataclass(slots=True)
class Counters:
    """As in TierSeen; they only grow."""

    arrived_requests: int = 0
    arrived_prompt_tokens: int = 0
    finished_requests: int = 0
    finished_output_tokens: int = 0
    finished_context_token_steps: int = 0
    kept: int = 0
    missed: int = 0
    ttft_s_sum: float = 0.0
    tpot_s_sum: float = 0.0
    duration_s_sum: float = 0.0


@dataclass(slots=True, eq=False)
class TwinTier:
    """`opened` is told every replica that is ready. `cold_start_s`: expected, until one was measured."""

    name: str
    pool: Pool
    nodes: Nodes
    imbalance: float
    cold_start_s: float
    opened: Callable[[float, "TwinTier", Replica], None]
    schedule: InitVar[Schedule]
    draw_s: InitVar[Callable[[], float]]
    orders: Orders = field(init=False)
    leases: dict[int, Lease] = field(default_factory=dict)  # by slot
    held: HeldQueue[tuple[Request, Route]] = field(default_factory=HeldQueue)
    served_gpu_s: dict[str, float] = field(default_factory=dict)  # by tenant, shares applied
    counters: Counters = field(default_factory=Counters)
    lengths: Answers = field(default_factory=Answers)
    packing: bool = False
    awake_s: float = 0.0  # when it had a ready replica again after it had none

    def __post_init__(self, schedule: Schedule, draw_s: Callable[[], float]) -> None:
        ranks = self.pool.service.ranks
        self.orders = Orders(self.name, ranks, self.nodes, schedule, draw_s, self.open)

    @property
    def size(self) -> int:
        """Replicas there or on their way, without those that drain."""
        return self.pool.ready + len(self.orders)

    def steer(self, now_s: float, target: int) -> None:
        """Order, cancel or drain replicas until `target` are there or on their way."""
        surplus = self.size - target
        self.packing = target < self.pool.ready
        if surplus <= 0:
            self.orders.order(now_s, -surplus)
            return
        surplus = self.orders.cancel(now_s, surplus)
        for _ in range(surplus):
            self._drain(self._dispensable(), now_s)

    def _dispensable(self) -> Replica:
        """The emptiest, but while somebody waits for room rather where most of a node is to spare."""
        ready = [replica for replica in self.pool.replicas.values() if not replica.draining]
        beside = {replica.slot: self.nodes.room_beside(self.leases[replica.slot]) for replica in ready}
        return min(ready, key=lambda replica: (-beside[replica.slot], replica.sequences, replica.slot))

    def _drain(self, replica: Replica, now_s: float) -> None:
        self.pool.close(replica)
        self.nodes.leave(self.leases[replica.slot])
        if replica.sequences == 0:
            self.leave(replica, now_s)

    def vacate(self, now_s: float, lease: Lease) -> None:
        """One starts elsewhere in its place."""
        if not self.orders.restart(now_s, lease):
            slot = next(slot for slot, held in self.leases.items() if held is lease)
            self.orders.order(now_s, 1)
            self._drain(self.pool.replicas[slot], now_s)

    def open(self, now_s: float, lease: Lease) -> None:
        if not self.pool.ready:
            self.awake_s = now_s
        replica = Replica(self.pool.service, self.pool.new_slot(), now_s, self.imbalance)
        self.leases[replica.slot] = lease
        self.pool.add(replica)
        self.opened(now_s, self, replica)

    def leave(self, replica: Replica, now_s: float) -> None:
        """It is empty, or dead."""
        self.pool.remove(replica)
        self.nodes.give(self.leases.pop(replica.slot), now_s)

    def lose(self, now_s: float, node: int | None) -> list[Request]:
        """The node's replicas are gone, or without a node the fullest one; their requests are returned."""
        replicas = list(self.pool.replicas.values())
        if node is None:
            dead = sorted(replicas, key=lambda replica: -replica.sequences)[:1]
        else:
            self.orders.lose(now_s, node)
            dead = [replica for replica in replicas if self.leases[replica.slot].on(node)]
        for replica in dead:
            self.leave(replica, now_s)
        return [request for replica in dead for request in replica.lost(now_s)]

    def next_ready_s(self, now_s: float) -> float:
        """Seconds until the next replica is expected, as the live cluster would guess it from past starts."""
        expected_s = self.orders.measured_s or self.cold_start_s
        starting = self.orders.starting.values()
        if starting:
            return max(0.0, min(lease.since_s for lease in starting) + expected_s - now_s)
        return math.inf if self.pool.replicas else expected_s

    def finished(self, prompt_tokens: int, output_tokens: int) -> None:
        self.counters.finished_requests += 1
        self.counters.finished_output_tokens += output_tokens
        self.counters.finished_context_token_steps += output_tokens * (prompt_tokens + output_tokens // 2)
        self.lengths.learn(output_tokens)

    def seen(self) -> TierSeen:
        pool, counters, loads = self.pool, self.counters, self.pool.loads
        return TierSeen(
            ready=pool.ready,
            starting=len(self.orders),
            draining=len(pool.replicas) - pool.ready,
            ongoing_requests=int(loads.sequences.sum()),
            held_requests=len(self.held),
            waiting_prefill_tokens=int(loads.prefill_tokens.sum()) + self.held.prefill_tokens,
            cold_start_s=self.orders.measured_s,
            **{name: getattr(counters, name) for name in Counters.__slots__},
        )
