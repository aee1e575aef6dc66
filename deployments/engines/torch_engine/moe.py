"""One mixture-of-experts layer: sigmoid router, routed experts in one grouped product, shared experts beside.

T rows of the step, K experts per token, E experts. A slot holds one copy of an expert. Rows are sorted by slot: slots
are numbered rank by rank, so that sorted rows are also sorted by destination.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from deployments.engines.torch_engine.checkpoint import ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedFfn:
    """down(silu(gate x) * up x). Weights lie [in, out], which is the faster order for few rows."""

    gate_up: Tensor  # [hidden, 2 * ffn]
    down: Tensor  # [ffn, hidden]

    def add_to(self, x: Tensor, h: Tensor) -> None:
        x.addmm_(_gated(h @ self.gate_up), self.down)


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """The routed experts of this rank, in slot order. Written only between steps, when experts move."""

    gate_up: Tensor  # [experts, hidden, 2 * ffn]
    down: Tensor  # [experts, ffn, hidden]

    def __call__(self, rows: Tensor, counts: Tensor) -> Tensor:
        """rows sorted by expert, counts [experts] of them."""
        ends = counts.cumsum(0, dtype=torch.int32)
        inner = _gated(F.grouped_mm(rows, self.gate_up, offs=ends))
        return F.grouped_mm(inner, self.down, offs=ends)


def _gated(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate).mul_(up)


# Brings rows, sorted by slot, to their experts and back; the last argument runs while they travel.
Carry = Callable[[Experts, Tensor, Callable[[], None]], Tensor]


class Exchange(Protocol):
    """How the rows of one layer travel."""

    def __call__(self, slots: Tensor) -> tuple[Tensor, Carry]:
        """slots [rows]: the first slot of each row's expert. The slot that computes each row, and what carries them."""

    def place(self, slots: tuple[int, ...]) -> None:
        """The expert in each slot is another from now on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeLayer:
    config: ModelConfig
    router: Tensor  # [hidden, E] float32
    bias: Tensor  # [E] float32, steers the choice only
    slot_of: Tensor  # [E] the first slot of each expert
    experts: Experts
    shared: GatedFfn | None
    exchange: Exchange

    def add_to(self, x: Tensor, h: Tensor) -> Tensor:
        """x += experts(h) + shared(h), both [T, hidden]. The slots [T * K] that computed the rows."""
        chosen, weights = self.route(h)
        slots, carry = self.exchange(self.slot_of[chosen.flatten()])
        order = slots.argsort(stable=True)
        out = carry(self.experts, h.index_select(0, order // self.config.top_k), lambda: self._share(x, h))
        back = torch.empty_like(out).index_copy_(0, order, out).view(*chosen.shape, h.shape[1])
        x.unsqueeze(1).baddbmm_(weights.to(h.dtype).unsqueeze(1), back)
        return slots

    def route(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Chosen experts [T, K] and their weights, in float32 whatever the model's dtype."""
        scores = torch.sigmoid(h.float() @ self.router)
        chosen = torch.topk(self._eligible(scores + self.bias), self.config.top_k, sorted=False).indices
        weights = scores.gather(1, chosen)
        if self.config.norm_top_k:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return chosen, weights * self.config.routed_scale

    def _eligible(self, scores: Tensor) -> Tensor:
        """Only the experts of the best groups; a group is as good as its two best experts together."""
        groups, top = self.config.groups, self.config.top_groups
        if top == groups:
            return scores
        grouped = scores.view(len(scores), groups, scores.shape[1] // groups)
        best = grouped.topk(2).values.sum(-1).topk(top, sorted=False).indices
        closed = torch.ones(len(scores), groups, dtype=torch.bool, device=scores.device).scatter_(1, best, False)
        return grouped.masked_fill(closed[:, :, None], float("-inf")).view_as(scores)

    def _share(self, x: Tensor, h: Tensor) -> None:
        if self.shared is not None:
            self.shared.add_to(x, h)
