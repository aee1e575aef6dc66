"""What a torch engine is built from. Plain values: importing this loads no torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """One expert group. `kv_tokens` is per rank: each holds the KV of its own sequences, in whole blocks.

    On `cpu` every rank is one thread, and float32 is the faster dtype. `cuda` is written and was never run.

    `prefill_chunk_tokens` bounds the prompt tokens that one step computes on one rank. `expert_rank[layer][expert]` is
    the rank that holds an expert, counted over the layers that have experts; None splits them in order. A checkpoint
    that names the domains of its experts must name the `specialists` among them.
    """

    checkpoint: str
    context_tokens: int
    kv_tokens: int
    max_running: int = 64
    max_waiting: int = 256
    prefill_chunk_tokens: int = 256
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    ranks: int = 1
    expert_rank: tuple[tuple[int, ...], ...] | None = None
    specialists: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupAddress:
    """Where rank 0 listens for the other ranks of its group."""

    host: str
    port: int
