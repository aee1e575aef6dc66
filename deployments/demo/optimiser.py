"""The optimiser of the small models, on float32 copies of a bfloat16 model: no update is rounded away, no pass is cast.

Muon for the matrices inside the layers, scaled to the size of AdamW's updates (Jordan et al. 2024; Liu et al. 2025,
arXiv 2502.16982); AdamW for embeddings, routers and norms.
"""

import math

import torch

MOMENTUM, DECAY, CLIP = 0.95, 0.05, 1.0
WARM_UP, FLOOR = 0.03, 0.02


def schedule(progress: float) -> float:
    """Factor of the learning rate at a progress from 0 to 1: linear warm-up, then cosine decay to FLOOR."""
    if progress < WARM_UP:
        return max(progress / WARM_UP, 0.01)
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min((progress - WARM_UP) / (1 - WARM_UP), 1.0)))


def orthogonal(update: torch.Tensor) -> torch.Tensor:
    """Near the closest matrix with orthogonal rows or columns, by five Newton-Schulz steps."""
    x: torch.Tensor = update.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x.mT if tall else x).float()


class Optimiser:
    """Owns the float32 copies; `step` reads the model's gradients, clears them and writes the model's weights."""

    def __init__(self, model: torch.nn.Module) -> None:
        named = list(model.named_parameters())
        self.live = [p for _, p in named]
        self.copies = [p.detach().clone().float() for p in self.live]
        model.bfloat16()
        inner = [p.ndim > 1 and "embed" not in name and "gate.weight" not in name for name, p in named]
        self.momenta = [torch.zeros_like(c) if i else None for c, i in zip(self.copies, inner, strict=True)]
        rest = [copy for copy, is_inner in zip(self.copies, inner, strict=True) if not is_inner]
        self.adam = torch.optim.AdamW(rest, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        for live, copy in zip(self.live, self.copies, strict=True):
            copy.grad = torch.zeros_like(copy) if live.grad is None else live.grad.float()
            live.grad = None
        torch.nn.utils.clip_grad_norm_(self.copies, CLIP)
        self.adam.param_groups[0]["lr"] = learning_rate
        self.adam.step()
        for live, copy, momentum in zip(self.live, self.copies, self.momenta, strict=True):
            if momentum is not None and copy.grad is not None:
                momentum.mul_(MOMENTUM).add_(copy.grad)
                update = orthogonal(momentum * MOMENTUM + copy.grad)
                size = 0.2 * max(copy.shape[-2:]) ** 0.5
                copy.mul_(1 - learning_rate * DECAY).sub_(update, alpha=learning_rate * size)
            live.copy_(copy)
