"""One language replica of the twin: continuous batching by iterations, advanced in closed form between events.

While B sequences decode and nobody joins or leaves, K grows by B tokens a step, so n steps take

    n*(a + b*B + d*touched(B) + chunk) + c*(n*K + B*n*(n - 1)/2)   ms

and the next event (a prefill completed, or the sequence with the fewest tokens left) is found without visiting the
steps between. Prompts are prefilled first come first served, a chunk beside each decode step; what a chunk leaves free
goes to the prompts behind. A sequence joins when its whole length fits into the KV cache: the engine is taken to know
it, so nothing is ever pre-empted (an idealisation, alike for every policy).
"""

import math
from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush

from cluster.batching import chunk_tokens
from cluster.cost import Service

NEVER_S = math.inf
Hold = tuple[tuple[int, int], ...]  # (node, GPUs) pairs


@dataclass(slots=True, eq=False)
class Request:
    """A request under way. `arrival_s` is the client's; a replacement after a failure keeps it."""

    index: int
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    us_per_token: float = 0.0
    expected_tokens: float = 0.0
    prefill_tokens: int = 0  # still to be computed: the prompt less the cached prefix
    blocks: tuple[int, ...] = ()
    first_s: float = -1.0  # the first token; negative: not yet
    born_step: int = 0
    retried: bool = False


