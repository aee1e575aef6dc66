"""The paged KV cache of one rank, and attention over it.

One pool holds all layers: [layers, blocks, K or V, kv_heads, block_tokens, head_dim], so that what one head reads of a
block is one run of memory. Decoding attends to every block as a batch row of its own and merges the blocks of a
sequence by their log-sum-exp (split-K, as in Flash-Decoding, Dao et al. 2023): ragged lengths need no padding, and
where the used blocks lie densely in the pool, not even a copy. A group of query heads that shares a KV head is laid
out as that many queries of one head.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from deployments.engines.torch_engine.schedule import Chunk

BLOCK_TOKENS = 32
IntArray = NDArray[np.int64]


def blocks_for(tokens: int) -> int:
    """As many whole blocks as hold so many tokens."""
    return -(-tokens // BLOCK_TOKENS)


class PagedKV:
    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: str) -> None:
        """shape: layers, blocks, kv_heads, head_dim. Zeroed: what is masked must still be finite."""
        layers, blocks, kv_heads, head_dim = shape
        full = (layers, blocks, 2, kv_heads, BLOCK_TOKENS, head_dim)
        self.pool = _lazily_zero(full, dtype) if device == "cpu" else torch.zeros(full, dtype=dtype, device=device)

    def write(self, layer: int, slots: tuple[Tensor, Tensor], kv: Tensor) -> None:
        """kv [rows, 2, kv_heads, head_dim] into slots: the block, and the offset in it, of each row."""
        block, offset = slots
        self.pool[layer][block, :, :, offset] = kv


def _lazily_zero(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros that take memory only once written (calloc), which torch.zeros on a CPU does not promise."""
    same_size = np.dtype(f"i{dtype.itemsize}")
    return torch.from_numpy(np.zeros(shape, same_size)).view(dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeAttention:
    """One query token per sequence. N rows of blocks, B sequences of at most M blocks.

    `blocks` is None where rows 0..N of the pool are taken as they lie, unused ones computed in vain.
    """

    blocks: Tensor | None  # [N]
    rows: int  # N
    owner: Tensor  # [N] the sequence of each row
    mask: Tensor  # [N, 1, 1, BLOCK_TOKENS] added to scores
    table: Tensor  # [B, M] the rows of each sequence
    padding: Tensor  # [B, M, 1, 1] 0, or -inf where there is no row

    def __call__(self, q: Tensor, pool: Tensor, scale: float) -> Tensor:
        """q [B, kv_heads, group, head_dim], pool of one layer -> [B, kv_heads * group * head_dim]."""
        kv = pool[: self.rows] if self.blocks is None else pool.index_select(0, self.blocks)
        attend = attend_on_cpu if q.device.type == "cpu" else attend_anywhere
        parts, logsumexp = attend(q.index_select(0, self.owner), kv[:, 0], kv[:, 1], self.mask, scale)
        share = torch.softmax(logsumexp[self.table] + self.padding, 1)  # [B, M, kv_heads, group]
        return (parts[self.table] * share.unsqueeze(-1)).sum(1).flatten(1).to(q.dtype)


def decode_attention(tables: IntArray, lengths: IntArray, like: Tensor) -> DecodeAttention:
    """tables [B, any] of pool blocks; the first lengths [B] tokens of each sequence are attended to."""
    counts = -(-lengths // BLOCK_TOKENS)
    tables = tables[:, : counts.max()]
    used = np.arange(tables.shape[1]) < counts[:, None]
    sequence, index = used.nonzero()
    filled = np.minimum(lengths[sequence] - index * BLOCK_TOKENS, BLOCK_TOKENS)
    blocks = tables[used]
    rows = int(blocks.max()) + 1
    dense = rows <= 2 * len(blocks)
    row = blocks if dense else np.arange(len(blocks))
    rows = rows if dense else len(blocks)
    owner, fill = np.zeros(rows, np.int64), np.full(rows, BLOCK_TOKENS)
    owner[row], fill[row] = sequence, filled
    table = np.zeros_like(tables)
    table[used] = row
    beyond = np.arange(BLOCK_TOKENS) >= fill[:, None]
    return DecodeAttention(
        blocks=None if dense else on(like.device, blocks),
        rows=rows,
        owner=on(like.device, owner),
        mask=_forbid(beyond[:, None, None, :], like),
        table=on(like.device, table),
        padding=_forbid(~used[:, :, None, None], like).float(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkAttention:
    """A run of prompt tokens of one sequence, in the rows first .. last of the step."""

    first: int
    last: int
    blocks: Tensor  # [M] blocks that hold the prompt up to the end of the chunk
    mask: Tensor  # [rows * group, M * BLOCK_TOKENS] added to scores

    def __call__(self, q: Tensor, pool: Tensor, scale: float) -> Tensor:
        """q [rows, kv_heads, group, head_dim] -> [rows, kv_heads * group * head_dim]."""
        rows, kv_heads, group, head_dim = q.shape
        kv = pool[self.blocks].permute(1, 2, 0, 3, 4).flatten(2, 3)  # [2, kv_heads, tokens, head_dim]
        grouped = q.transpose(0, 1).reshape(1, kv_heads, rows * group, head_dim)
        out = F.scaled_dot_product_attention(grouped, kv[:1], kv[1:], self.mask, scale=scale)
        return out.view(kv_heads, rows, group * head_dim).transpose(0, 1).reshape(rows, -1)


def chunk_attention(chunk: Chunk, first: int, blocks: IntArray, group: int, like: Tensor) -> ChunkAttention:
    """The token at position start + i sees all positions up to its own; `group` query heads share a KV head."""
    position = np.arange(chunk.start, chunk.start + chunk.tokens).repeat(group)
    hidden = np.arange(len(blocks) * BLOCK_TOKENS) > position[:, None]
    last = first + chunk.tokens
    return ChunkAttention(first=first, last=last, blocks=on(like.device, blocks), mask=_forbid(hidden, like))


def on(device: torch.device, array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array).to(device)


def _forbid(where: NDArray[np.bool_], like: Tensor) -> Tensor:
    """What to add to scores: 0, or -inf where attention is forbidden."""
    return torch.zeros(where.shape, dtype=like.dtype, device=like.device).masked_fill_(
        on(like.device, where), -math.inf
    )


def attend_on_cpu(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Softmax attention and the log-sum-exp of its scores, which the public function does not return."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, logsumexp = flash(q, keys, values, 0.0, False, attn_mask=mask, scale=scale)
    return out, logsumexp


def attend_anywhere(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The same by its definition."""
    scores = (q @ keys.transpose(-1, -2)).float() * scale + mask
    logsumexp = scores.logsumexp(-1)
    return torch.exp(scores - logsumexp.unsqueeze(-1)).to(values.dtype) @ values, logsumexp
