"""What a torch engine is built from. Plain values: importing this loads no torch."""

from dataclasses import dataclass
from typing import Literal

from cluster.experts import Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """One expert group. `kv_tokens` is per rank: each holds the KV of its own sequences, in whole blocks.

    On `cpu` every rank is one thread, and float32 is the faster dtype. `cuda` is written and was never run.

    `prefill_chunk_tokens` bounds the prompt tokens that one step computes on one rank. A checkpoint that names the
    domains of its experts must name the `specialists` among them.

    `placement` says where routed experts lie at the start, over the layers that have some; None places them evenly.
    Each layer has `redundant` slots beyond one per expert. With `rebalance`, experts move where the load of the last
    `window_s` says that it pays.
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
    placement: Placement | None = None
    redundant: int = 0
    rebalance: bool = True
    window_s: float = 60.0
    specialists: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupAddress:
    """Where rank 0 listens for the other ranks of its group."""

    host: str
    port: int
