"""Nodes of the twin: who holds which GPUs, the bill for it, and the orders that wait for room.

A lease is taken when a replica is ordered and a node has room, and given back when the replica has drained, died or was
cancelled; it is billed once, from one to the other, within the horizon. What comes back goes at once to the orders that
wait, in the order in which they were made known.

Small replicas scattered over the nodes can keep a group from starting although enough GPUs are free. Then the node with
the most to spare is kept for the group, and the few that are in its way there start anew elsewhere.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

Schedule = Callable[[float, Callable[[float, int], None], int], None]  # when, what, its argument


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lease:
    """`owner`: whose bill. `places`: (node, GPUs) pairs."""

    owner: str
    places: tuple[tuple[int, int], ...]
    since_s: float

    @property
    def gpus(self) -> int:
        return sum(gpus for _, gpus in self.places)

    def on(self, node: int) -> bool:
        return any(place == node for place, _ in self.places)


class Nodes:
    """Nodes of equal size. A replica goes to the node with the fewest free GPUs that has room for all its ranks.

    One with more ranks than a node has takes whole empty nodes, and the rest of them on one more. Without a budget new
    nodes appear as they are needed.
    """

    def __init__(self, gpus_per_node: int, budget_gpus: int | None, horizon_s: float) -> None:
        self.size = gpus_per_node
        self.budget_gpus = budget_gpus
        self.horizon_s = horizon_s
        self.used_gpus = 0
        self.gpu_s: dict[str, float] = {}  # by owner
        self.orders: list[Orders] = []
        self._leases: dict[Lease, None] = {}
        self._leaving: dict[Lease, None] = {}
        self._free: dict[int, int] = {}
        if budget_gpus is not None:
            whole, rest = divmod(budget_gpus, gpus_per_node)
            self._free = {node: gpus_per_node for node in range(whole)} | ({whole: rest} if rest else {})
        self._next = len(self._free)

    @property
    def gpus(self) -> int:
        """That exist now."""
        return self.used_gpus + sum(self._free.values())

    def take(self, owner: str, ranks: int, now_s: float) -> Lease | None:
        """None where no room is; free GPUs on several nodes do not make room for one group."""
        places = self._fit(ranks)
        while not places and self.budget_gpus is None:
            self._free[self._next] = self.size
            self._next += 1
            places = self._fit(ranks)
        if not places:
            return None
        for node, gpus in places:
            self._free[node] -= gpus
        self.used_gpus += ranks
        lease = Lease(owner=owner, places=places, since_s=now_s)
        self._leases[lease] = None
        return lease

    def _fit(self, ranks: int) -> tuple[tuple[int, int], ...]:
        """Empty where no room is."""
        if ranks <= self.size:
            larger, kept = self._awaited()
            room = [
                (free, node)
                for node, free in self._free.items()
                if free >= ranks and not (node == kept and ranks < larger)
            ]
            return ((min(room)[1], ranks),) if room else ()
        whole, rest = divmod(ranks, self.size)
        empty = [node for node, free in self._free.items() if free == self.size]
        if len(empty) < whole + bool(rest):
            return ()
        full = tuple((node, self.size) for node in empty[:whole])
        return (*full, (empty[whole], rest)) if rest else full

    def give(self, lease: Lease, now_s: float) -> None:
        """GPUs of a node that has failed do not come back."""
        del self._leases[lease]
        self._leaving.pop(lease, None)
        self._bill(lease, now_s)
        for node, gpus in lease.places:
            self.used_gpus -= gpus
            if node in self._free:
                self._free[node] += gpus
        for orders in self.orders:
            orders.retry(now_s)

    def leave(self, lease: Lease) -> None:
        """Its replica drains: it will be given back."""
        self._leaving[lease] = None

    def room_beside(self, lease: Lease) -> int:
        """GPUs on its nodes that are free or will be; 0 while nobody waits for any."""
        if not any(orders.pending for orders in self.orders):
            return 0
        spare = self._spare()
        return sum(spare.get(node, 0) for node, _ in lease.places)

    def _spare(self) -> dict[int, int]:
        """By node, what is free or will be."""
        spare = dict(self._free)
        for lease in self._leaving:
            for node, gpus in lease.places:
                if node in spare:
                    spare[node] += gpus
        return spare

    def _awaited(self) -> tuple[int, int | None]:
        """Ranks of the largest group that waits, and the node kept for it where the GPUs for it are only scattered."""
        ranks = max((orders.ranks for orders in self.orders if orders.pending), default=0)
        if not 1 < ranks <= self.size:
            return 0, None
        spare = self._spare()
        return (ranks, max(spare, key=lambda node: spare[node])) if ranks <= sum(spare.values()) else (0, None)

    def in_the_way(self) -> list[Lease]:
        """The smallest replicas, as few as possible, whose GPUs the group that waits lacks on the node kept for it."""
        ranks, node = self._awaited()
        if node is None:
            return []
        lacking = ranks - self._spare()[node]
        found = []
        staying = (lease for lease in self._leases if lease.on(node) and lease not in self._leaving)
        for lease in sorted(staying, key=lambda lease: lease.gpus):
            if lacking > 0 and lease.gpus < ranks:
                lacking -= lease.gpus
                found.append(lease)
        return found if lacking <= 0 else []

    def fail(self, node: int) -> None:
        self._free.pop(node, None)

    def settle(self) -> None:
        """The end: what is still held is billed up to the horizon."""
        for lease in self._leases:
            self._bill(lease, self.horizon_s)
        self._leases.clear()

    def _bill(self, lease: Lease, now_s: float) -> None:
        held_s = max(0.0, min(now_s, self.horizon_s) - lease.since_s)
        self.gpu_s[lease.owner] = self.gpu_s.get(lease.owner, 0.0) + lease.gpus * held_s


@dataclass(slots=True)
class Orders:
    """Replicas of one owner on their way: `pending` until a node has room, then starting, then `ready` is told."""

    owner: str
    ranks: int
    nodes: Nodes
    schedule: Schedule
    cold_start_s: Callable[[], float]
    ready: Callable[[float, Lease], None]
    pending: int = 0
    starting: dict[int, Lease] = field(default_factory=dict)  # by number, the oldest order first
    started: int = 0
    started_s: float = 0.0
    _count: int = 0

    def __post_init__(self) -> None:
        self.nodes.orders.append(self)

    def __len__(self) -> int:
        return self.pending + len(self.starting)

    @property
    def measured_s(self) -> float | None:
        """The mean cold start so far."""
        return self.started_s / self.started if self.started else None

    def begin(self, replicas: int) -> None:
        """So many are there at once, as far as there is room for them."""
        self.pending += replicas
        while self.pending and (lease := self.nodes.take(self.owner, self.ranks, 0.0)) is not None:
            self.pending -= 1
            self.ready(0.0, lease)

    def order(self, now_s: float, replicas: int) -> None:
        self.pending += replicas
        self.retry(now_s)

    def cancel(self, now_s: float, replicas: int) -> int:
        """The newest first; the number that were not there to cancel."""
        pending = min(replicas, self.pending)
        self.pending -= pending
        starting = list(self.starting)[::-1][: replicas - pending]
        for number in starting:
            self.nodes.give(self.starting.pop(number), now_s)
        return replicas - pending - len(starting)

    def retry(self, now_s: float) -> None:
        """Pending orders take the GPUs that are free now."""
        while self.pending and (lease := self.nodes.take(self.owner, self.ranks, now_s)) is not None:
            self.pending -= 1
            self._count += 1
            self.starting[self._count] = lease
            self.schedule(now_s + self.cold_start_s(), self._ready, self._count)

    def restart(self, now_s: float, lease: Lease) -> bool:
        """Elsewhere, if it is one that starts."""
        number = next((number for number, held in self.starting.items() if held is lease), None)
        if number is None:
            return False
        self.pending += 1
        self.nodes.give(self.starting.pop(number), now_s)
        return True

    def _ready(self, now_s: float, number: int) -> None:
        lease = self.starting.pop(number, None)
        if lease is None:
            return  # cancelled, or its node died
        self.started += 1
        self.started_s += now_s - lease.since_s
        self.ready(now_s, lease)

    def lose(self, now_s: float, node: int) -> None:
        for number in [number for number, lease in self.starting.items() if lease.on(node)]:
            self.nodes.give(self.starting.pop(number), now_s)
