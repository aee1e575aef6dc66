"""Fast edits: most steps compute the marked tokens alone, against keys and values of the others from a full step.

The first step is full and records, per layer and stream of guidance, the keys and values of every token; so is every
`refresh_steps`-th one, by its index. Between them the context does not see the edit: an approximation, whose error
tests/bench/edit_bench.py measures. What is kept takes 2 x layers x tokens x width numbers, twice with guidance.
It works by hooks on parts of WanTransformer3DModel, so that subclasses keep their own forward.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from deployments.video.adapters.job import Job

Layers = list["tuple[Tensor, Tensor]"]  # keys and values [1, tokens, heads, width], rotated


def forward(
    model: Any, job: "Job", stream: str, inputs: "tuple[Tensor, Tensor, Tensor]", refresh_steps: int
) -> "Tensor":
    """From latents, times and text the velocity [1, C, F, H, W]; of meaning only where the job's mask is set."""
    import torch

    assert job.tokens is not None
    job.memory = job.memory or {}
    recorded: dict[str, tuple[int, Layers]] = job.memory
    known = recorded.get(stream)
    stage = id(model)
    if known is None or known[0] != stage or job.done % refresh_steps == 0:
        layers: Layers = []
        with _attention(model, layers, None):
            velocity = model(*inputs, return_dict=False)[0]
        recorded[stream] = (stage, layers)
        return velocity  # type: ignore[no-any-return]
    active = torch.from_numpy(job.tokens).flatten().nonzero()[:, 0].to(inputs[0].device)
    with _attention(model, known[1], active), _only(model, active):
        return model(*inputs, return_dict=False)[0]  # type: ignore[no-any-return]


@contextmanager
def _attention(model: Any, layers: Layers, active: "Tensor | None") -> Iterator[None]:
    """Self-attention that records, or that answers for the tokens that are not active from what was recorded."""
    before = [block.attn1.processor for block in model.blocks]
    for at, block in enumerate(model.blocks):
        block.attn1.set_processor(_Remembering(layers, at, active))
    try:
        yield
    finally:
        for block, processor in zip(model.blocks, before, strict=True):
            block.attn1.set_processor(processor)


class _Remembering:
    """WanAttnProcessor's self-attention. Every call of it has queries of the active tokens and keys of all."""

    def __init__(self, layers: Layers, at: int, active: "Tensor | None") -> None:
        self._layers, self._at, self._active = layers, at, active

    def __call__(self, attn: Any, hidden: "Tensor", _text: None, _mask: None, rotary: "tuple[Tensor, Tensor]") -> Any:
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        query, key = (
            _rotated(norm(project(hidden)).unflatten(2, (attn.heads, -1)), *rotary)
            for norm, project in ((attn.norm_q, attn.to_q), (attn.norm_k, attn.to_k))
        )
        value = attn.to_v(hidden).unflatten(2, (attn.heads, -1))
        if self._active is None:
            self._layers.append((key, value))
        else:
            keys, values = self._layers[self._at]
            keys[:, self._active], values[:, self._active] = key, value
            key, value = keys, values
        seen = dispatch_attention_fn(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False)
        return attn.to_out[1](attn.to_out[0](seen.flatten(2, 3).type_as(query)))


def _rotated(states: Any, cosines: "Tensor", sines: "Tensor") -> "Tensor":
    """As in WanAttnProcessor."""
    import torch

    first, second = states.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cosines[..., 0::2], sines[..., 1::2]
    rotated = torch.empty_like(states)
    rotated[..., 0::2] = first * cos - second * sin
    rotated[..., 1::2] = first * sin + second * cos
    return rotated.type_as(states)


@contextmanager
def _only(model: Any, active: "Tensor") -> Iterator[None]:
    """Between the embedding of patches and the last projection there are the active tokens alone."""
    width = active.numel()
    tokens = 0

    def patches(_module: Any, _args: Any, embedded: Any) -> Any:
        nonlocal tokens
        flat = embedded.flatten(2)
        tokens = flat.shape[2]
        return flat[:, :, active].unflatten(2, (width, 1, 1))

    def places(_module: Any, _args: Any, rotary: "tuple[Tensor, Tensor]") -> "tuple[Tensor, Tensor]":
        return rotary[0][:, active], rotary[1][:, active]

    def times(_module: Any, args: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        each = args[0].unflatten(0, (-1, named["timestep_seq_len"]))[:, active]
        return (each.flatten(), *args[1:]), named | {"timestep_seq_len": width}

    def everywhere(_module: Any, _args: Any, projected: "Tensor") -> "Tensor":
        whole = projected.new_zeros(projected.shape[0], tokens, projected.shape[2])
        whole[:, active] = projected
        return whole

    with ExitStack() as hooks:
        for handle in (
            model.rope.register_forward_hook(places),
            model.patch_embedding.register_forward_hook(patches),
            model.condition_embedder.register_forward_pre_hook(times, with_kwargs=True),
            model.proj_out.register_forward_hook(everywhere),
        ):
            hooks.callback(handle.remove)
        yield
