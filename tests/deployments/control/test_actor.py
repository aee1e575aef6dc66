"""The control loop's actor, in this process: Ray's tables and the video workers are stood in for."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import ray
import shell

from autoscaling.readings import Count, Fleet
from autoscaling.signals import JobSeen
from autoscaling.sources import Prometheus, Scrape
from cluster.errors import ConfigurationError
from cluster.family import Family
from cluster.lending import Moves, Room, WorkerHeld
from deployments.control import actor, fleet
from deployments.control.actor import Control
from deployments.control.fleet import Observed
from deployments.control.record_file import FILE, RecordFile
from deployments.control.words import Hello, Worker

JOB = JobSeen(left_gpu_s=600.0, deadline_s=4e9, value_usd=50.0)
Start = Callable[[Family], AbstractAsyncContextManager[Control]]


class Pool:
    """One worker that is ready; what it is told lies in `moves`."""

    cold_start_s = None

    def __init__(self, family: Family) -> None:
        self.families = [family]
        self.moves: list[Moves] = []

    async def adopt(self) -> None:
        pass

    def follow(self, family: Family) -> None:
        self.families.append(family)

    def workers(self) -> tuple[Worker, ...]:
        return (Worker(worker_id="w", node_id="n", actor=None),)

    def count(self) -> Count:
        return Count(ready=1)

    def held(self) -> tuple[WorkerHeld, ...]:
        return (WorkerHeld(worker_id="w", node="n", gpus=1, leaving=False, idle=True),)

    async def apply(self, moves: Moves) -> None:
        self.moves.append(moves)


class Stood(Control):
    """With a word for the end of each tick."""

    def ticked(self) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        tick = self._controller.tick

        async def told() -> None:
            await tick()
            if not done.done():
                done.set_result(None)

        self._controller.tick = told  # type: ignore[method-assign]
        self._controller.wake()
        return done


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Start:
    """Of one Ray cluster, as often as wanted."""
    room = Room(node="n", cell="here", gpus=8, free_gpus=7)
    seen = Observed(
        fleet=Fleet(counts={"mini": Count(), "turbo": Count()}, gpus=8),
        rooms=(room,),
        awaiting=(),
        gpus_held={"mini": 0},
        nodes_of={"mini": ("n",)},
        given_up={},
    )
    context = Mock(get_session_name=Mock(return_value="session"))
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(actor, "node_address", lambda: "127.0.0.1")
    monkeypatch.setattr(actor, "ControlMetrics", Mock(return_value=Mock(address="127.0.0.1:1")))
    monkeypatch.setattr(fleet, "observe", lambda family: seen)
    monkeypatch.setattr(actor, "Pool", Pool)

    @asynccontextmanager
    async def started(family: Family) -> AsyncIterator[Control]:
        control = object.__new__(Stood)
        await control.__init__(family)  # type: ignore[misc]
        try:
            yield control
        finally:
            control._loop.cancel()
            await asyncio.wait([control._loop])
            control._record.close()
            control._threads.shutdown()
            await control._source.close()

    return started


def hello(jobs: tuple[JobSeen, ...] | None = ()) -> Hello:
    return Hello(gateway_id="g", metrics=(), replica_of={}, jobs=jobs)


def awake(folder: Path, *, video: bool = False) -> Family:
    return shell.family(folder, video=video, replicas={"min": 0, "max": 3, "initial": 2})


async def decided(control: Control) -> None:
    assert isinstance(control, Stood)
    async with asyncio.timeout(20):
        await control.ticked()


async def test_targets_are_the_initial_replicas_before_anything_is_known(tmp_path: Path, start: Start) -> None:
    async with start(awake(tmp_path, video=True)) as control:
        assert await control.targets() == {"mini": 2, "turbo": 2, "video": 0}


async def test_a_gateway_hears_what_stands(tmp_path: Path, start: Start) -> None:
    family = awake(tmp_path, video=True)
    async with start(family) as control:
        standing = await control.announce(hello())
        assert (standing.version, standing.family) == (1, family)
        assert standing.workers == (Worker(worker_id="w", node_id="n", actor=None),)
        assert standing.metrics_address == "127.0.0.1:1"
        assert standing.targets == await control.targets()
        assert standing.pages == {}
        other = Hello(gateway_id="h", metrics=("h:1", "x:1"), replica_of={"x:1": "x"}, jobs=())
        await control.announce(other)
        assert (await control.announce(hello())).pages == {"h:1": None, "x:1": "x"}
    async with start(awake(tmp_path / "no_video")) as control:
        assert (await control.announce(hello())).workers == ()


async def test_a_tier_that_serve_has_given_up_is_tried_anew_by_a_target_that_comes_and_goes(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = replace(fleet.observe(awake(tmp_path)), given_up={"mini": 0, "turbo": 1})
    monkeypatch.setattr(fleet, "observe", lambda family: failed)

    async def told(control: Control) -> list[dict[str, int]]:
        found = []
        for _ in range(4):
            await decided(control)
            found.append(await control.targets())
        return found

    async with start(awake(tmp_path)) as control:
        assert {"mini": 0, "turbo": 1} not in await told(control), "whoever deploys must see that it failed"
        monkeypatch.setattr(actor, "AGAIN_S", 0.0)
        looks = await told(control)
        assert {"mini": 0, "turbo": 1} in looks
        assert {"mini": 2, "turbo": 2} in looks


async def test_jobs_that_a_gateway_says_raise_video_and_a_restart_goes_on(tmp_path: Path, start: Start) -> None:
    family = awake(tmp_path, video=True)
    async with start(family) as control:
        await decided(control)
        assert (await control.targets())["video"] == 0  # nobody has said which jobs there are
        await control.announce(hello((JOB,)))
        await decided(control)
        assert (await control.targets())["video"] == 1
    async with start(family) as control:
        assert await control.targets() == {"mini": 2, "turbo": 2, "video": 1}


async def test_a_second_loop_is_refused_with_the_file_it_may_not_write(tmp_path: Path, start: Start) -> None:
    async with start(awake(tmp_path)):
        with pytest.raises(ConfigurationError, match=f"{tmp_path}/{FILE}: another control loop"):
            RecordFile(tmp_path, 1.0)


async def test_a_changed_family_is_served_and_outlives_the_process(tmp_path: Path, start: Start) -> None:
    given = awake(tmp_path, video=True)
    changed = given.model_copy(update={"tiers": {"mini": given.tiers["mini"]}})
    async with start(given) as control:
        assert await control.adopt(given) == 1
        assert await control.adopt(changed) == 2
        assert (await control.targets()).keys() == {"mini", "video"}
        assert (await control.announce(hello())).family == changed
    async with start(given) as control:
        standing = await control.announce(hello())
        assert (standing.version, standing.family) == (2, changed)


async def test_video_follows_a_changed_family_and_leaves_with_it(tmp_path: Path, start: Start) -> None:
    given = awake(tmp_path, video=True)
    async with start(given) as control:
        pool = control._pool
        assert isinstance(pool, Pool)
        larger = given.model_copy(update={"gpu_budget_gpus": 9})
        await control.adopt(larger)
        assert pool.families == [given, larger]
        await control.adopt(given.model_copy(update={"video": None}))
        assert pool.moves[-1].vacate == ("w",)
        assert control._pool is None
        await control.adopt(given)
        assert isinstance(control._pool, Pool)


async def test_another_source_is_looked_at_once_the_family_names_it(tmp_path: Path, start: Start) -> None:
    given = awake(tmp_path)
    async with start(given) as control:
        assert isinstance(control._source, Scrape)
        asks = given.control.model_copy(update={"prometheus_url": "http://127.0.0.1:1"})
        await control.adopt(given.model_copy(update={"control": asks}))
        assert isinstance(control._controller.world.source, Prometheus)


async def test_another_state_folder_is_refused(tmp_path: Path, start: Start) -> None:
    async with start(awake(tmp_path)) as control:
        with pytest.raises(ConfigurationError, match="state_folder"):
            await control.adopt(awake(tmp_path / "other"))


async def test_waking_ticks_soon(tmp_path: Path, start: Start) -> None:
    async with start(awake(tmp_path)) as control:
        await decided(control)
        assert isinstance(control, Stood)
        done = control.ticked()
        await control.wake("mini")
        async with asyncio.timeout(20):
            await done
