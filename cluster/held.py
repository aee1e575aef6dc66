"""Requests that wait on no replica: by priority, then by fair share between tenants, then by deadline.

Those to whom no promise can be kept stand behind all others, in the same order among themselves: served first they
would make the next one late too.
"""

import math
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Generic, Literal, TypeVar

from cluster.admission import Head, next_head
from cluster.fairness import lifted, yielded

LATE_AGAIN_S = 0.1  # between two looks for a place for those who are late anyhow
Action = Literal["dispatch", "hold", "postpone", "refuse"]
T = TypeVar("T")
Kind = tuple[int, str]  # priority and tenant


@dataclass(frozen=True, slots=True)
class Held(Generic[T]):
    """Whatever waits. `number`: different for all, in the order of arrival. `cost_gpu_s`: what it is expected to."""

    item: T
    number: int
    kind: Kind
    prompt_tokens: int
    deadline_s: float = math.inf
    cost_gpu_s: float = 0.0


Heaps = dict[Kind, list[tuple[float, int, Held[T]]]]  # by deadline, then arrival


@dataclass(slots=True)
class HeldQueue(Generic[T]):
    """`late_again_s`: when a place for those who are late is looked for again."""

    in_time: Heaps[T] = field(default_factory=dict)
    late: Heaps[T] = field(default_factory=dict)
    prefill_tokens: int = 0
    late_again_s: float = 0.0

    def __len__(self) -> int:
        return sum(len(heap) for heaps in (self.in_time, self.late) for heap in heaps.values())

    def __bool__(self) -> bool:
        return bool(self.in_time) or bool(self.late)

    def tenants(self, priority: int) -> set[str]:
        """With requests here."""
        return {tenant for at, tenant in (*self.in_time, *self.late) if at == priority}

    def above(self, priority: int) -> bool:
        """Whether a higher priority has requests here."""
        return any(at > priority for at, _ in (*self.in_time, *self.late))

    def ahead(self, priority: int) -> int:
        """How many of that priority or a higher one are here."""
        heaps = (self.in_time, self.late)
        return sum(len(heap) for kinds in heaps for (at, _), heap in kinds.items() if at >= priority)

    def first_priority(self) -> float:
        """The highest among those who wait in time."""
        return max((priority for priority, _ in self.in_time), default=-math.inf)

    def yielded(self, kind: Kind, served_gpu_s: Mapping[str, float]) -> float:
        """Of the promised first token, the share left to a higher priority and to tenants served less."""
        if not self:
            return 0.0
        priority, mine = kind
        waiting = [served_gpu_s.get(tenant, 0.0) for tenant in self.tenants(priority)]
        if self.above(priority):
            waiting.append(-math.inf)
        return yielded(served_gpu_s.get(mine, 0.0), waiting)

    def lift(self, kind: Kind, served_gpu_s: MutableMapping[str, float]) -> None:
        """The counter of a tenant that has a request waiting again after it had none; before `push`."""
        priority, mine = kind
        waiting = self.tenants(priority)
        if mine not in waiting:
            active = [served_gpu_s.get(tenant, 0.0) for tenant in waiting]
            served_gpu_s[mine] = lifted(served_gpu_s.get(mine, 0.0), active)

    def push(self, held: Held[T], *, late: bool = False) -> None:
        _push(self.late if late else self.in_time, held)
        self.prefill_tokens += held.prompt_tokens

    def pop(self, served_gpu_s: Mapping[str, float]) -> Held[T]:
        """The one to go next. `served_gpu_s`: by tenant, shares applied."""
        heaps = self.in_time or self.late
        key = next(iter(heaps))
        if len(heaps) > 1:
            heads = [
                Head(tenant=tenant, priority=priority, deadline_s=heap[0][0], cost_gpu_s=heap[0][2].cost_gpu_s)
                for (priority, tenant), heap in heaps.items()
            ]
            key = list(heaps)[next_head(heads, served_gpu_s)]
        held = _pop(heaps, key)
        self.prefill_tokens -= held.prompt_tokens
        return held

    def release(self, now_s: float, served_gpu_s: Mapping[str, float], place: Callable[[T], Action]) -> None:
        """They go on, in their order, until one of them has to wait longer.

        One to whom no promise can be kept does not hold up those behind it to whom one can.
        """
        while self:
            late = not self.in_time
            if late and now_s < self.late_again_s:
                return
            head = self.pop(served_gpu_s)
            action = place(head.item)
            if action in ("hold", "postpone"):
                self.push(head, late=late or action == "postpone")
                if late:
                    self.late_again_s = now_s + LATE_AGAIN_S
                if late or action == "hold":
                    return

    def expired(self, deadline_s: float) -> list[Held[T]]:
        """Those whose deadline was before that; they are out."""
        out = [held for heaps in (self.in_time, self.late) for held in _due(heaps, deadline_s)]
        self.prefill_tokens -= sum(held.prompt_tokens for held in out)
        return out

    def last(self) -> Held[T]:
        """Of the lowest priority the one with the latest deadline; of a queue that is not empty."""
        least = min(priority for priority, _ in (*self.in_time, *self.late))
        entries = (
            entry
            for heaps in (self.late, self.in_time)
            for (priority, _), heap in heaps.items()
            if priority == least
            for entry in heap
        )
        return max(entries, key=lambda entry: entry[:2])[2]

    def remove(self, kind: Kind, number: int) -> bool:
        """Whether it was here; now it is out."""
        for heaps in (self.in_time, self.late):
            heap = heaps.get(kind, [])
            for index, (_, at, held) in enumerate(heap):
                if at == number:
                    heap[index] = heap[-1]
                    heap.pop()
                    heapify(heap)
                    if not heap:
                        del heaps[kind]
                    self.prefill_tokens -= held.prompt_tokens
                    return True
        return False


def _push(heaps: Heaps[T], held: Held[T]) -> None:
    heap = heaps.setdefault(held.kind, [])
    heappush(heap, (held.deadline_s, held.number, held))


def _pop(heaps: Heaps[T], key: Kind) -> Held[T]:
    held = heappop(heaps[key])[2]
    if not heaps[key]:
        del heaps[key]
    return held


def _due(heaps: Heaps[T], now_s: float) -> list[Held[T]]:
    """Those with a deadline before now, taken out."""
    out: list[Held[T]] = []
    for key in list(heaps):
        while key in heaps and heaps[key][0][0] < now_s:
            out.append(_pop(heaps, key))
    return out
