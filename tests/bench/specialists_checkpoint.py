"""A glm4_moe checkpoint whose tokens belong to domains, and whose experts do not fit into the cache.

Weights are random but for what makes domains. Four dimensions of the hidden state are kept for them: an embedding has
a mark in that of its token's domain, and no attention or expert writes there, so that the mark of the last token stands
as it was in every layer. The head adds to the logits of tokens of the marked domain, so that an answer stays in its
domain, and else nearly draws. A router scores its domain's experts higher by an offset; what remains of a score is the
random product with the other dimensions, which differs from token to token. The offset is found by bisection, layer by
layer, on the states that this very model has, so that the stated share of picks falls on the domain's own experts.
"""

import shutil
from pathlib import Path

import torch
from bench.specialists_model import DOMAINS
from torch import Tensor
from torch_checkpoint import TINY
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM

EXPERTS, TOP_K = 64, 4
HIDDEN = 1024
VOCABULARY = 2048
MARKS = 3  # the tokens that no domain has
MARK = 8.0
TOKENIZER = Path(__file__).parents[2] / "deployments" / "demo" / "checkpoints" / "ultra"
SHAPE = TINY | {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": HIDDEN,
    "num_attention_heads": 8,
    "head_dim": 64,
    "n_routed_experts": EXPERTS,
    "num_experts_per_tok": TOP_K,
    "initializer_range": 0.02,
}


def expert_ffn(layer_bytes: float) -> int:
    """The width at which one layer's experts, three float32 matrices each, are at least so large."""
    step = EXPERTS * 3 * HIDDEN * 4 * 64
    return 64 * max(1, -(-int(layer_bytes) // step))


def domain_tokens(domain: int) -> Tensor:
    return torch.arange(MARKS + domain, VOCABULARY, DOMAINS)


def save(folder: Path, ffn: int, concentration: float) -> None:
    torch.manual_seed(0)
    model = Glm4MoeForCausalLM(Glm4MoeConfig(**{**SHAPE, "moe_intermediate_size": ffn}))
    with torch.inference_mode():
        _mark(model)
        prompts = torch.stack([domain_tokens(d)[torch.randint(500, (48,))] for d in range(DOMAINS) for _ in range(2)])
        for layer in model.model.layers[1:]:
            _specialise(model, layer.mlp.gate, prompts, concentration)
    model.bfloat16().save_pretrained(folder)  # half the file, which the engine maps into its memory
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TOKENIZER / name, folder)


def _mark(model: Glm4MoeForCausalLM) -> None:
    for name, weight in model.named_parameters():
        if "o_proj" in name or "down_proj" in name:
            weight[..., :DOMAINS, :] = 0.0  # [out, in], experts before them where transformers fuses those
    embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
    embedding.normal_()
    embedding[:, :DOMAINS] = 0.0
    head[:, :DOMAINS] = -4.0
    for domain in range(DOMAINS):
        tokens = domain_tokens(domain)
        embedding[tokens, domain] = MARK
        head[tokens, domain] = 4.0


def _specialise(model: Glm4MoeForCausalLM, gate: torch.nn.Module, prompts: Tensor, concentration: float) -> None:
    seen: list[Tensor] = []
    hook = gate.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().view(-1, HIDDEN)))
    model.model(prompts)
    hook.remove()
    states, weight = seen[0], gate.weight
    assert isinstance(weight, Tensor)
    weight.normal_(std=HIDDEN**-0.5)
    weight[:, :DOMAINS] = 0.0
    domain = states[:, :DOMAINS].argmax(1)
    noise = states @ weight.T
    own = torch.arange(EXPERTS) // (EXPERTS // DOMAINS) == domain[:, None]
    low, high = 0.0, 20.0
    for _ in range(30):
        offset = (low + high) / 2
        share = own.gather(1, (noise + offset * own).topk(TOP_K).indices).float().mean()
        low, high = (offset, high) if share < concentration else (low, offset)
    mark = states[:, :DOMAINS].max(1).values.mean()
    for d in range(DOMAINS):
        weight[d * EXPERTS // DOMAINS : (d + 1) * EXPERTS // DOMAINS, d] = low / mark
