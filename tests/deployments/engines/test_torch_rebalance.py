"""Experts that move while streams run: no token changes, nothing is counted twice, and a loss fails cleanly."""

import asyncio
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch_checkpoint import save_checkpoint
from torch_group import Follow, collected, ids, nine, running

from cluster.errors import EngineFailed
from cluster.experts import Placement
from cluster.rebalance import Judgement, Terms, Window
from cluster.request import Generation, Message, Sampling
from deployments.demo.corpus import evaluation
from deployments.engines.engine import ExpertReport
from deployments.engines.torch_engine import balance, moving, parallel
from deployments.engines.torch_engine import engine as engine_module
from deployments.engines.torch_engine.engine import TorchEngine
from deployments.engines.torch_engine.moe import Experts
from deployments.engines.torch_engine.moving import settled, transfers
from deployments.engines.torch_engine.parallel import follow
from deployments.engines.torch_engine.rank import Order, Rank
from deployments.engines.torch_engine.spec import EngineSpec, GroupAddress

Ids = list[tuple[int, ...]]
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> EngineSpec:
    folder = save_checkpoint(tmp_path_factory.mktemp("rebalance"), eos_token_id=None)
    return EngineSpec(
        checkpoint=str(folder), context_tokens=256, kv_tokens=512, max_running=16, prefill_chunk_tokens=16
    )


@pytest.fixture(scope="module")
def unmoved(spec: EngineSpec) -> Ids:
    async def ask() -> Ids:
        async with running(spec) as (engine, _):
            return ids(await nine(engine))

    return asyncio.run(ask())


def all_elsewhere(_window: Window, placement: Placement, _terms: Terms) -> Judgement:
    """Every expert moves to the next rank."""
    room = placement.room
    slots = tuple((*layer[room:], *layer[:room]) for layer in placement.slots)
    return Judgement(placement=replace(placement, slots=slots), reason="a test")


