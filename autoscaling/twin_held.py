"""Requests that wait on no replica: by priority, then by fair share between tenants, then by deadline.

Those to whom no promise can be kept stand behind all others, in the same order among themselves: served first they
would make the next one late too.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush

from autoscaling.twin_replica import Request
from autoscaling.twin_scenario import Route
from cluster.admission import Head, next_head

Class = tuple[int, str]  # priority and tenant
Heaps = dict[Class, list[tuple[float, int, "Held"]]]  # by deadline, then arrival


@dataclass(frozen=True, slots=True)
class Held:
    """A request, where it may go, and the GPU-seconds that it is expected to cost."""

    request: Request
    route: Route
    kind: Class
    deadline_s: float
    cost_gpu_s: float


@dataclass(slots=True)
class HeldQueue:
    in_time: Heaps = field(default_factory=dict)
    late: Heaps = field(default_factory=dict)
    prefill_tokens: int = 0

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

    def first_priority(self) -> float:
        """The highest among those who wait in time."""
        return max((priority for priority, _ in self.in_time), default=-math.inf)

    def push(self, held: Held, *, late: bool = False) -> None:
        _push(self.late if late else self.in_time, held)
        self.prefill_tokens += held.request.prompt_tokens

    def pop(self, served_gpu_s: Mapping[str, float]) -> Held:
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
        self.prefill_tokens -= held.request.prompt_tokens
        return held

    def expired(self, deadline_s: float) -> list[Held]:
        """Those whose deadline was before that; they are out."""
        out = [held for heaps in (self.in_time, self.late) for held in _due(heaps, deadline_s)]
        self.prefill_tokens -= sum(held.request.prompt_tokens for held in out)
        return out


def _push(heaps: Heaps, held: Held) -> None:
    heap = heaps.setdefault(held.kind, [])
    heappush(heap, (held.deadline_s, held.request.index, held))


def _pop(heaps: Heaps, key: Class) -> Held:
    held = heappop(heaps[key])[2]
    if not heaps[key]:
        del heaps[key]
    return held


def _due(heaps: Heaps, now_s: float) -> list[Held]:
    """Those with a deadline before now, taken out."""
    out: list[Held] = []
    for key in list(heaps):
        while key in heaps and heaps[key][0][0] < now_s:
            out.append(_pop(heaps, key))
    return out