class Replica:
    """`imbalance`: most loaded rank over the mean, on the d term and on prefill. It holds its GPUs from `order_s` on.

    `touched_ms`: the d term by the number of sequences, imbalance included.
    """

    __slots__ = (
        "_burst", "_completing", "_per_step_ms", "_segment_s", "_steps", "clock_s", "decoding", "draining", "finish",
        "hold", "imbalance", "inflate", "kv_mean_tokens", "kv_tokens", "left_tokens", "next_s", "order_s",
        "prefill_ms", "queue", "reserved_tokens", "service", "slot", "steps", "touched_ms", "version",
        "waiting_tokens",
    )  # fmt: skip

    def __init__(
        self, service: Service, slot: int, now_s: float, *, order_s: float, hold: Hold, imbalance: float
    ) -> None:
        self.service = service
        self.slot = slot
        self.imbalance = imbalance
        self.touched_ms: list[float] = (service.d_ms * imbalance * service.touched).tolist()
        self.clock_s = now_s  # the state below is exact at this time; it may be a part of a step ahead of the events
        self.steps = 0
        self.decoding = 0
        self.kv_tokens = 0  # of the sequences that decode
        self.kv_mean_tokens = 0.0  # of all that are here, each at the middle of its life
        self.reserved_tokens = 0
        self.queue: deque[Request] = deque()
        self.left_tokens = 0  # of the head of the queue
        self.finish: list[tuple[int, int, Request]] = []
        self.prefill_ms = 0.0  # queued
        self.inflate = 1.0  # wall time of prefill over its compute time, beside the steps of those that decode
        self.draining = False
        self.next_s = NEVER_S
        self.version = 0
        self.waiting_tokens = 0  # of prompts, not computed yet
        self.hold = hold
        self.order_s = order_s
        self._segment_s = now_s
        self._steps = 0
        self._per_step_ms = 0.0
        self._burst = False
        self._completing: list[Request] = []

    @property
    def sequences(self) -> int:
        return self.decoding + len(self.queue) + len(self._completing)

    @property
    def prefill_done_s(self) -> float:
        """When what is queued now will be computed, in the time that the present batch would take for it."""
        behind_s = self.prefill_ms * self.inflate / 1000
        return (self.next_s if self._burst or self.queue else self.clock_s) + behind_s

    @property
    def correction(self) -> float:
        """True over modelled step."""
        modelled_ms = self._modelled_ms()
        return (modelled_ms + (1 - 1 / self.imbalance) * self.touched_ms[self.decoding]) / modelled_ms

    def _modelled_ms(self) -> float:
        service, decoding = self.service, self.decoding
        fixed = service.a_ms + service.b_ms * decoding + self.touched_ms[decoding] / self.imbalance
        return fixed + service.c_ms_per_token * self.kv_tokens

    def arrive(self, request: Request, now_s: float) -> None:
        """Queue it; a batch that only decodes is interrupted at the next step boundary."""
        self.queue.append(request)
        self.waiting_tokens += request.prefill_tokens
        self.prefill_ms += request.prefill_tokens * request.us_per_token * self.imbalance / 1000
        self.kv_mean_tokens += request.prompt_tokens + request.expected_tokens / 2
        if self.next_s == NEVER_S:
            self.clock_s = max(self.clock_s, now_s)
            self.plan()
        elif not self._burst and len(self.queue) == 1 and self._fits(request):
            self._cut(now_s)

    def _cut(self, now_s: float) -> None:
        elapsed_ms = (now_s - self._segment_s) * 1000
        half = self.service.c_ms_per_token * self.decoding / 2
        first = self._per_step_ms + self.service.c_ms_per_token * self.kv_tokens - half
        if half > 0:
            steps = math.ceil((math.sqrt(first * first + 4 * half * max(0.0, elapsed_ms)) - first) / (2 * half))
        else:
            steps = math.ceil(elapsed_ms / first)
        if steps < self._steps:
            self._advance(max(0, steps), 0.0)
            self.plan()

    def _advance(self, steps: int, prefill_ms: float) -> None:
        self.clock_s = self._segment_s + self._duration_ms(steps, prefill_ms) / 1000
        self.steps += steps
        self.kv_tokens += self.decoding * steps

    def _duration_ms(self, steps: int, prefill_ms: float) -> float:
        growing = steps * self.kv_tokens + self.decoding * steps * (steps - 1) / 2
        return steps * self._per_step_ms + self.service.c_ms_per_token * growing + prefill_ms

    def _fits(self, request: Request) -> bool:
        need = request.prompt_tokens + request.output_tokens
        if self.decoding >= self.service.max_running:
            return False
        return self.reserved_tokens + need <= self.service.kv_tokens or self.reserved_tokens == 0

    def plan(self) -> None:
        """Find the next event from the state at `clock_s`: a prefill completed, or the first to finish decoding."""
        self.version += 1
        self._segment_s = self.clock_s
        service, decoding = self.service, self.decoding
        self._per_step_ms = service.a_ms + service.b_ms * decoding + self.touched_ms[decoding]
        self._completing.clear()
        head = self.queue[0] if self.queue else None
        if head is not None and self.left_tokens == 0 and not self._fits(head):
            head = None
        self._burst = head is not None
        if not self.queue:
            self.prefill_ms, self.inflate = 0.0, 1.0  # without what rounding left
        if head is not None:
            self._plan_prefill(head)
        elif decoding:
            self._steps = self.finish[0][0] - self.steps
            self.next_s = self._segment_s + self._duration_ms(self._steps, 0.0) / 1000
        else:
            self.next_s = NEVER_S

    def _plan_prefill(self, head: Request) -> None:
        service, decoding = self.service, self.decoding
        if self.left_tokens == 0:
            self.reserved_tokens += head.prompt_tokens + head.output_tokens
            self.left_tokens = head.prefill_tokens
        us = head.us_per_token * self.imbalance
        step = self._per_step_ms + service.c_ms_per_token * self.kv_tokens
        chunk = chunk_tokens(service, decoding, step, us)
        self.inflate = 1.0 + step * 1000 / (chunk * us)
        steps = -(-self.left_tokens // chunk)
        if decoding and self.finish[0][0] - self.steps < steps:
            self._steps = self.finish[0][0] - self.steps
            tokens = self._steps * chunk
            self.left_tokens -= tokens
            prefill_ms = tokens * us / 1000
        else:
            self._steps = steps
            prefill_ms = self.left_tokens * us / 1000 + self._fill(steps * chunk - self.left_tokens)
        self.prefill_ms -= prefill_ms
        self.next_s = self._segment_s + self._duration_ms(self._steps, prefill_ms) / 1000

    def _fill(self, spare_tokens: int) -> float:
        """The head completes, and with it those behind that the last chunk still holds; their milliseconds."""
        self.left_tokens = 0
        self._completing.append(self.queue.popleft())
        prefill_ms = 0.0
        while self.queue and self.queue[0].prefill_tokens <= spare_tokens:
            behind = self.queue[0]
            if self.decoding + len(self._completing) >= self.service.max_running or not self._fits(behind):
                break
            self.queue.popleft()
            self.reserved_tokens += behind.prompt_tokens + behind.output_tokens
            spare_tokens -= behind.prefill_tokens
            prefill_ms += behind.prefill_tokens * behind.us_per_token * self.imbalance / 1000
            self._completing.append(behind)
        return prefill_ms

    def complete(self) -> tuple[list[Request], list[Request]]:
        """The event at `next_s`: who got the first token, and who got the last."""
        self.clock_s = self.next_s
        self.steps += self._steps
        self.kv_tokens += self.decoding * self._steps
        done: list[Request] = []
        while self.finish and self.finish[0][0] <= self.steps:
            request = heappop(self.finish)[2]
            self.decoding -= 1
            self.kv_tokens -= request.prompt_tokens + request.output_tokens
            self._leave(request)
            done.append(request)
        started = self._completing.copy()
        for request in started:
            self.waiting_tokens -= request.prefill_tokens
            if request.first_s < 0:
                request.first_s = self.clock_s
            if request.output_tokens == 1:
                self._leave(request)
                done.append(request)
            else:
                self.decoding += 1
                self.kv_tokens += request.prompt_tokens + 1
                request.born_step = self.steps
                heappush(self.finish, (self.steps + request.output_tokens - 1, request.index, request))
        self.plan()
        return started, done

    def _leave(self, request: Request) -> None:
        self.reserved_tokens -= request.prompt_tokens + request.output_tokens
        self.kv_mean_tokens -= request.prompt_tokens + request.expected_tokens / 2

    def lost(self) -> list[Request]:
        """All that are here when it dies, with the tokens they already have counted as prompt."""
        for _, _, request in self.finish:
            made = min(request.output_tokens - 1, 1 + self.steps - request.born_step)
            request.prompt_tokens += made
            request.output_tokens -= made
        return [request for _, _, request in self.finish] + self._completing + list(self.queue)