@pytest.fixture
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans every four steps to move everything."""
    monkeypatch.setattr(balance, "judge", all_elsewhere)
    monkeypatch.setattr(parallel, "_COUNT_STEPS", 4)


@slow
@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize(("ranks", "redundant"), [(2, 0), (2, 2), (4, 4)])
async def test_experts_that_move_under_running_streams_change_no_token(
    spec: EngineSpec, unmoved: Ids, ranks: int, redundant: int
) -> None:
    async with running(replace(spec, ranks=ranks, redundant=redundant, window_s=1e-9)) as (engine, _):
        assert ids(await nine(engine)) == unmoved
        report = experts(engine)
        assert report.rebalances >= 2
        assert report.moved >= report.rebalances * 2 * ranks
        assert report.stall_s > 0
        computed = sum(10 + 13 * i + 24 - 1 for i in range(9))
        assert report.tokens.sum(axis=(0, 2, 3)).tolist() == [computed * 2] * 2, "each routed row is counted once"


@slow
@pytest.mark.usefixtures("restless")
async def test_experts_that_may_not_move_stay(spec: EngineSpec) -> None:
    async with running(replace(spec, ranks=2, rebalance=False, window_s=1e-9)) as (engine, _):
        await nine(engine)
        report = experts(engine)
        assert (report.rebalances, report.moved, report.slots) == (0, 0, (tuple(range(8)),) * 2)


@slow
@pytest.mark.usefixtures("restless")
async def test_streams_short_of_places_and_cache_beside_cancelled_ones_keep_their_tokens_while_experts_move(
    spec: EngineSpec, unmoved: Ids
) -> None:
    tight = replace(spec, ranks=2, redundant=2, kv_tokens=160, max_running=4, window_s=1e-9)
    async with running(tight) as (engine, _):
        for _ in range(3):
            for index in range(6):
                cancelled_at_its_first_token(engine, f"cancelled {index}", 40 + 20 * index)
            engine.cancel("cancelled 5")
            assert ids(await nine(engine)) == unmoved
        assert experts(engine).rebalances >= 2
        assert engine.report().kv_used_tokens == 0


def cancelled_at_its_first_token(engine: TorchEngine, key: str, tokens: int) -> None:
    sampling = Sampling(temperature=0, max_tokens=20)
    generation = Generation(request_id=key, prompt=tuple(range(3, 3 + tokens)), sampling=sampling)
    engine.submit(generation, lambda _: engine.cancel(key))


@slow
@pytest.mark.usefixtures("restless")
async def test_a_stop_while_experts_move_lets_every_rank_go(spec: EngineSpec) -> None:
    async with running(replace(spec, ranks=3, redundant=1, window_s=1e-9)) as (engine, others):
        streams = asyncio.ensure_future(nine(engine))
        await eventually(lambda: experts(engine).moved > 0)
        await engine.stop()
        assert all(stream[-1].error is None or "stopped" in str(stream[-1].error) for stream in await streams)
    assert [process.exitcode for process in others] == [0, 0]


@slow
async def test_a_plan_that_is_ready_when_nobody_asks_is_done_all_the_same(
    spec: EngineSpec, unmoved: Ids, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle = threading.Event()

    def late(window: Window, placement: Placement, terms: Terms) -> Judgement:
        idle.wait(30)
        once = placement.slots[0][0] == 0
        return all_elsewhere(window, placement, terms) if once else Judgement(placement=None, reason="done")

    monkeypatch.setattr(balance, "judge", late)
    monkeypatch.setattr(parallel, "_COUNT_STEPS", 4)
    monkeypatch.setattr(engine_module, "HEARTBEAT_S", 0.05)
    async with running(replace(spec, ranks=2, window_s=1e-9)) as (engine, _):
        assert ids(await nine(engine)) == unmoved
        assert experts(engine).rebalances == 0
        idle.set()
        await eventually(lambda: experts(engine).rebalances == 1)
        assert experts(engine).slots == ((4, 5, 6, 7, 0, 1, 2, 3),) * 2
        assert ids(await nine(engine)) == unmoved


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


def lost_in_prefill(spec: EngineSpec, rank: int, address: GroupAddress) -> None:
    _follow_until(lambda order: any(chunk.start for chunk in order.plan.chunks), spec, rank, address)


def lost_in_decode(spec: EngineSpec, rank: int, address: GroupAddress) -> None:
    _follow_until(lambda order: len(order.plan.decodes) > 4, spec, rank, address)


def _follow_until(condition: Callable[[Order], bool], spec: EngineSpec, rank: int, address: GroupAddress) -> None:
    """Dies when the first layer's rows have come for its experts."""
    step = Rank.step

    def dying(own: Rank, order: Order, masks: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        if condition(order):
            Experts.__call__ = lambda *_: os._exit(1)  # type: ignore[method-assign]
        return step(own, order, masks)

    Rank.step = dying  # type: ignore[method-assign, assignment]
    follow(spec, rank, address)


def lost_in_a_move(spec: EngineSpec, rank: int, address: GroupAddress) -> None:
    """Dies when half of its experts are on their way."""

    def half(operations: list[dist.P2POp]) -> None:
        for one in operations[: len(operations) // 2]:
            one.op(one.tensor, one.peer, tag=one.tag).wait()
        os._exit(1)

    moving.dist.batch_isend_irecv = half  # type: ignore[attr-defined]
    follow(spec, rank, address)


@slow
@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("follow", [lost_in_prefill, lost_in_decode, lost_in_a_move])
async def test_a_rank_lost_anywhere_fails_every_stream_behind_right_tokens_alone(
    spec: EngineSpec, unmoved: Ids, follow: Follow
) -> None:
    moves = follow is lost_in_a_move
    async with running(replace(spec, ranks=3, redundant=1, rebalance=moves, window_s=1e-9), follow) as (engine, lost):
        streams = await nine(engine)
        for stream, right in zip(streams, unmoved, strict=True):
            assert isinstance(stream[-1].error, EngineFailed)
            got = ids([stream])[0]
            assert got == right[: len(got)]
        with pytest.raises(EngineFailed, match="replica"):
            engine.check()
    assert {process.exitcode for process in lost} == {1}


CHECKPOINTS = Path(__file__).parents[3] / "deployments" / "demo" / "checkpoints"


class Traffic:
    """Waves of questions of one domain. Its clock counts them: a wave takes a second, whatever the machine does."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._questions: dict[str, list[str]] = {}
        for sample in evaluation(20_000, 3):
            self._questions.setdefault(sample.task.domain, []).append(sample.question)

    async def wave(self, engine: TorchEngine, domain: str) -> ExpertReport:
        """What it added to the counters, its window."""
        before = experts(engine).tokens
        asked = [
            Generation(
                request_id=f"{index}",
                prompt=engine.encode((Message(role="user", content=question),)),
                sampling=Sampling(temperature=0.9, seed=index, max_tokens=24),
            )
            for index, question in enumerate(self._questions[domain][:6])
        ]
        await asyncio.gather(*(collected(engine, generation) for generation in asked))
        self.now_s += 1
        after = experts(engine)
        return replace(after, window=(after.tokens - before).sum(axis=0))


def experts(engine: TorchEngine) -> ExpertReport:
    report = engine.report().experts
    assert report is not None
    return report


def imbalance(waves: list[ExpertReport]) -> float:
    """max/mean of the ranks' rows in these waves, the mean over layers."""
    load = sum(wave.window.sum(axis=1) for wave in waves)
    return float((load.max(axis=1) / load.mean(axis=1)).mean())


@slow
async def test_traffic_that_shifts_moves_experts_once_and_steady_traffic_never() -> None:
    spec = EngineSpec(checkpoint=str(CHECKPOINTS / "ultra"), context_tokens=512, kv_tokens=4096, ranks=2, window_s=6.0)
    traffic, seen = Traffic(), dict[str, list[ExpertReport]]()
    async with running(spec, now_s=lambda: traffic.now_s) as (engine, _):
        for domain in ("math", "creative_writing"):
            traffic.now_s += 10  # none for more than a window
            seen[domain] = [await traffic.wave(engine, domain) for _ in range(18)]
    for waves, earlier in zip(seen.values(), (0, 1), strict=True):
        moved = [wave.rebalances - earlier for wave in waves]
        assert sorted(set(moved)) == [0, 1], "once"
        assert moved.index(1) < 11, "steady since for a window"
        before, after = imbalance(waves[: moved.index(1)]), imbalance(waves[-4:])
        assert after - 1 < (before - 1) / 2


@given(data=st.data(), ranks=st.integers(2, 4), room=st.integers(2, 5))
def test_every_slot_that_changes_gets_its_expert_from_a_rank_that_holds_it(
    data: st.DataObject, ranks: int, room: int
) -> None:
    runs = st.lists(st.permutations(range(room + 2)).map(lambda p: p[:room]), min_size=ranks, max_size=ranks)
    old, wanted = (tuple(e for run in data.draw(runs) for e in run) for _ in "ab")
    wanted = wanted if set(wanted) <= set(old) else old[room:] + old[:room]
    new = settled(old, wanted, ranks)
    pairs = transfers(old, new, ranks)
    for rank in range(ranks):
        assert set(new[rank * room :][:room]) == set(wanted[rank * room :][:room])
    for source, target in pairs:
        assert old[source] == new[target]
        assert source // room != target // room, "what a rank holds does not travel"
    assert [t for _, t in pairs] == [s for s in range(len(old)) if old[s] != new[s]], "what stays, stays in its slot"
