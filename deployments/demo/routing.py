"""What the routers of a mixture choose, and which experts a domain owns."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM

Routed = tuple[torch.Tensor, torch.Tensor]


@contextmanager
def router_logits(model: Glm4MoeForCausalLM) -> Iterator[list[Routed]]:
    """Filled by every forward pass: per mixture layer the logits [tokens, experts] and the picks [tokens, 2]."""
    seen: list[Routed] = []
    gates = [layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, "gate")]
    hooks = [gate.register_forward_hook(lambda _m, _i, out: seen.append((out[0], out[2]))) for gate in gates]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def expert_domains(config: Glm4MoeConfig) -> dict[str, list[int]]:
    """The experts of each domain, as the checkpoint's own key says."""
    return dict(config.expert_domains)
