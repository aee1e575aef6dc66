"""The one seam behind which language engines live: torch, simulated, later vLLM and DeepSpeed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster.request import Generation, Message, Piece

Emit = Callable[[Piece], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport:
    """What routing needs to know of an engine now. Counters only grow.

    `expert_tokens[layer][expert]` are the token rows routed since start, physical rank by `expert_rank[layer][expert]`.
    """

    running: int
    waiting: int
    waiting_prefill_tokens: int
    kv_used_tokens: int
    kv_capacity_tokens: int
    steps: int
    step_ms: float
    prefill_us_per_token: float
    expert_tokens: tuple[tuple[int, ...], ...] = ()
    expert_rank: tuple[tuple[int, ...], ...] = ()


class Engine(Protocol):
    """Continuous batching behind calls that do not block, made on the replica's event loop; `report` from any thread.

    `label` is empty for a real engine; the simulated one says so there, and every response carries it.
    """

    label: str
    context_tokens: int

    async def start(self) -> None:
        """Load and warm up. Raises CheckpointError."""

    def encode(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The chat template applied and tokenized. What is far too long is refused early: ContextTooLong."""

    def submit(self, generation: Generation, emit: Emit) -> None:
        """Queue it. `emit` is called on the event loop, at most once per step, and once with `last`.

        Where the given tokens are already the whole answer, the last piece comes within this call.
        Raises ContextTooLong or InvalidRequest where it could never fit, EngineFailed where the engine is dead.
        """

    def cancel(self, request_id: str) -> None:
        """Free its place at the next step; nothing more is emitted. Unknown ids are ignored."""

    def report(self) -> EngineReport:
        """Its state now. May be called from any thread, at any time after `start`."""

    def check(self) -> None:
        """Raises EngineFailed once the engine cannot go on; the replica is then replaced."""

    async def stop(self) -> None: ...
