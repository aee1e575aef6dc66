"""GLM-4-MoE as one pass over the flattened tokens of a step, decodes and prompt chunks alike.

Weights are fused where they share an input, and kept [in, out]. The rotated dimensions of queries and keys are stored
as adjacent pairs, which leaves their products as they are and makes the rotation one complex multiplication.
T rows of a step; decoding rows come first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deployments.engines.torch_engine.checkpoint import ModelConfig
from deployments.engines.torch_engine.kv import ChunkAttention, DecodeAttention, IntArray, PagedKV
from deployments.engines.torch_engine.moe import GatedFfn, MoeLayer


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One step of one rank. Rows 0 .. len(decode.table) are decoding sequences, the rest is covered by the chunks."""

    places: IntArray  # [T] the sequence of each row
    tokens: Tensor  # [T]
    positions: Tensor  # [T]
    slots: tuple[Tensor, Tensor]  # [T] the block, and the offset in it, where each row's KV is stored
    decode: DecodeAttention | None
    chunks: tuple[ChunkAttention, ...]
    wanted: Tensor  # rows that yield a token
    summed: tuple[slice, ...]  # runs of rows whose last hidden states are summed
    routed: list[Tensor]  # of every layer with experts, the slots [T * K] that computed the rows; filled by the pass
    sums: list[Tensor]  # float64 [hidden], of each of `summed`; filled by the pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    before_attention: Tensor  # [hidden], norm
    qkv: Tensor  # [hidden, (heads + 2 * kv_heads) * head_dim]
    qkv_bias: Tensor | None
    qk_norm: Tensor | None  # [heads + kv_heads, head_dim]
    out: Tensor  # [heads * head_dim, hidden]
    before_ffn: Tensor  # [hidden], norm
    ffn: GatedFfn | MoeLayer


class Model:
    def __init__(self, config: ModelConfig, layers: Sequence[Layer], ends: tuple[Tensor, Tensor, Tensor]) -> None:
        """ends: embedding [vocab, hidden], last norm [hidden], head [hidden, vocab]."""
        self.config, self.layers = config, tuple(layers)
        self.embedding, self.last_norm, self.head = ends
        self._rotation = _rotation(config).to(self.embedding.device)

    @property
    def moe_layers(self) -> tuple[MoeLayer, ...]:
        return tuple(layer.ffn for layer in self.layers if isinstance(layer.ffn, MoeLayer))

    def forward(self, batch: Batch, kv: PagedKV) -> Tensor:
        """Float32 logits [wanted, vocab]. The KV of all rows is stored."""
        x = self.embedding[batch.tokens]
        rotation = self._rotation[batch.positions].unsqueeze(1)
        for index, layer in enumerate(self.layers):
            x.addmm_(self._attention(layer, index, x, rotation, (batch, kv)), layer.out)
            h = self._norm(x, layer.before_ffn)
            if isinstance(layer.ffn, MoeLayer):
                batch.routed.append(layer.ffn.add_to(x, h))
            else:
                layer.ffn.add_to(x, h)
        batch.sums.extend(self._norm(x[rows], self.last_norm).double().sum(0) for rows in batch.summed)
        return (self._norm(x[batch.wanted], self.last_norm) @ self.head).float()

    def _attention(self, layer: Layer, index: int, x: Tensor, rotation: Tensor, over: tuple[Batch, PagedKV]) -> Tensor:
        batch, kv = over
        c = self.config
        h = self._norm(x, layer.before_attention)
        qkv = h @ layer.qkv if layer.qkv_bias is None else torch.addmm(layer.qkv_bias, h, layer.qkv)
        qk = qkv[:, : (c.heads + c.kv_heads) * c.head_dim].view(len(x), c.heads + c.kv_heads, c.head_dim)
        if layer.qk_norm is not None:
            torch.mul(F.rms_norm(qk, (c.head_dim,), eps=c.norm_eps), layer.qk_norm, out=qk)
        _rotate(qk[..., : c.rotary_dim], rotation)
        kv.write(index, batch.slots, qkv[:, c.heads * c.head_dim :].view(len(x), 2, c.kv_heads, c.head_dim))
        q = qkv[:, : c.heads * c.head_dim].view(len(x), c.kv_heads, c.heads // c.kv_heads, c.head_dim)
        pool, scale = kv.pool[index], c.head_dim**-0.5
        parts = [q.new_empty(0, c.heads * c.head_dim)] if not len(x) else []
        parts += [chunk(q[chunk.first : chunk.last], pool, scale) for chunk in batch.chunks]
        if batch.decode is not None:
            parts.insert(0, batch.decode(q[: len(batch.decode.table)], pool, scale))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.config.norm_eps)


def _rotation(config: ModelConfig) -> Tensor:
    """cos + i sin of position / theta^(2j / rotary_dim), complex [context, rotary_dim / 2]."""
    exponent = torch.arange(0, config.rotary_dim, 2, dtype=torch.float32) / config.rotary_dim
    angles = torch.outer(torch.arange(config.context_tokens, dtype=torch.float32), config.rope_theta**-exponent)
    return torch.polar(torch.ones_like(angles), angles)


def _rotate(heads: Tensor, rotation: Tensor) -> None:
    """In place, in float32: heads [T, any, rotary_dim] of adjacent pairs, rotation [T, 1, rotary_dim / 2]."""
    wide = heads.float()
    torch.view_as_complex(wide.view(*wide.shape[:-1], wide.shape[-1] // 2, 2)).mul_(rotation)
    if heads.dtype != torch.float32:
        heads.copy_(wide)
