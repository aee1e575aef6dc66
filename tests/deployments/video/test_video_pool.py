"""The pool of workers, with actors of the test's in place of Ray's."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest
import virtual_time
from shell import family

from autoscaling.readings import Count
from cluster.lending import Moves
from deployments.video.actors import Found, WorkerActors
from deployments.video.messages import Doing
from deployments.video.pool import LONGEST_PAUSE_S, SILENT_S, Pool


class Method:
    def __init__(self, call: Callable[[], Awaitable[None]]) -> None:
        self.remote = call


class Actor:
    """`loads` and `leaves` when told; dies when told, or when it is killed."""

    def __init__(self) -> None:
        self.may_load = asyncio.Event()
        self.may_leave = asyncio.Event()
        self.news: asyncio.Queue[Doing | Exception | None] = asyncio.Queue()
        self.news.put_nowait(Doing(idle=True, leaving=False))
        self.asked_to_leave = False
        self.load = Method(self.may_load_now)
        self.vacate = Method(self._vacate)

    async def may_load_now(self) -> None:
        await self.may_load.wait()

    async def _vacate(self) -> None:
        self.asked_to_leave = True
        await self.may_leave.wait()


class Actors:
    """`groups` are the placement groups that are held: what may not leak."""

    def __init__(self) -> None:
        self.groups: dict[str, Actor | None] = {}
        self.nodes: dict[str, str] = {}
        self.left: tuple[Found, ...] = ()
        self.refusals = 0
        self.may_reserve = asyncio.Event()
        self.may_reserve.set()

    async def found(self) -> tuple[Found, ...]:
        return self.left

    async def reserve(self, worker_id: str, node_id: str, *_: Any) -> str:
        await self.may_reserve.wait()
        self.groups[worker_id], self.nodes[worker_id] = None, node_id
        return worker_id

    async def start(self, worker_id: str, group: str, *_: Any) -> Actor:
        if node_is_lost := self.nodes[worker_id] == "lost":
            raise RuntimeError(f"{node_is_lost}\nand a traceback")
        actor = self.groups[group] = Actor()
        return actor

    async def watch(self, actor: Actor) -> AsyncIterator[Doing | None]:
        while True:
            news = await actor.news.get()
            if isinstance(news, Exception):
                raise news
            yield news

    async def remove(self, group: str, actor: Actor | None) -> None:
        if self.refusals:
            self.refusals -= 1
            raise ConnectionError
        del self.groups[group]

    def actor(self) -> Actor:
        (actor,) = self.groups.values()
        assert actor is not None
        return actor


@pytest.fixture
def actors() -> Actors:
    return Actors()


def pool_of(folder: Path, actors: Actors, **video: Any) -> Pool:
    spec = family(folder, video=True)
    assert spec.video is not None
    return Pool(spec.model_copy(update={"video": spec.video.model_copy(update=video)}), cast("WorkerActors", actors))


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def ready(pool: Pool, actors: Actors) -> Actor:
    """One worker, started and loaded."""
    await pool.apply(Moves(start=("n1",)))
    await until(lambda: any(actors.groups.values()))
    actors.actor().may_load.set()
    await until(pool.workers)
    return actors.actor()


async def test_a_worker_starts_on_its_node_and_is_ready_once_it_has_loaded(tmp_path: Path, actors: Actors) -> None:
    pool = pool_of(tmp_path, actors)
    await pool.apply(Moves(start=("n1",)))
    await until(lambda: any(actors.groups.values()))
    assert (pool.workers(), pool.count(), pool.cold_start_s) == ((), Count(starting=1), None)
    actors.actor().may_load.set()
    await until(pool.workers)
    (worker,) = pool.workers()
    assert (worker.node_id, worker.actor, actors.nodes) == ("n1", actors.actor(), {worker.worker_id: "n1"})
    assert pool.count() == Count(ready=1)
    assert pool.cold_start_s is not None


async def test_a_worker_that_leaves_gets_no_jobs_and_goes_once_its_job_has_stopped(
    tmp_path: Path, actors: Actors
) -> None:
    pool = pool_of(tmp_path, actors)
    actor = await ready(pool, actors)
    await pool.apply(Moves(vacate=(pool.workers()[0].worker_id, "unknown")))
    assert (pool.workers(), pool.count()) == ((), Count(draining=1))
    await until(lambda: actor.asked_to_leave)
    assert actors.groups
    actor.may_leave.set()
    await until(lambda: not pool.held())
    assert actors.groups == {}


async def test_a_worker_that_does_not_leave_in_time_is_removed(
    tmp_path: Path, actors: Actors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.video.pool.VACATE_S", 0.0)
    pool = pool_of(tmp_path, actors)
    await ready(pool, actors)
    await pool.apply(Moves(vacate=(pool.workers()[0].worker_id,)))
    await until(lambda: not pool.held())
    assert actors.groups == {}


async def test_a_worker_that_dies_is_forgotten_with_its_placement_group(tmp_path: Path, actors: Actors) -> None:
    pool = pool_of(tmp_path, actors)
    (await ready(pool, actors)).news.put_nowait(RuntimeError("died"))
    await until(lambda: not pool.held())
    assert actors.groups == {}


async def test_a_worker_that_is_not_ready_in_time_is_removed(tmp_path: Path, actors: Actors) -> None:
    pool = pool_of(tmp_path, actors, start_timeout_s=0.01)
    await pool.apply(Moves(start=("n1",)))
    await until(lambda: not pool.held())
    assert (actors.groups, pool.cold_start_s) == ({}, None)


async def test_a_worker_that_cannot_start_is_removed(tmp_path: Path, actors: Actors) -> None:
    pool = pool_of(tmp_path, actors)
    await pool.apply(Moves(start=("lost", "n1")))
    await until(lambda: len(pool.held()) == 1)
    assert list(actors.groups) == [pool.held()[0].worker_id]


def test_workers_that_cannot_start_are_tried_ever_less_often_until_one_starts(tmp_path: Path) -> None:
    async def tried(pool: Pool, actors: Actors, node: str, seconds: int) -> int:
        before = len(actors.nodes)
        for _ in range(seconds):
            await pool.apply(Moves(start=(node,)))
            await asyncio.sleep(1.0)
        return len(actors.nodes) - before

    async def scenario() -> None:
        actors = Actors()
        pool = pool_of(tmp_path, actors)
        assert await tried(pool, actors, "lost", 60) == 6
        assert await tried(pool, actors, "lost", 3600) == pytest.approx(120, abs=1)
        await asyncio.sleep(LONGEST_PAUSE_S)
        await ready(pool, actors)
        assert await tried(pool, actors, "n1", 3) == 3
        for held in pool.held():
            await pool.apply(Moves(vacate=(held.worker_id,)))
        for actor in actors.groups.values():
            assert actor is not None
            actor.may_leave.set()
        await until(lambda: not pool.held())

    virtual_time.run(scenario())


@pytest.mark.parametrize("reserved", [True, False])
async def test_a_worker_that_leaves_while_it_starts_leaves_nothing(
    tmp_path: Path, actors: Actors, reserved: bool
) -> None:
    pool = pool_of(tmp_path, actors)
    if not reserved:
        actors.may_reserve.clear()
    await pool.apply(Moves(start=("n1",)))
    await until(lambda: any(actors.groups.values()) is reserved)
    await pool.apply(Moves(vacate=(pool.held()[0].worker_id,)))
    actors.may_reserve.set()
    await until(lambda: not pool.held())
    assert actors.groups == {}


async def test_gpus_count_as_held_until_ray_has_let_go_of_them(
    tmp_path: Path, actors: Actors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.video.pool.LONGEST_PAUSE_S", 0.0)
    monkeypatch.setattr("deployments.video.pool.FIRST_PAUSE_S", 0.0)
    pool = pool_of(tmp_path, actors)
    actor = await ready(pool, actors)
    actors.refusals = 10
    actor.news.put_nowait(RuntimeError("died"))
    await until(lambda: actors.refusals < 9)
    assert pool.count() == Count(draining=1)
    await until(lambda: not pool.held())
    assert actors.groups == {}


async def test_the_workers_of_an_earlier_loop_are_adopted_and_its_leavings_removed(
    tmp_path: Path, actors: Actors
) -> None:
    serving, leaving = Actor(), Actor()
    for actor in (serving, leaving):
        actor.may_load.set()
        actor.may_leave.set()
    leaving.news.put_nowait(Doing(idle=False, leaving=True))
    actors.groups = {"a": serving, "b": leaving, "c": None}
    actors.left = tuple(
        Found(worker_id=name, node_id="n1", group=name, actor=actor) for name, actor in actors.groups.items()
    )
    pool = pool_of(tmp_path, actors)
    await pool.adopt()
    await until(lambda: list(actors.groups) == ["a"])
    await until(lambda: [worker.worker_id for worker in pool.workers()] == ["a"])
    assert leaving.asked_to_leave
    assert pool.cold_start_s is None
    actors.left = actors.left[:1]
    await pool.adopt()
    assert len(pool.held()) == 1


def test_a_worker_that_says_nothing_for_long_is_ended_and_one_that_says_it_is_there_is_not(tmp_path: Path) -> None:
    async def scenario() -> None:
        actors = Actors()
        pool = pool_of(tmp_path, actors)
        actor = await ready(pool, actors)
        actor.news.put_nowait(Doing(idle=False, leaving=False))
        await asyncio.sleep(0)
        for _ in range(3):
            await asyncio.sleep(SILENT_S - 1)
            actor.news.put_nowait(None)
        (held,) = pool.held()
        assert held.lost_gpu_s == 3 * (SILENT_S - 1)  # nothing was saved with it
        await asyncio.sleep(SILENT_S - 1)
        assert pool.workers()
        await asyncio.sleep(2)
        assert (pool.held(), actors.groups) == ((), {})

    virtual_time.run(scenario())


async def test_what_would_be_lost_grows_from_the_last_saved_step(tmp_path: Path, actors: Actors) -> None:
    pool = pool_of(tmp_path, actors, gpus=2)
    actor = await ready(pool, actors)
    (held,) = pool.held()
    assert (held.node, held.gpus, held.idle, held.leaving, held.lost_gpu_s) == ("n1", 2, True, False, 0.0)
    actor.news.put_nowait(Doing(idle=False, leaving=False))
    await until(lambda: not pool.held()[0].idle)
    first = pool.held()[0].lost_gpu_s
    await until(lambda: pool.held()[0].lost_gpu_s > first)


@pytest.mark.parametrize(("changes", "replaced"), [({"max_waiting": 7}, False), ({"dtype": "bfloat16"}, True)])
async def test_workers_are_replaced_where_a_changed_family_renders_otherwise(
    tmp_path: Path, actors: Actors, changes: dict[str, Any], replaced: bool
) -> None:
    pool = pool_of(tmp_path, actors)
    await ready(pool, actors)
    changed = family(tmp_path, video=True)
    assert changed.video is not None
    pool.follow(changed.model_copy(update={"video": changed.video.model_copy(update=changes)}))
    assert pool.count() == (Count(draining=1) if replaced else Count(ready=1))
