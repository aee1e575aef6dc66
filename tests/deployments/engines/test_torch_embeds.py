"""Vectors of prompts: those of transformers' hidden states, whoever is served beside them and on however many ranks."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch_checkpoint import save_checkpoint
from torch_group import collected, ids, nine, running
from transformers import Glm4MoeForCausalLM

from cluster.request import Generation, Piece, Sampling
from deployments.engines.torch_engine.engine import TorchEngine
from deployments.engines.torch_engine.spec import EngineSpec

LENGTHS = (1, 5, 24, 33, 100)  # within, across and at the end of KV blocks and chunks
NEAR = 1e-5


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> EngineSpec:
    folder = save_checkpoint(tmp_path_factory.mktemp("embeds"), eos_token_id=None)
    return EngineSpec(
        checkpoint=str(folder), context_tokens=256, kv_tokens=512, max_running=16, prefill_chunk_tokens=16
    )


def prompt(tokens: int) -> tuple[int, ...]:
    return tuple((11 * i + tokens) % 300 + 3 for i in range(tokens))


async def embed(engine: TorchEngine, key: str, tokens: Sequence[int]) -> Piece:
    wanted = Sampling(temperature=0, max_tokens=1)
    (piece,) = await collected(engine, Generation(request_id=key, prompt=tuple(tokens), sampling=wanted, embeds=True))
    assert piece.error is None
    return piece


async def vectors(engine: TorchEngine) -> NDArray[np.float64]:
    """All at once."""
    told = await asyncio.gather(*(embed(engine, f"v{n}", prompt(n)) for n in LENGTHS))
    return np.array([piece.vector for piece in told])


async def test_a_vector_is_the_mean_of_transformers_last_hidden_states_at_length_1(spec: EngineSpec) -> None:
    reference = Glm4MoeForCausalLM.from_pretrained(spec.checkpoint, dtype=torch.float32).model
    with torch.no_grad():
        means = [reference(torch.tensor([prompt(n)])).last_hidden_state[0].mean(0) for n in LENGTHS]
    theirs = np.array([(mean / mean.norm()).tolist() for mean in means])
    async with running(spec) as (engine, _):
        ours = await vectors(engine)
        assert engine.embeds == ours.shape[1] == 32
    np.testing.assert_allclose(ours, theirs, rtol=0.0, atol=NEAR)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1.0)


async def test_a_vector_is_the_same_alone_among_others_and_among_streams_which_it_does_not_change(
    spec: EngineSpec,
) -> None:
    async with running(spec) as (engine, _):
        alone = np.array([(await embed(engine, "a", prompt(n))).vector for n in LENGTHS])
        streams = ids(await nine(engine))
        beside, among = await asyncio.gather(nine(engine), vectors(engine))
        assert ids(beside) == streams
        np.testing.assert_allclose(among, alone, rtol=0.0, atol=NEAR)
        assert [(await embed(engine, "a", prompt(n))).vector for n in LENGTHS] == [tuple(each) for each in alone]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2])
async def test_more_ranks_make_the_same_vectors_beside_the_same_streams(spec: EngineSpec, ranks: int) -> None:
    async with running(spec) as (engine, _):
        streams, alone = ids(await nine(engine)), await vectors(engine)
    async with running(replace(spec, ranks=ranks)) as (engine, _):
        beside, among = await asyncio.gather(nine(engine), vectors(engine))
    assert ids(beside) == streams
    np.testing.assert_allclose(among, alone, rtol=0.0, atol=NEAR)


async def test_a_vector_costs_its_prompt_no_token_and_leaves_no_room_taken(spec: EngineSpec) -> None:
    async with running(spec) as (engine, _):
        steps = engine.report().steps
        piece = await embed(engine, "a", prompt(100))
        assert engine.report().steps - steps == 7  # of 16 tokens each
        assert (piece.ids, piece.text, piece.finish_reason) == ((), "", "stop")
        assert piece.usage is not None
        assert (piece.usage.prompt_tokens, piece.usage.completion_tokens) == (100, 0)
        assert (engine.report().running, engine.report().kv_used_tokens) == (0, 0)
