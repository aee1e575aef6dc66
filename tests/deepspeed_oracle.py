"""One of two ranks that send the same rows through DeepSpeed's MoE layer and through ours; a program of its own.

    python deepspeed_oracle.py RANK STORE OUT

Both have the same weights and choose the same experts. DeepSpeed gets as many rows on each rank, padded: for k=1 it
takes its buffers as large as the rank's own rows allow, and ranks that disagree on that would wait for each other.
Nothing is compiled, and what waits for a lost rank fails after TIMEOUT_S.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from deployments.engines.torch_engine.exchange import AllToAll, Watch, first_slots
from deployments.engines.torch_engine.moe import Experts, GatedFfn, MoeLayer

RANKS, EXPERTS, HIDDEN, FFN, PADDED, TIMEOUT_S = 2, 8, 32, 24, 24, 60
SLOTS = {
    "in order": tuple(range(EXPERTS)),
    "mixed": (5, 0, 7, 2, 1, 6, 3, 4),
    "copies": (0, 1, 2, 3, 4, 5, 6, 7, 0, 1),  # experts 0 and 1 on both ranks
}
TOKENS = {"even": (20, 20), "uneven": (3, 24), "idle": (0, 7)}
CHANGED = 0  # the expert of which ours gets another weight, where told


@dataclass(frozen=True, slots=True)
class Case:
    k: int
    residual: bool
    tokens: str
    slots: str
    changed: bool = False

    @property
    def name(self) -> str:
        parts = [f"k={self.k}", "residual" if self.residual else "plain", self.tokens, self.slots]
        return ", ".join(parts + ["changed"] * self.changed)


def cases() -> Iterator[Case]:
    for k, residual, tokens, slots in product((1, 2), (False, True), TOKENS, SLOTS):
        yield Case(k, residual, tokens, slots)
    for k in (1, 2):
        yield Case(k, False, "even", "in order", changed=True)


@dataclass(frozen=True, slots=True)
class Weights:
    """gate, up, down of each routed expert and of the residual one; router [E, hidden]; coefficient of the residual."""

    experts: list[tuple[Tensor, Tensor, Tensor]]
    residual: tuple[Tensor, Tensor, Tensor]
    router: Tensor
    coefficient: tuple[Tensor, Tensor]

    @classmethod
    def drawn(cls, draw: Callable[..., Tensor]) -> "Weights":
        ffns = [(draw(FFN, HIDDEN), draw(FFN, HIDDEN), draw(HIDDEN, FFN)) for _ in range(EXPERTS + 1)]
        return cls(ffns[:-1], ffns[-1], draw(EXPERTS, HIDDEN), (draw(2, HIDDEN), draw(2)))


class Ffn(nn.Module):
    """An expert as DeepSpeed wants it."""

    def __init__(self, weights: tuple[Tensor, Tensor, Tensor]) -> None:
        super().__init__()
        self.gate, self.up, self.down = map(nn.Parameter, weights)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.silu(F.linear(x, self.gate)) * F.linear(x, self.up), self.down)


def theirs(weights: Weights, k: int, residual: bool, rank: int) -> Any:
    from deepspeed.moe.layer import MoE

    layer = MoE(
        HIDDEN,
        Ffn(weights.residual),
        EXPERTS,
        ep_size=RANKS,
        k=k,
        min_capacity=0,
        drop_tokens=False,
        use_residual=residual,
        use_rts=False,
        top2_2nd_expert_sampling=False,
    )
    layer.set_deepspeed_parallelism()
    held = layer.deepspeed_moe.experts.deepspeed_experts
    for own, given in zip(held, weights.experts[rank * len(held) :], strict=False):
        own.load_state_dict(Ffn(given).state_dict())
    layer.deepspeed_moe.gate.wg.weight.copy_(weights.router)
    if residual:
        layer.coefficient.weight.copy_(weights.coefficient[0])
        layer.coefficient.bias.copy_(weights.coefficient[1])
    return layer.eval()


def fused(weights: tuple[Tensor, Tensor, Tensor]) -> GatedFfn:
    gate, up, down = weights
    return GatedFfn(gate_up=torch.cat([gate, up]).t().contiguous(), down=down.t().contiguous())


@dataclass(frozen=True, kw_only=True)
class Layer(MoeLayer):
    """Ours, with DeepSpeed's gate: softmax, the best k, which for k=2 share their sum."""

    k: int
    coefficient: tuple[Tensor, Tensor] | None

    def route(self, h: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = torch.softmax(h @ self.router, -1).topk(self.k)
        weights = weights if self.k == 1 else weights / weights.sum(-1, keepdim=True)
        return chosen, weights if self.coefficient is None else weights * self.blend(h)[:, :1]

    def blend(self, h: Tensor) -> Tensor:
        assert self.coefficient is not None
        return torch.softmax(F.linear(h, *self.coefficient), -1)

    def _share(self, x: Tensor, h: Tensor) -> None:
        """A residual expert is a shared one whose part has a weight."""
        if self.shared is not None:
            part = torch.zeros_like(x)
            self.shared.add_to(part, h)
            x.add_(part * self.blend(h)[:, 1:])


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a model's shape, what a layer looks at."""

    top_k: int


def ours(weights: Weights, case: Case, rank: int) -> Layer:
    slots = SLOTS[case.slots]
    room = len(slots) // RANKS
    held = [fused(weights.experts[expert]) for expert in slots[rank * room : (rank + 1) * room]]
    return Layer(
        config=Shape(case.k),  # type: ignore[arg-type]
        router=weights.router.t().contiguous(),
        bias=torch.zeros(EXPERTS),
        slot_of=torch.from_numpy(first_slots(slots)),
        experts=Experts(gate_up=torch.stack([e.gate_up for e in held]), down=torch.stack([e.down for e in held])),
        shared=fused(weights.residual) if case.residual else None,
        exchange=AllToAll(rank, RANKS, slots, Watch()),
        k=case.k,
        coefficient=weights.coefficient if case.residual else None,
    )


def compare(rank: int) -> dict[str, np.ndarray[Any, Any]]:
    """Of each case: what DeepSpeed computed, what we did, the experts chosen, and our rows to each slot."""
    shared = torch.Generator().manual_seed(1)
    weights = Weights.drawn(lambda *shape: torch.randn(shape, generator=shared) / HIDDEN**0.5)
    experts = list(weights.experts)
    experts[CHANGED] = (experts[CHANGED][0] * 1.01, *experts[CHANGED][1:])
    other = replace(weights, experts=experts)
    rows = torch.randn(PADDED, HIDDEN, generator=torch.Generator().manual_seed(2 + rank))
    layers = {(k, residual): theirs(weights, k, residual, rank) for k in (1, 2) for residual in (False, True)}
    found: dict[str, np.ndarray[Any, Any]] = {}
    for case in cases():
        tokens = TOKENS[case.tokens][rank]
        expected, _, _ = layers[case.k, case.residual](rows)
        layer = ours(other if case.changed else weights, case, rank)
        x = torch.zeros(tokens, HIDDEN)
        slots = layer.add_to(x, rows[:tokens])
        found[f"{case.name}: theirs"] = expected[:tokens].numpy()
        found[f"{case.name}: ours"] = x.numpy()
        found[f"{case.name}: chosen"] = layer.route(rows[:tokens])[0].numpy()
        found[f"{case.name}: routed"] = slots.bincount(minlength=len(SLOTS[case.slots])).numpy()
    return found


def main(rank: int, store: str, out: str) -> None:
    torch.set_num_threads(1)
    limit = timedelta(seconds=TIMEOUT_S)
    with tempfile.TemporaryDirectory() as builds:
        os.environ.update(DS_ACCELERATOR="cpu", LOCAL_RANK=str(rank), TORCH_EXTENSIONS_DIR=builds)
        import deepspeed
        from deepspeed.git_version_info import installed_ops

        deepspeed.ops.__compatible_ops__ = installed_ops  # what is not built counts as missing, instead of being built
        files = dist.FileStore(store, RANKS)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=files, rank=rank, world_size=RANKS, timeout=limit)
        deepspeed.init_distributed("gloo", auto_mpi_discovery=False, timeout=limit)
        with torch.no_grad():
            np.savez(out, **compare(rank))  # type: ignore[arg-type]
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
