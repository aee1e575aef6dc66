"""The video workers of the control loop: started on chosen nodes, vacated, and forgotten with their placement groups.

Each has a task of its own, which lives as long as the worker; however it ends, it takes the worker and its placement
group with it.
"""

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from autoscaling.readings import Count
from cluster.errors import ReplicaLost, StartTimeout
from cluster.family import Family, Video
from cluster.lending import Moves, WorkerHeld
from deployments.control.words import Worker
from deployments.video.actors import WorkerActors

log = logging.getLogger("moray.control")
VACATE_S = 120.0  # a job under way gets this long for its step, or its encoding
SILENT_S = 600.0  # of a worker whose process hangs; see messages.BEAT_S
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0  # between tries to have a worker removed, or to start one after a failure


@dataclass(slots=True, kw_only=True, eq=False)
class _Held:
    """`node_id` may be a lost node's. `since_s`: when its job began or was last saved, on the loop's clock."""

    worker_id: str
    node_id: str
    gpus: int
    group: Any = None
    actor: Any = None
    state: Literal["starting", "ready", "leaving"] = "starting"
    idle: bool = True
    since_s: float = 0.0
    life: asyncio.Task[None] | None = None


class Pool:
    """On one event loop; nothing of it blocks or raises for a worker's fault. The family has video."""

    def __init__(self, family: Family, actors: WorkerActors | None = None) -> None:
        self._actors = actors or WorkerActors()
        self._held: dict[str, _Held] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._starts: list[float] = []
        self._pause_s = FIRST_PAUSE_S  # after the next start that fails
        self._next_start_s = 0.0
        self._family = family
        self._video = _video(family)

    async def adopt(self) -> None:
        """Take over the workers of an earlier loop; what it left half started is removed."""
        for found in await self._actors.found():
            if found.worker_id in self._held:
                continue
            held = _Held(worker_id=found.worker_id, node_id=found.node_id, gpus=self._video.gpus)
            held.group, held.actor = found.group, found.actor
            self._live(held)

    def follow(self, family: Family) -> None:
        """Serve a changed family: workers that render otherwise than it says are replaced, at a step boundary."""
        before, self._family, self._video = self._video, family, _video(family)
        if _kind(before) != _kind(self._video):
            for held in list(self._held.values()):
                self._vacate(held)

    def workers(self) -> tuple[Worker, ...]:
        """Those that are ready for jobs."""
        return tuple(
            Worker(worker_id=held.worker_id, node_id=held.node_id, actor=held.actor)
            for held in self._held.values()
            if held.state == "ready"
        )

    def count(self) -> Count:
        states = [held.state for held in self._held.values()]
        return Count(ready=states.count("ready"), starting=states.count("starting"), draining=states.count("leaving"))

    def held(self) -> tuple[WorkerHeld, ...]:
        now_s = asyncio.get_running_loop().time()
        return tuple(
            WorkerHeld(
                worker_id=held.worker_id,
                node=held.node_id,
                gpus=held.gpus,
                leaving=held.state == "leaving",
                idle=held.idle,
                lost_gpu_s=0.0 if held.idle else (now_s - held.since_s) * held.gpus,
            )
            for held in self._held.values()
        )

    @property
    def cold_start_s(self) -> float | None:
        """Measured mean, None before the first start."""
        return sum(self._starts) / len(self._starts) if self._starts else None

    async def apply(self, moves: Moves) -> None:
        """Returns at once: starts and stops take their time. No start so soon after one that failed: ask again."""
        for worker_id in moves.vacate:
            if worker_id in self._held:
                self._vacate(self._held[worker_id])
        for node in moves.start if asyncio.get_running_loop().time() >= self._next_start_s else ():
            self._live(_Held(worker_id=uuid4().hex[:12], node_id=node, gpus=self._video.gpus))

    def _live(self, held: _Held) -> None:
        self._held[held.worker_id] = held
        held.life = self._spawn(self._life(held))

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _vacate(self, held: _Held) -> None:
        if held.state != "leaving":
            ready, held.state = held.state == "ready", "leaving"
            self._spawn(self._send_off(held, ready))

    async def _send_off(self, held: _Held, ready: bool) -> None:
        """A worker that has not loaded yet has no job to wait for."""
        assert held.life is not None
        try:
            if ready:
                async with asyncio.timeout(VACATE_S):
                    await held.actor.vacate.remote()
        except Exception as error:  # it died meanwhile, or its step takes too long
            log.warning("video worker %s: did not vacate in peace: %s", held.worker_id, _short(error))
        finally:
            held.life.cancel()

    async def _life(self, held: _Held) -> None:
        try:
            await self._ready(held)
            await self._follow(held)
        except Exception as error:  # whatever Ray says of a worker that cannot start or has died
            log.warning("video worker %s on %s is gone: %s", held.worker_id, held.node_id, _short(error))
            if held.state == "starting":
                self._rest()
        finally:
            held.state = "leaving"
            # A task of its own: the end of this one may be a cancellation.
            self._spawn(self._remove(held))

    async def _follow(self, held: _Held) -> None:
        """As long as it lives. Raises ReplicaLost where its process hangs, and what Ray raises."""
        news = self._actors.watch(held.actor)
        while True:
            try:
                async with asyncio.timeout(SILENT_S):
                    doing = await anext(news)
            except TimeoutError:
                raise ReplicaLost(f"it has said nothing for {SILENT_S:g} s; it is ended; see its log") from None
            if doing is None:
                continue
            held.idle, held.since_s = doing.idle, asyncio.get_running_loop().time()
            if doing.leaving:
                self._vacate(held)

    async def _ready(self, held: _Held) -> None:
        """Raises StartTimeout, CheckpointError, and what Ray raises."""
        loop, adopted, video = asyncio.get_running_loop(), held.actor is not None, self._video
        start_s = loop.time()
        try:
            async with asyncio.timeout(video.start_timeout_s):
                if held.group is None:
                    await self._begin(held, video)
                if held.actor is None:
                    raise StartTimeout(f"{held.worker_id}: its start was cut off; another one begins anew")
                await held.actor.load.remote()
        except TimeoutError:
            raise StartTimeout(
                f"{held.worker_id}: not ready after {video.start_timeout_s:g} s; see its log, or raise "
                "video.start_timeout_s"
            ) from None
        self._pause_s = FIRST_PAUSE_S
        if held.state == "starting":
            held.state = "ready"
        if not adopted:
            self._starts.append(loop.time() - start_s)

    def _rest(self) -> None:
        """A checkpoint that is broken, or too large, stays so: each start of it reads it again."""
        self._next_start_s = asyncio.get_running_loop().time() + self._pause_s
        self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)

    async def _begin(self, held: _Held, video: Video) -> None:
        """Shielded: a group or an actor that a cancelled start has just made must be known, to be removed."""
        accelerator, state = self._family.accelerator, str(Path(self._family.state_folder).resolve())

        async def begin() -> None:
            held.group = await self._actors.reserve(held.worker_id, held.node_id, video, accelerator)
            held.actor = await self._actors.start(held.worker_id, held.group, video, accelerator, state)

        beginning = self._spawn(begin())
        try:
            await asyncio.shield(beginning)
        except BaseException:
            await asyncio.wait([beginning])
            raise

    async def _remove(self, held: _Held) -> None:
        """It counts as leaving until its GPUs are free, however long Ray does not answer."""
        pause_s = FIRST_PAUSE_S
        while held.group is not None:
            try:
                await self._actors.remove(held.group, held.actor)
                break
            except Exception as error:
                log.warning("video worker %s: not removed yet: %s", held.worker_id, _short(error))
                await asyncio.sleep(pause_s)
                pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
        self._held.pop(held.worker_id, None)


def _video(family: Family) -> Video:
    assert family.video is not None
    return family.video


def _kind(video: Video) -> tuple[object, ...]:
    """What a worker is made of; the rest of the family's video is the gateway's and the control loop's business."""
    engine = video.checkpoint, video.engine, video.dtype, video.gpus, video.acceleration
    return *engine, video.concurrent, video.provenance, video.files, video.engine == "simulated" and video.cost


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
