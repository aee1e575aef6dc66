"""One language replica of the twin: continuous batching by iterations, advanced in closed form between events.

While B sequences decode and nobody joins or leaves, K grows by B tokens a step, so n steps take

    n*(a + b*B + d*touched(B)) + c*(n*K + B*n*(n - 1)/2) + prefill   ms

and the next event (prompts completed, or the sequence with the fewest tokens left) is found without visiting the steps
between. Prompts are prefilled first come first served, a chunk beside each decode step; what the last chunk of one
leaves free goes to those behind it. Idealised, alike for every policy:

- the chunk is decided when a prefill begins or goes on after an event, and kept until the next event;
- who arrives while a prefill is under way joins at its next event; who arrives beside a batch that only decodes, at
  the next step boundary; who finds the replica idle begins at once, alone;
- a sequence joins when its whole length fits into the KV cache (the engine is taken to know it, so nothing is ever
  pre-empted), in order of arrival; one that is longer than the whole cache runs alone;
- a cached prefix saves its prefill, but the sequence still takes its whole length of the cache.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush

from cluster.batching import chunk_tokens
from cluster.cost import Service

NEVER_S = math.inf
ROUNDING = 1e-9  # of a step: what has come so near to a boundary has reached it


@dataclass(slots=True, eq=False)
class Request:
    """A request under way. `arrival_s` is the client's; `asked_s` that, or when the replica that served it was lost."""

    index: int
    arrival_s: float
    asked_s: float
    prompt_tokens: int
    output_tokens: int
    us_per_token: float = 0.0
    prefill_tokens: int = 0  # the prompt less the cached prefix; 0 before it is sent to a replica
    blocks: tuple[int, ...] = ()
    first_s: float = -1.0  # the first token; negative: not yet
    born_step: int = 0
    retried: bool = False


