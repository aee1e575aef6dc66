"""Tiers of engine vllm, and streams of theirs."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from cluster.family import BUNDLED, Tier
from cluster.request import Generation, Piece, Sampling
from deployments.engines.engine import Engine

MINI = str((BUNDLED / "../../deployments/demo/checkpoints/mini").resolve())
ANSWER_S = 60.0
SMALL: dict[str, Any] = {
    "names": ("tested",),
    "checkpoint": MINI,
    "engine": "vllm",
    "vllm": {"tool_parser": "hermes"},
    "context_tokens": 1024,
    "kv_tokens": 4096,
    "max_running": 8,
    "max_waiting": 4,
    "prefill_chunk_tokens": 256,
    "slo": {"ttft_s": 5, "tpot_ms": 50},
    "price": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2},
    "replicas": {"min": 1, "max": 1, "initial": 1},
    "cost": {"a_ms": 5, "b_ms_per_seq": 0, "c_ms_per_ktok": 0, "prefill_us_per_token": {64: 1}, "source": "a test's"},
}


def tier(**changed: Any) -> Tier:
    return Tier.model_validate(SMALL | changed)


@dataclass
class Receiver:
    """Collects the pieces of one stream."""

    pieces: list[Piece] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, piece: Piece) -> None:
        assert not self.ended.is_set(), "nothing may follow the last piece"
        self.pieces.append(piece)
        if piece.last:
            self.ended.set()

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(token for piece in self.pieces for token in piece.ids)

    async def last(self) -> Piece:
        await asyncio.wait_for(self.ended.wait(), ANSWER_S)
        return self.pieces[-1]


def ask(engine: Engine, key: str, prompt: tuple[int, ...], sampling: Sampling, **more: Any) -> Receiver:
    receiver = Receiver()
    engine.submit(Generation(request_id=key, prompt=prompt, sampling=sampling, **more), receiver)
    return receiver


async def answer(engine: Engine, key: str, prompt: tuple[int, ...], sampling: Sampling, **more: Any) -> Receiver:
    receiver = ask(engine, key, prompt, sampling, **more)
    last = await receiver.last()
    assert last.error is None, last.error
    return receiver
