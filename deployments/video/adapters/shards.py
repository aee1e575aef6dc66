"""Context parallelism: each rank computes some tokens of a forward, and attends to the keys and values of all.

Tokens are cut into runs, one per rank, which differ by one at most. A layer gathers two tensors of keys and values,
[B, tokens, width] each, while queries are made; the velocity is gathered at the end. All ranks have all the weights.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deployments.video.adapters.part import attended, narrow, turned

if TYPE_CHECKING:
    from torch import Tensor


class Shard:
    """The run of tokens of one rank, in whatever forward is under way. The process group must be there by then."""

    def __init__(self, rank: int, ranks: int) -> None:
        self._rank, self._ranks = rank, ranks
        self._tokens = 0

    def of(self, states: "Tensor", dim: int) -> "Tensor":
        self._tokens = states.shape[dim]
        return states.tensor_split(self._ranks, dim)[self._rank]

    def whole(self, own: "Tensor") -> "Tensor":
        return self.gathering(own)()

    def gathering(self, own: "Tensor") -> "Callable[[], Tensor]":
        """Begins to gather [B, own, ...]; what is returned waits for [B, tokens, ...]."""
        import torch
        import torch.distributed as dist

        least, longer = divmod(self._tokens, self._ranks)  # as tensor_split cuts
        most = least + (longer > 0)
        rows = own.movedim(1, 0)
        if len(rows) == most:
            sent = rows.contiguous()
        else:  # all must send alike
            sent = rows.new_zeros(most, *rows.shape[1:])
            sent[: len(rows)] = rows
        got = sent.new_empty(self._ranks * most, *sent.shape[1:])
        travel = dist.all_gather_single(got, sent, async_op=True)

        def gathered() -> "Tensor":
            travel.wait()
            if not longer:
                return got.movedim(0, 1)
            runs = got.view(self._ranks, most, *got.shape[1:])
            return torch.cat([runs[:longer].flatten(0, 1), runs[longer:, :least].flatten(0, 1)]).movedim(0, 1)

        return gathered


def share(model: Any, shard: Shard) -> None:
    """From now on each forward of a transformer is one of all ranks, with the same arguments."""
    if hasattr(model, "transformer_blocks"):
        _narrow_ltx(model, shard)
        blocks, query_or_key = model.transformer_blocks, _turned_ltx
    else:
        narrow(model, shard)
        blocks, query_or_key = (*model.blocks, *getattr(model, "vace_blocks", ())), turned
    for block in blocks:
        block.attn1.set_processor(_Gathering(shard, query_or_key))


class _Gathering:
    """Self-attention of own queries over all keys; it has no mask."""

    def __init__(self, shard: Shard, query_or_key: "Callable[..., Tensor]") -> None:
        self._shard, self._query_or_key = shard, query_or_key

    def __call__(
        self, attn: Any, hidden: "Tensor", _text: None = None, _mask: None = None, rotary: Any = None, **_: Any
    ) -> Any:
        key = self._shard.gathering(self._query_or_key(hidden, attn.to_k, attn.norm_k, attn.heads, rotary))
        value = self._shard.gathering(attn.to_v(hidden).unflatten(2, (attn.heads, -1)))
        query = self._query_or_key(hidden, attn.to_q, attn.norm_q, attn.heads, rotary)
        return attended(attn, query, key(), value())


def _narrow_ltx(model: Any, shard: Shard) -> None:
    def places(_module: Any, _args: Any, rotary: "tuple[Tensor, Tensor]") -> "tuple[Tensor, Tensor]":
        return shard.of(rotary[0], 1), shard.of(rotary[1], 1)

    def times(_module: Any, args: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return (shard.of(args[0].unflatten(0, (named["batch_size"], -1)), 1).flatten(), *args[1:]), named

    model.rope.register_forward_hook(places)
    model.proj_in.register_forward_hook(lambda _module, _args, embedded: shard.of(embedded, 1))
    model.time_embed.register_forward_pre_hook(times, with_kwargs=True)
    model.proj_out.register_forward_hook(lambda _module, _args, own: shard.whole(own))


def _turned_ltx(hidden: "Tensor", project: Any, norm: Any, heads: int, rotary: "tuple[Tensor, Tensor]") -> "Tensor":
    """As LTXVideoAttnProcessor makes them."""
    from diffusers.models.transformers.transformer_ltx import apply_rotary_emb

    states: Tensor = apply_rotary_emb(norm(project(hidden)), rotary)
    return states.view(*states.shape[:2], heads, -1)