class Replica:
    """`imbalance`: most loaded rank over the mean, on the d term and on prefill. `due`: told its events, see `next_s`.

    The state is that of `clock_s`, the last event. `version` changes with every plan; events of older ones are void.
    """

    __slots__ = (
        "_burst", "_completing", "_prefill_ms", "_step_ms", "_steps", "_touched_ms", "clock_s", "decoding", "draining",
        "due", "finish", "imbalance", "inflate", "kv_tokens", "left_tokens", "next_s", "prefill_ms",
        "queue", "reserved_output_tokens", "reserved_tokens", "sequences", "service", "slot", "steps", "version",
        "waiting_prompt_tokens", "waiting_tokens",
    )  # fmt: skip

    def __init__(self, service: Service, slot: int, now_s: float, imbalance: float = 1.0) -> None:
        self.service = service
        self.slot = slot
        self.imbalance = imbalance
        self.due: Callable[[float, int], None]
        self.draining = False
        self.clock_s = now_s
        self.next_s = NEVER_S
        self.version = 0
        self.sequences = 0
        self.steps = 0
        self.decoding = 0
        self.finish: list[tuple[int, int, Request]] = []  # by the step after which they are done
        self.queue: deque[Request] = deque()
        self.left_tokens = 0  # of the head of the queue; 0: not begun
        self.kv_tokens = 0  # of the sequences that decode
        self.reserved_tokens = 0
        self.reserved_output_tokens = 0
        self.waiting_tokens = 0  # to be computed for prompts that are not complete
        self.waiting_prompt_tokens = 0  # of them, with what is cached
        self.prefill_ms = 0.0  # queued, without what the present segment computes
        self.inflate = 1.0  # wall time of prefill over its compute time, beside the steps of those that decode
        # The segment up to the next event: its steps, their time without context, and the prefill that rides on them.
        self._touched_ms: list[float] = (service.d_ms * imbalance * service.touched).tolist()
        self._steps = 0
        self._step_ms = 0.0
        self._prefill_ms = 0.0
        self._burst = False
        self._completing: list[Request] = []

    @property
    def prefill_done_s(self) -> float:
        """When what is queued now will be computed, in the time that the present batch would take for it."""
        since_s = self.next_s if self._burst or self.queue else self.clock_s
        return since_s + self.prefill_ms * self.inflate / 1000

    @property
    def blocked(self) -> bool:
        """The first in the queue waits for a place in the cache or in the batch."""
        return bool(self.queue) and not self._burst

    @property
    def correction(self) -> float:
        """True over modelled step, of the batch that is here or of a first sequence."""
        service, decoding = self.service, max(1, self.decoding)
        extra_ms = (1 - 1 / self.imbalance) * self._touched_ms[decoding]
        context_ms = service.c_ms_per_token * self.kv_tokens
        true_ms = service.a_ms + service.b_ms * decoding + self._touched_ms[decoding] + context_ms
        return true_ms / (true_ms - extra_ms) if true_ms else 1.0

    def arrive(self, request: Request, now_s: float) -> None:
        """Queue it; a batch that only decodes is interrupted at the next step boundary."""
        self.queue.append(request)
        self.sequences += 1
        self.waiting_tokens += request.prefill_tokens
        self.waiting_prompt_tokens += request.prompt_tokens
        self.prefill_ms += request.prefill_tokens * request.us_per_token * self.imbalance / 1000
        if self.next_s == NEVER_S:
            self.clock_s = now_s
            self.plan()
        elif not self._burst and now_s < self.next_s and len(self.queue) == 1 and self._fits(request):
            self._cut(now_s)

    def _cut(self, now_s: float) -> None:
        """The segment ends at the next step boundary."""
        steps = math.ceil(self._steps_by(now_s) - ROUNDING)
        if steps < self._steps:
            self.version += 1
            self._steps = steps
            self.next_s = max(now_s, self.clock_s + self._duration_ms(steps) / 1000)

    def _steps_by(self, now_s: float) -> float:
        """Steps of the segment by then. Prefill counts as spread evenly over it."""
        half_ms = self.service.c_ms_per_token * self.decoding / 2
        first_ms = self._step_ms + self.service.c_ms_per_token * self.kv_tokens - half_ms
        first_ms += self._prefill_ms / self._steps
        elapsed_ms = (now_s - self.clock_s) * 1000
        return 2 * elapsed_ms / (first_ms + math.sqrt(first_ms * first_ms + 4 * half_ms * elapsed_ms))

    def _duration_ms(self, steps: int) -> float:
        growing = steps * self.kv_tokens + self.decoding * steps * (steps - 1) / 2
        return steps * self._step_ms + self.service.c_ms_per_token * growing

    def _fits(self, request: Request) -> bool:
        """The last word is for a sequence that is longer than the cache."""
        if self.decoding + len(self._completing) >= self.service.max_running:
            return False
        need = request.prompt_tokens + request.output_tokens
        return self.reserved_tokens + need <= self.service.kv_tokens or self.reserved_tokens == 0

    def plan(self) -> None:
        """Find the next event from the state at `clock_s`: prompts completed, or the first to finish decoding."""
        self.version += 1
        service, decoding, queue = self.service, self.decoding, self.queue
        self._step_ms = service.a_ms + service.b_ms * decoding + self._touched_ms[decoding]
        self._completing = []
        self._burst = bool(queue) and (self.left_tokens > 0 or self._fits(queue[0]))
        if self._burst:
            self._plan_prefill(queue[0])
            return
        self._prefill_ms = 0.0
        if not queue:
            self.prefill_ms, self.inflate = 0.0, 1.0  # without what rounding left
        if decoding:
            self._steps = self.finish[0][0] - self.steps
            self.next_s = self.clock_s + self._duration_ms(self._steps) / 1000
        else:
            self.next_s = NEVER_S

    def _plan_prefill(self, head: Request) -> None:
        service, decoding = self.service, self.decoding
        if self.left_tokens == 0:
            self._reserve(head)
        us = head.us_per_token * self.imbalance
        step_ms = self._step_ms + service.c_ms_per_token * self.kv_tokens
        chunk = chunk_tokens(service, decoding, step_ms, us)
        self.inflate = 1.0 + step_ms * 1000 / (chunk * us)
        steps = -(-self.left_tokens // chunk)
        if decoding and self.finish[0][0] - self.steps < steps:
            self._steps = self.finish[0][0] - self.steps
            tokens = self._steps * chunk
            self.left_tokens -= tokens
            self._prefill_ms = tokens * us / 1000
        else:
            self._steps = steps
            self._prefill_ms = self.left_tokens * us / 1000
            self._fill(steps * chunk - self.left_tokens)
        self.prefill_ms -= self._prefill_ms
        self.next_s = self.clock_s + (self._duration_ms(self._steps) + self._prefill_ms) / 1000

    def _reserve(self, request: Request) -> None:
        self.left_tokens = request.prefill_tokens
        self.reserved_tokens += request.prompt_tokens + request.output_tokens
        self.reserved_output_tokens += request.output_tokens

    def _fill(self, spare_tokens: int) -> None:
        """The head completes, and the last chunk holds `spare_tokens` of those behind it."""
        queue = self.queue
        self.left_tokens = 0
        self._completing.append(queue.popleft())
        while spare_tokens and queue and self._fits(queue[0]):
            behind = queue[0]
            self._reserve(behind)
            tokens = min(spare_tokens, behind.prefill_tokens)
            self._prefill_ms += tokens * behind.us_per_token * self.imbalance / 1000
            spare_tokens -= tokens
            self.left_tokens -= tokens
            if self.left_tokens == 0:
                self._completing.append(queue.popleft())

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
        started = self._completing
        for request in started:
            self.waiting_tokens -= request.prefill_tokens
            self.waiting_prompt_tokens -= request.prompt_tokens
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
        self.sequences -= 1
        self.reserved_tokens -= request.prompt_tokens + request.output_tokens
        self.reserved_output_tokens -= request.output_tokens

    def lost(self, now_s: float) -> list[Request]:
        """It dies: all that are here, in order of arrival, the tokens that they already have counted as prompt."""
        self.version += 1
        if self.finish:
            begun = self._steps if now_s >= self.next_s else math.floor(self._steps_by(now_s) + ROUNDING)
            for _, _, request in self.finish:
                made = min(request.output_tokens - 1, 1 + self.steps + begun - request.born_step)
                request.prompt_tokens += made
                request.output_tokens -= made
        running = [request for _, _, request in self.finish]
        return sorted([*running, *self._completing, *self.queue], key=lambda request: request.index)
