"""An expert group whose ranks have a GPU each: rows travel by nccl, and experts move while streams run."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch_checkpoint import save_checkpoint
from torch_group import ids, nine, running

from cluster.experts import Placement
from cluster.rebalance import Judgement, Terms, Window
from deployments.engines.torch_engine import balance, parallel
from deployments.engines.torch_engine.parallel import follow
from deployments.engines.torch_engine.spec import EngineSpec, GroupAddress

Note = Callable[..., None]


@pytest.fixture(scope="module")
def spec(gpu: torch.device, tmp_path_factory: pytest.TempPathFactory) -> EngineSpec:
    """One rank. Random weights whose logits lie far apart, so that no token hangs on the order of a sum."""
    folder: Path = save_checkpoint(tmp_path_factory.mktemp("groups"), eos_token_id=None)
    return EngineSpec(
        checkpoint=str(folder),
        context_tokens=256,
        kv_tokens=512,
        max_running=16,
        prefill_chunk_tokens=16,
        device="cuda",
    )


@pytest.fixture
def two(spec: EngineSpec) -> EngineSpec:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU, two are needed: never run")
    return replace(spec, ranks=2)


def on_its_own_gpu(spec: EngineSpec, rank: int, address: GroupAddress) -> None:
    """As Ray does it: a process sees one GPU, its own."""
    os.environ["CUDA_VISIBLE_DEVICES"] = str(rank)
    follow(spec, rank, address)


async def test_one_rank_on_a_gpu_gives_the_tokens_of_a_cpu(spec: EngineSpec) -> None:
    async with running(spec) as (engine, _):
        here = ids(await nine(engine))
    async with running(replace(spec, device="cpu")) as (engine, _):
        assert here == ids(await nine(engine))


@pytest.mark.parametrize("redundant", [0, 2, 8])
async def test_two_ranks_and_copies_of_experts_change_no_token(
    spec: EngineSpec, two: EngineSpec, redundant: int
) -> None:
    async with running(spec) as (engine, _):
        alone = ids(await nine(engine))
    async with running(replace(two, redundant=redundant, rebalance=False), on_its_own_gpu) as (engine, _):
        assert ids(await nine(engine)) == alone
        report = engine.report()
        assert report.experts is not None
        assert report.experts.window.any(axis=(0, 1)).tolist() == [True, True]


def all_elsewhere(_window: Window, placement: Placement, _terms: Terms) -> Judgement:
    """Every expert moves to the next rank."""
    room = placement.room
    slots = tuple((*layer[room:], *layer[:room]) for layer in placement.slots)
    return Judgement(placement=replace(placement, slots=slots), reason="a test")


async def test_experts_that_move_between_gpus_under_running_streams_change_no_token(
    spec: EngineSpec, two: EngineSpec, note: Note, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(balance, "judge", all_elsewhere)
    monkeypatch.setattr(parallel, "_COUNT_STEPS", 4)
    async with running(spec) as (engine, _):
        alone = ids(await nine(engine))
    async with running(replace(two, redundant=2, window_s=1e-9), on_its_own_gpu) as (engine, _):
        assert ids(await nine(engine)) == alone
        experts = engine.report().experts
    assert experts is not None
    note("rebalance", rebalances=experts.rebalances, copies=experts.moved, last_stall_ms=1000 * experts.stall_s)
    assert experts.rebalances >= 1
