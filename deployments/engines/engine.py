"""The one seam behind which language engines live: torch, vLLM, DeepSpeed, and the simulated one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cluster.inputs import Input
from cluster.request import Generation, Message, Piece, Tool

Emit = Callable[[Piece], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertReport:
    """Where the routed experts of a group lie and what they computed. Layers are those that have experts.

    `tokens` [domains, layers, experts, ranks] are the rows that a rank computed for an expert since start; `window`
    [layers, experts, ranks] those of the last window. `domains` names the first axis; "" is unknown. `slots`
    [layers, slots] is the expert in each physical slot; ranks hold runs of equally many. `imbalance` [layers] is
    max/mean of the ranks' window tokens, nan where there were none. `stall_s`: what the last rebalance cost streams.
    """

    domains: tuple[str, ...]
    tokens: NDArray[np.int64]
    window: NDArray[np.int64]
    slots: tuple[tuple[int, ...], ...]
    imbalance: tuple[float, ...]
    rebalances: int = 0
    moved: int = 0
    stall_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport:
    """What routing needs to know of an engine now. Counters only grow."""

    running: int
    waiting: int
    waiting_prefill_tokens: int
    kv_used_tokens: int
    kv_capacity_tokens: int
    steps: int
    step_ms: float
    prefill_us_per_token: float
    cached_tokens: int = 0  # prompt tokens since start that a prefix cache spared
    experts: ExpertReport | None = None


class Engine(Protocol):
    """Continuous batching behind calls that do not block, made on the replica's event loop; `report` from any thread.

    `label` is empty for a real engine; the simulated one says so there, and every response carries it. `structured`:
    answers can be held to a JSON schema. `embeds`: how long the vectors of prompts are, 0 where it makes none. `tools`:
    calls of tools are written into prompts and found in answers; `forced_tools`: they can be demanded, counted, and
    held to the tools' parameters. `inputs`: what it takes beside text. The replica refuses what its engine cannot do,
    with InvalidRequest, before it reaches the engine.
    """

    label: str
    context_tokens: int
    structured: bool
    tools: bool
    forced_tools: bool

    @property
    def inputs(self) -> tuple[Input, ...]: ...

    @property
    def embeds(self) -> int: ...

    async def start(self) -> None:
        """Load and warm up. Raises CheckpointError."""

    def encode(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[int, ...]:
        """The chat template applied and tokenized, media as placeholders. What is far too long is refused early:
        ContextTooLong.
        """

    def encode_text(self, text: str) -> tuple[int, ...]:
        """As the tokenizer reads it by itself, special tokens included. Raises ContextTooLong, InvalidRequest."""

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
