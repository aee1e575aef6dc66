"""Requests that wait on no replica: by priority, then by fair share between tenants, then by deadline.

Those whose deadline has passed stand behind all others: served first they would make the next one late too.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush

from autoscaling.twin_replica import Request
from cluster.admission import Head, next_head


@dataclass(frozen=True, slots=True)
class Held:
    """A request with who asked, and the GPU-seconds that it is expected to cost."""

    request: Request
    route: int
    tenant: str
    priority: int
    deadline_s: float
    cost_gpu_s: float


@dataclass(slots=True)
class HeldQueue:
    heaps: dict[tuple[int, str], list[tuple[float, int, Held]]] = field(default_factory=dict)
    late: deque[Held] = field(default_factory=deque)
    prefill_tokens: int = 0
    _count: int = 0

    def __len__(self) -> int:
        return sum(len(heap) for heap in self.heaps.values()) + len(self.late)

    def __bool__(self) -> bool:
        return bool(self.heaps) or bool(self.late)

    def push(self, held: Held) -> None:
        self._count += 1
        heap = self.heaps.setdefault((held.priority, held.tenant), [])
        heappush(heap, (held.deadline_s, self._count, held))
        self.prefill_tokens += held.request.prompt_tokens

    def postpone(self, held: Held) -> None:
        """It is late; `held` was popped."""
        self.late.append(held)
        self.prefill_tokens += held.request.prompt_tokens

    def pop(self, served_gpu_s: Mapping[str, float]) -> Held:
        """The one to go next. `served_gpu_s`: by tenant, shares applied."""
        if not self.heaps:
            held = self.late.popleft()
        else:
            keys = list(self.heaps)
            heads = [
                Head(tenant=tenant, priority=priority, deadline_s=heap[0][0], cost_gpu_s=heap[0][2].cost_gpu_s)
                for (priority, tenant), heap in self.heaps.items()
            ]
            key = keys[next_head(heads, served_gpu_s) if len(heads) > 1 else 0]
            heap = self.heaps[key]
            held = heappop(heap)[2]
            if not heap:
                del self.heaps[key]
        self.prefill_tokens -= held.request.prompt_tokens
        return held
