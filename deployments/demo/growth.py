"""A tier grown from the one below: the same trunk, more experts (sparse upcycling, Komatsuzaki et al. 2022).

An expert starts as a copy of one of the same domain, or where the smaller tier lacks that specialist, of a general one.
Its router row gets a little noise, so that copies part.
"""

import torch
from transformers import Glm4MoeForCausalLM

NOISE = 0.02


def sources(small: dict[str, list[int]], large: dict[str, list[int]]) -> list[int]:
    """For every expert of the larger tier the one of the smaller tier that it starts from."""
    chosen: dict[int, int] = {}
    for domain, experts in large.items():
        origin = small.get(domain, small["general"])
        chosen.update({expert: origin[i % len(origin)] for i, expert in enumerate(experts)})
    return [chosen[expert] for expert in range(len(chosen))]


def grow(small: Glm4MoeForCausalLM, large: Glm4MoeForCausalLM) -> None:
    """Write the weights of the smaller model into the larger one, which differs in its experts alone."""
    origin = sources(small.config.expert_domains, large.config.expert_domains)
    weights = {name: tensor.float() for name, tensor in small.state_dict().items()}
    for name, tensor in weights.items():
        if ".experts." in name or ".mlp.gate." in name:
            weights[name] = tensor[origin]
        if name.endswith(".mlp.gate.weight"):
            weights[name] += NOISE * torch.randn_like(weights[name])
    large.load_state_dict(weights)
