"""An expert group: more ranks change only where the work is done, and no loss of a rank leaves a stream hanging."""

import asyncio
import multiprocessing
from dataclasses import replace
from multiprocessing.synchronize import Event

import numpy as np
import pytest
from torch import Tensor
from torch_checkpoint import save_checkpoint
from torch_group import SAMPLINGS, followers, free_port, ids, nine, pieces, running

from cluster.errors import CheckpointError, EngineFailed
from cluster.experts import Placement
from cluster.request import Sampling
from deployments.engines.engine import ExpertReport
from deployments.engines.torch_engine.engine import TorchEngine
from deployments.engines.torch_engine.moe import Experts
from deployments.engines.torch_engine.spec import EngineSpec, GroupAddress

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> EngineSpec:
    folder = save_checkpoint(tmp_path_factory.mktemp("ranks"), eos_token_id=None)
    return EngineSpec(
        checkpoint=str(folder), context_tokens=256, kv_tokens=512, max_running=16, prefill_chunk_tokens=16
    )


@pytest.fixture(scope="module")
def alone(spec: EngineSpec) -> list[tuple[int, ...]]:
    """What one rank answers."""

    async def ask() -> list[tuple[int, ...]]:
        async with running(spec) as (engine, _):
            return ids(await nine(engine))

    return asyncio.run(ask())


async def test_one_two_and_four_ranks_give_the_same_tokens(spec: EngineSpec) -> None:
    outcomes, routed = [], []
    for ranks in (1, 2, 4):
        async with running(replace(spec, ranks=ranks)) as (engine, _):
            outcomes.append(ids(await nine(engine)))
            report = engine.report()
            assert report.kv_capacity_tokens == 512 * ranks
            assert report.experts is not None
            assert report.experts.window.any(axis=(0, 1)).tolist() == [True] * ranks
            routed.append(report.experts.tokens.sum(axis=(0, 3)).tolist())
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert routed[0] == routed[1] == routed[2]
    assert len(set(outcomes[0])) == 9


async def test_an_answer_cut_on_one_rank_goes_on_upon_two_as_if_it_had_not_been(spec: EngineSpec) -> None:
    async with running(spec) as (engine, _):
        wholes = [await pieces(engine, "whole", sampling) for sampling in SAMPLINGS]
    async with running(replace(spec, ranks=2)) as (engine, _):
        for whole, sampling in zip(wholes, SAMPLINGS, strict=True):
            for cut in (1, 7, 23):
                rest = await pieces(engine, "rest", sampling, given=ids([whole[:cut]])[0])
                joined = [*whole[:cut], *rest]
                assert [(piece.text, piece.ids) for piece in joined] == [(piece.text, piece.ids) for piece in whole]
                assert (rest[-1].finish_reason, rest[-1].usage) == (whole[-1].finish_reason, whole[-1].usage)


PLACEMENTS = {
    "any order": Placement(ranks=2, slots=((3, 1, 6, 4, 0, 2, 5, 7), (0, 1, 2, 7, 4, 5, 6, 3))),
    "copies": Placement(ranks=2, slots=((3, 1, 6, 4, 0, 0, 2, 5, 7, 3), (0, 1, 2, 7, 4, 5, 6, 3, 2, 1))),
    "copies on four": Placement(
        ranks=4, slots=((0, 1, 2, 0, 3, 4, 0, 5, 6, 0, 7, 1), (7, 6, 5, 7, 4, 3, 7, 2, 1, 0, 7, 1))
    ),
    "every expert everywhere": Placement(ranks=2, slots=((*range(8), *reversed(range(8))),) * 2),
}


@pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS.keys())
async def test_any_placement_of_experts_gives_the_same_tokens(
    spec: EngineSpec, alone: list[tuple[int, ...]], placement: Placement
) -> None:
    redundant = len(placement.slots[0]) - 8
    placed = replace(spec, ranks=placement.ranks, redundant=redundant, placement=placement)
    async with running(placed) as (engine, _):
        assert ids(await nine(engine)) == alone
        experts = engine.report().experts
        assert experts is not None
        assert experts.slots == placement.slots
        assert experts.tokens.sum(axis=(0, 2, 3)).tolist() == [routed_rows()] * 2, "each routed row is counted once"
        assert_counted_where_held(experts)


