"""A forward of some of its tokens alone: hooks on parts of a transformer, so that subclasses keep their own forward.

Between the embedding of patches and the last projection there are those tokens; what comes out is whole again.
Parts have the names of WanTransformer3DModel and its kin.
"""

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.hooks import RemovableHandle


class Part(Protocol):
    def of(self, states: "Tensor", dim: int) -> "Tensor":
        """From states of all tokens along `dim`, those of its own."""

    def whole(self, own: "Tensor") -> "Tensor":
        """From [B, own tokens, C] to [B, all tokens, C]."""


def narrow(model: Any, part: Part) -> "list[RemovableHandle]":
    """Until the handles are removed."""

    def patches(_module: Any, _args: Any, embedded: "Tensor") -> "Tensor":
        return part.of(embedded.flatten(2), 2)[..., None, None]  # which the model flattens again

    def places(_module: Any, _args: Any, rotary: "tuple[Tensor, Tensor]") -> "tuple[Tensor, Tensor]":
        return part.of(rotary[0], 1), part.of(rotary[1], 1)

    def times(_module: Any, args: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        if named.get("timestep_seq_len") is None:  # one time for all tokens
            return None
        own = part.of(args[0].unflatten(0, (-1, named["timestep_seq_len"])), 1)
        return (own.flatten(), *args[1:]), named | {"timestep_seq_len": own.shape[1]}

    names = ("patch_embedding", "vace_patch_embedding")
    embeddings = [getattr(model, name) for name in names if hasattr(model, name)]
    return [
        model.rope.register_forward_hook(places),
        *(each.register_forward_hook(patches) for each in embeddings),
        model.condition_embedder.register_forward_pre_hook(times, with_kwargs=True),
        model.proj_out.register_forward_hook(lambda _module, _args, own: part.whole(own)),
    ]


def turned(hidden: "Tensor", project: Any, norm: Any, heads: int, rotary: "tuple[Tensor, Tensor]") -> "Tensor":
    """Queries or keys [B, tokens, heads, width], as WanAttnProcessor makes them."""
    import torch

    states = norm(project(hidden)).unflatten(2, (heads, -1))
    first, second = states.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rotary[0][..., 0::2], rotary[1][..., 1::2]
    rotated = torch.empty_like(states)
    rotated[..., 0::2] = first * cos - second * sin
    rotated[..., 1::2] = first * sin + second * cos
    return rotated.type_as(states)


def attended(attn: Any, query: "Tensor", key: "Tensor", value: "Tensor") -> Any:
    """Self-attention and its output projection, [B, tokens, width]."""
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    seen = dispatch_attention_fn(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False)
    return attn.to_out[1](attn.to_out[0](seen.flatten(2, 3).type_as(query)))
