"""Attention over blocks is attention: wherever the blocks lie, and by either formula."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deployments.engines.torch_engine.kv import (
    BLOCK_TOKENS,
    PagedKV,
    attend_anywhere,
    attend_on_cpu,
    chunk_attention,
    decode_attention,
    on,
)
from deployments.engines.torch_engine.schedule import Chunk

KV_HEADS, GROUP, DIM, BLOCKS = 2, 3, 16, 40
LENGTHS = np.array([1, 32, 33, 100])
DENSE = [[0], [1], [2, 3], [4, 5, 6, 7]]
SPARSE = [[39], [3], [20, 8], [31, 0, 12, 25]]


def filled(tables: list[list[int]]) -> tuple[PagedKV, list[torch.Tensor]]:
    """A cache with random KV [2, KV_HEADS, length, DIM] of each sequence."""
    generator = torch.Generator().manual_seed(3)
    kv = PagedKV((1, BLOCKS, KV_HEADS, DIM), torch.float32, "cpu")
    written = []
    for table, length in zip(tables, LENGTHS, strict=True):
        rows = torch.randn(int(length), 2, KV_HEADS, DIM, generator=generator)
        position = torch.arange(int(length))
        kv.write(0, (torch.tensor(table)[position // BLOCK_TOKENS], position % BLOCK_TOKENS), rows)
        written.append(rows.permute(1, 2, 0, 3))
    return kv, written


def padded(tables: list[list[int]]) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    return np.array([table + [0] * (BLOCKS - len(table)) for table in tables])


@pytest.mark.parametrize("tables", [DENSE, SPARSE], ids=["dense", "sparse"])
def test_decoding_attends_to_the_tokens_of_its_sequence_alone(tables: list[list[int]]) -> None:
    kv, written = filled(tables)
    q = torch.randn(len(tables), KV_HEADS, GROUP, DIM)
    attention = decode_attention(padded(tables), LENGTHS, kv.pool)
    assert (attention.blocks is None) == (tables is DENSE)
    out = attention(q, kv.pool[0], 0.3)
    for row, (keys, values) in enumerate(written):
        alone = F.scaled_dot_product_attention(q[row], keys, values, scale=0.3)
        torch.testing.assert_close(out[row], alone.flatten())


def test_a_chunk_attends_to_the_prompt_before_it_and_to_itself() -> None:
    kv, written = filled(SPARSE)
    chunk = Chunk(place=0, start=40, tokens=30, last=False)
    q = torch.randn(chunk.tokens, KV_HEADS, GROUP, DIM)
    blocks = np.array(SPARSE[3][:3])  # 70 tokens
    out = chunk_attention(chunk, 0, blocks, GROUP, kv.pool)(q, kv.pool[0], 0.3)
    keys, values = written[3]
    for row in range(chunk.tokens):
        seen = chunk.start + row + 1
        alone = F.scaled_dot_product_attention(q[row], keys[:, :seen], values[:, :seen], scale=0.3)
        torch.testing.assert_close(out[row], alone.flatten())


def test_both_formulas_are_the_same_attention() -> None:
    q, keys, values = torch.randn(5, 2, 3, 16), torch.randn(5, 2, 32, 16), torch.randn(5, 2, 32, 16)
    mask = torch.zeros(5, 1, 1, 32)
    mask[1, ..., 7:] = mask[4, ..., 1:] = -torch.inf
    for ours, theirs in zip(
        attend_anywhere(q, keys, values, mask, 0.2), attend_on_cpu(q, keys, values, mask, 0.2), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_the_cache_begins_at_zero_in_any_dtype() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        pool = PagedKV((1, 2, 1, 4), dtype, "cpu").pool
        assert pool.dtype == dtype
        assert not pool.any()
    assert on(torch.device("cpu"), np.arange(3)).tolist() == [0, 1, 2]