async def test_the_report_says_what_each_rank_computed_and_a_batch_is_shared_over_copies(
    spec: EngineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute, computed = Experts.__call__, [0]

    def counting(experts: Experts, rows: Tensor, counts: Tensor) -> Tensor:
        computed[0] += len(rows)
        return compute(experts, rows, counts)

    monkeypatch.setattr(Experts, "__call__", counting)  # of rank 0, which is this process
    everywhere = PLACEMENTS["every expert everywhere"]
    async with running(replace(spec, ranks=2, redundant=8, placement=everywhere)) as (engine, _):
        computed[0] = 0  # the first step was no traffic
        await nine(engine)
        experts = engine.report().experts
    assert experts is not None
    assert experts.tokens[..., 0].sum() == computed[0]
    assert max(experts.imbalance) < 1.02


def routed_rows() -> int:
    """Of `nine`: two experts for every prompt token and every answer token but the last."""
    return 2 * sum(10 + 13 * i + 24 - 1 for i in range(9))


def assert_counted_where_held(experts: ExpertReport) -> None:
    """No rank computed for an expert that it does not hold."""
    number, ranks = experts.window.shape[1:]
    for layer, slots in enumerate(experts.slots):
        room = len(slots) // ranks
        held = [[e in slots[rank * room : (rank + 1) * room] for rank in range(ranks)] for e in range(number)]
        assert not experts.tokens[:, layer][:, ~np.array(held)].any()


async def test_a_lost_follower_fails_every_stream_and_the_engine(spec: EngineSpec) -> None:
    address = GroupAddress(host="127.0.0.1", port=free_port())
    three = replace(spec, ranks=3, redundant=1)  # the third must end, too
    with followers(three, address) as processes:
        engine = TorchEngine(three, address)
        await engine.start()
        streams = [asyncio.create_task(pieces(engine, f"{i}", Sampling(temperature=0), 20)) for i in range(4)]
        await asyncio.sleep(0)
        processes[0].kill()
        for got in await asyncio.gather(*streams):
            assert isinstance(got[-1].error, EngineFailed)
        with pytest.raises(EngineFailed, match="replica"):
            engine.check()
        await engine.stop()


async def test_an_idle_engine_notices_a_lost_follower(spec: EngineSpec) -> None:
    address = GroupAddress(host="127.0.0.1", port=free_port())
    two = replace(spec, ranks=2)
    with followers(two, address) as processes:
        engine = TorchEngine(two, address)
        await engine.start()
        processes[0].kill()
        await asyncio.to_thread(engine._thread.join, 30)  # it ends with the engine
        with pytest.raises(EngineFailed):
            engine.check()
        await engine.stop()


def lead(spec: EngineSpec, address: GroupAddress, ready: Event) -> None:
    async def idle() -> None:
        await TorchEngine(spec, address).start()
        ready.set()
        await asyncio.Event().wait()

    asyncio.run(idle())


def test_followers_end_when_their_leader_is_lost(spec: EngineSpec) -> None:
    context = multiprocessing.get_context("spawn")
    address = GroupAddress(host="127.0.0.1", port=free_port())
    three, ready = replace(spec, ranks=3, redundant=1), context.Event()
    with followers(three, address) as processes:
        leader = context.Process(target=lead, args=(three, address, ready))
        leader.start()
        assert ready.wait(60)
        leader.kill()
        leader.join()
    assert all(process.exitcode == 1 for process in processes), "each raises EngineFailed"


async def test_a_leader_that_cannot_load_ends_its_followers(spec: EngineSpec) -> None:
    address = GroupAddress(host="127.0.0.1", port=free_port())
    two = replace(spec, ranks=2)
    with followers(two, address) as processes, pytest.raises(CheckpointError, match="/nowhere"):
        await TorchEngine(replace(two, checkpoint="/nowhere"), address).start()
    assert processes[0].exitcode == 1


async def test_a_follower_that_cannot_load_fails_the_start_with_its_reason(spec: EngineSpec) -> None:
    address = GroupAddress(host="127.0.0.1", port=free_port())
    two = replace(spec, ranks=2)
    with (
        followers(replace(two, checkpoint="/nowhere"), address),
        pytest.raises(EngineFailed, match="rank 1: CheckpointError: /nowhere: no such directory"),
    ):
        await TorchEngine(two, address).start()
