"""The weights of one rank, from the tensors of a checkpoint to the fused form that the model computes with.

Every rank holds attention, norms, routers, shared experts and embeddings; routed experts are split over the ranks.
"""

import torch
from torch import Tensor

from cluster.experts import Placement
from deployments.engines.torch_engine.checkpoint import ModelConfig, Tensors
from deployments.engines.torch_engine.exchange import first_slots
from deployments.engines.torch_engine.model import Layer, Model
from deployments.engines.torch_engine.moe import Exchange, Experts, GatedFfn, MoeLayer


def load(config: ModelConfig, tensors: Tensors, split: tuple[Placement, int], exchanges: tuple[Exchange, ...]) -> Model:
    """split: where experts lie, and which rank this is. exchanges: how each layer with experts brings rows to them."""
    layers = []
    for index in range(config.layers):
        moe = index - config.dense_layers
        ffn = _dense(config, tensors, index) if moe < 0 else _moe(config, tensors, index, split, exchanges[moe])
        layers.append(_layer(config, tensors, index, ffn))
    embedding = tensors.get("model.embed_tokens.weight", config.vocab, config.hidden)
    head = embedding if config.tied_head else tensors.get("lm_head.weight", config.vocab, config.hidden)
    return Model(config, layers, (embedding, tensors.get("model.norm.weight", config.hidden), _turned(head)))


def _layer(config: ModelConfig, tensors: Tensors, index: int, ffn: GatedFfn | MoeLayer) -> Layer:
    prefix = f"model.layers.{index}."
    hidden, dim = config.hidden, config.head_dim
    heads = {"q": config.heads, "k": config.kv_heads, "v": config.kv_heads}
    attention = prefix + "self_attn."
    qkv = [tensors.get(f"{attention}{part}_proj.weight", n * dim, hidden) for part, n in heads.items()]
    fused = torch.cat([_paired(qkv[0], config), _paired(qkv[1], config), qkv[2]])
    bias = qk_norm = None
    if config.attention_bias:
        parts = [tensors.get(f"{attention}{part}_proj.bias", n * dim) for part, n in heads.items()]
        bias = torch.cat([_paired(parts[0], config), _paired(parts[1], config), parts[2]])
    if config.qk_norm:
        norms = [_paired(tensors.get(f"{attention}{part}_norm.weight", dim), config) for part in ("q", "k")]
        qk_norm = torch.cat([norms[0].expand(config.heads, -1), norms[1].expand(config.kv_heads, -1)])
    return Layer(
        before_attention=tensors.get(prefix + "input_layernorm.weight", hidden),
        qkv=_turned(fused),
        qkv_bias=bias,
        qk_norm=qk_norm,
        out=_turned(tensors.get(attention + "o_proj.weight", hidden, config.heads * dim)),
        before_ffn=tensors.get(prefix + "post_attention_layernorm.weight", hidden),
        ffn=ffn,
    )


def _dense(config: ModelConfig, tensors: Tensors, index: int) -> GatedFfn:
    return _ffn(tensors, f"model.layers.{index}.mlp.", config.hidden, config.dense_ffn)


def _moe(
    config: ModelConfig, tensors: Tensors, index: int, split: tuple[Placement, int], exchange: Exchange
) -> MoeLayer:
    prefix, (placement, rank) = f"model.layers.{index}.mlp.", split
    slots = placement.slots[index - config.dense_layers]
    own = slots[rank * placement.room : (rank + 1) * placement.room]
    held = [_ffn(tensors, f"{prefix}experts.{expert}.", config.hidden, config.expert_ffn) for expert in own]
    router = tensors.get(prefix + "gate.weight", config.experts, config.hidden, dtype=torch.float32)
    shared_ffn = config.expert_ffn * config.shared_experts
    return MoeLayer(
        config=config,
        router=_turned(router),
        bias=tensors.get(prefix + "gate.e_score_correction_bias", config.experts, dtype=torch.float32),
        slot_of=torch.from_numpy(first_slots(slots)).to(router.device),
        experts=Experts(
            gate_up=torch.stack([expert.gate_up for expert in held]), down=torch.stack([expert.down for expert in held])
        ),
        shared=_ffn(tensors, prefix + "shared_experts.", config.hidden, shared_ffn) if shared_ffn else None,
        exchange=exchange,
    )


def _ffn(tensors: Tensors, prefix: str, hidden: int, ffn: int) -> GatedFfn:
    gate, up = (tensors.get(f"{prefix}{part}_proj.weight", ffn, hidden) for part in ("gate", "up"))
    down = tensors.get(f"{prefix}down_proj.weight", hidden, ffn)
    return GatedFfn(gate_up=_turned(torch.cat([gate, up])), down=_turned(down))


def _turned(weight: Tensor) -> Tensor:
    """From [out, in] as saved to [in, out]."""
    return weight.t().contiguous()


def _paired(weight: Tensor, config: ModelConfig) -> Tensor:
    """Of rows [heads * head_dim, ...], rotated dimension j and its partner j + rotary_dim / 2 become neighbours."""
    half = config.rotary_dim // 2
    paired = torch.arange(config.rotary_dim).view(2, half).t().flatten()
    order = torch.cat([paired, torch.arange(config.rotary_dim, config.head_dim)]).to(weight.device)
    return weight.view(-1, config.head_dim, *weight.shape[1:])[:, order].view(weight.shape)
