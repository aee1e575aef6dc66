"""Fast edits: most steps compute the marked tokens alone, against keys and values of the others from a full step.

The first step is full and records, per layer and stream of guidance, the keys and values of every token; so is every
`refresh_steps`-th one, by its index. Between them the context does not see the edit: an approximation, whose error
tests/bench/edit_bench.py measures. What is kept takes 2 x layers x tokens x width numbers, twice with guidance.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from deployments.video.adapters.part import attended, narrow, turned

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
        query = turned(hidden, attn.to_q, attn.norm_q, attn.heads, rotary)
        key = turned(hidden, attn.to_k, attn.norm_k, attn.heads, rotary)
        value = attn.to_v(hidden).unflatten(2, (attn.heads, -1))
        if self._active is None:
            self._layers.append((key, value))
        else:
            keys, values = self._layers[self._at]
            keys[:, self._active], values[:, self._active] = key, value
            key, value = keys, values
        return attended(attn, query, key, value)


class _Active:
    """Of the tokens some; the others come out as zeros."""

    def __init__(self, active: "Tensor") -> None:
        self._active = active
        self._tokens = 0

    def of(self, states: "Tensor", dim: int) -> "Tensor":
        self._tokens = states.shape[dim]
        return states.index_select(dim, self._active)

    def whole(self, own: "Tensor") -> "Tensor":
        whole = own.new_zeros(own.shape[0], self._tokens, own.shape[2])
        whole[:, self._active] = own
        return whole


@contextmanager
def _only(model: Any, active: "Tensor") -> Iterator[None]:
    with ExitStack() as hooks:
        for handle in narrow(model, _Active(active)):
            hooks.callback(handle.remove)
        yield
