"""The queue of video jobs, and what becomes of each: claimed, rendered, written down step by step, ended.

The queue is the store's. A gateway claims a job once a replica has room for it, holds it under a lease and writes only
while it holds it; the jobs of a gateway that dies are claimed by the next when their leases end. A job whose replica is
lent goes back to the queue with what is done of it; so does one whose replica is lost or broken, but only as often as
cluster.faults allows. Nothing that goes wrong with a replica, or with the store, drops a job.
"""

import asyncio
import contextlib
import functools
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from secrets import token_hex
from typing import Any

from cluster.errors import EngineFailed, MorayError, ReplicaLost, Unavailable
from cluster.family import Video
from cluster.faults import LASTING_S, Hindrance, given_up, hindered, suspect
from cluster.queueing import Outlook
from deployments.control.words import Worker
from deployments.gateway.video_clearing import FIRST_PAUSE_S, LONGEST_PAUSE_S, clear, expire
from deployments.gateway.video_metrics import VideoMetrics
from deployments.gateway.video_queue import VideoQueue
from deployments.gateway.video_workers import VideoWorkers, told
from deployments.stores.files import Files
from deployments.stores.threads import in_thread
from deployments.video.jobs import Jobs, VideoJob
from deployments.video.messages import Asked, Begun, News, Rendered, StageBegun, StepDone

log = logging.getLogger("ray.serve")
LEASE_S = 10.0  # a gateway that says nothing for so long holds no job any more
TURN_S = 1.0  # between looks at the queue
SWEEP_S = 60.0  # between looks for what has expired


class _LostError(Exception):
    """Its row may not be written any more: it was deleted, or another gateway has claimed it."""


class VideoJobs:
    """On one event loop. `book` hears how each job ends, before it is told. `now_s`: Unix seconds."""

    def __init__(
        self,
        video: Video,
        store: Jobs,
        files: Files,
        metrics: VideoMetrics,
        book: Callable[[VideoJob], Awaitable[None]],
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self.queue = VideoQueue(video)
        self._store = store
        self._files = files
        self._metrics = metrics
        self._now_s = now_s
        self._gateway = token_hex(6)
        self._mine: dict[str, asyncio.Task[None]] = {}  # by job that this gateway holds
        self._hindered: dict[str, Hindrance] = {}  # by job
        self._tasks: set[asyncio.Task[None]] = set()
        self._book = book
        self._wake = asyncio.Event()
        self._workers = VideoWorkers(self._wake.set)
        self._unserved: Counter[str] = Counter()  # by model, as the log was told
        self._look_s = self._sweep_s = 0.0  # when next, on the loop's clock

    def add(self, job: VideoJob) -> None:
        """The store has it already."""
        self.queue.put(job)
        self._wake.set()

    def drop(self, job: VideoJob) -> None:
        """It was deleted: its replica stops at its next step, and what it has written since is deleted, too."""
        self.queue.pop(job.id)
        if (task := self._mine.get(job.id)) is not None:
            task.cancel()

    def take(self, workers: tuple[Worker, ...]) -> None:
        """The replicas that there are; jobs on others go on until they say how they end."""
        self._workers.take(workers)

    def outlooks(self) -> dict[str, Outlook]:
        """By unfinished job."""
        return self.queue.outlooks(self._workers)

    async def run(self) -> None:
        """Claims jobs while there is room for them. Never ends, whatever fails."""
        while True:
            try:
                await self._turn()
            except Unavailable as failure:
                self._unavailable(failure)
            except Exception as failure:  # it is told, and tried again: without this loop no job would begin
                log.error("videos: %s", told(failure), exc_info=failure)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TURN_S):
                    await self._wake.wait()
            self._wake.clear()

    async def _turn(self) -> None:
        loop_s = asyncio.get_running_loop().time()
        if loop_s >= self._look_s:
            await self._look()
            self._look_s = loop_s + TURN_S
        await self._claim()
        if loop_s >= self._sweep_s:
            self._sweep_s = math.inf  # until this one is over
            self._spawn(self._sweep())

    async def _look(self) -> None:
        await in_thread(self._store.renew, self._gateway, tuple(self._mine), self._now_s(), LEASE_S)
        before = self.queue.ids()
        rows = await in_thread(self._store.unfinished)
        self.queue.seen(rows, before, own=self._mine)
        await self._leave(tuple(job for job in rows if job.model not in self.queue.video.names))
        oldest_s = self.queue.oldest_s()
        age_s = 0.0 if oldest_s is None else self._now_s() - oldest_s
        self._metrics.queue(age_s, self.queue.backlog_gpu_s())

    async def _leave(self, jobs: tuple[VideoJob, ...]) -> None:
        """Jobs of an earlier family's models stay queued until one serves them again."""
        for job in jobs:
            if job.claimed_by is not None and job.lease_until_s is not None and job.lease_until_s <= self._now_s():
                await in_thread(self._store.release, job.claimed_by, job.id)
        waiting = Counter(job.model for job in jobs)
        if waiting and waiting != self._unserved:
            which = ", ".join(f"{count} of {model}" for model, count in waiting.items())
            log.warning("videos: jobs wait for models that this family does not serve: %s; serve them again", which)
        self._unserved = waiting

    async def _claim(self) -> None:
        while (worker := self._workers.with_room(self.queue.video.concurrent)) is not None:
            job = await in_thread(self._store.claim, self._gateway, self._now_s(), LEASE_S, self.queue.video.names)
            if job is None:
                return
            if (task := self._mine.get(job.id)) is not None and not task.done():
                continue  # its lease ran out while the store did not answer, and nobody took it
            if task is not None:  # it came back only now; this lets `_over` be called
                await asyncio.wait([task])
            self.queue.put(job)
            self._workers.give(job.id, worker, alone=suspect(job.attempts, job.broke))
            task = self._mine[job.id] = asyncio.create_task(self._see_to(job, worker))
            task.add_done_callback(functools.partial(self._over, job.id, worker))

    async def _sweep(self) -> None:
        """Beside the turns: a slow store of files must hold up no lease."""
        try:
            await expire(self._store, self._files, self._now_s())
        except Unavailable as failure:
            self._unavailable(failure)
        finally:
            self._sweep_s = asyncio.get_running_loop().time() + SWEEP_S

    async def _see_to(self, job: VideoJob, worker: Worker) -> None:
        """One attempt, however it ends; it counts from Begun on."""
        try:
            await (self._give_up(job) if given_up(job.attempts, job.broke) else self._attempt(job, worker))
        except _LostError:
            await self._lost(job, worker)
        except Exception as failure:  # whatever Ray raises: an accepted job is not dropped for it
            log.warning("video %s: %s", job.id, told(failure))
            self._workers.settle(worker.worker_id)
            await self._back(self.queue.now(job).requeued())

    def _over(self, job_id: str, worker: Worker, task: asyncio.Task[None]) -> None:
        """Also of one that was cancelled before it began, of which its own code would tell nothing."""
        self._mine.pop(job_id, None)
        if task.cancelled():
            self._spawn(self._withdraw(job_id, worker))
        else:
            self._workers.over(job_id)

    async def _attempt(self, job: VideoJob, worker: Worker) -> None:
        """One rendering, its steps written to the store."""
        asked = Asked(
            spec=job.spec(),
            model=job.model,
            deadline_s=self.queue.due_s(job),
            priority=job.priority,
            alone=suspect(job.attempts, job.broke),
        )
        stream = worker.actor.render.options(num_returns="streaming").remote(asked)
        begun = job.attempts or job.steps_done  # one that was lent has steps and no attempt
        with self._metrics.stages(None if begun else self._now_s() - job.created_at_s) as entered:
            before, unheard, ended = job.steps_done, bool(job.steps_done), None  # of earlier attempts
            async for item in stream:
                news: News = await item
                match news:
                    case Begun():
                        entered("rendering")
                        job = job.begun()
                    case StepDone(done=done, total=total, seconds=seconds, way=way):
                        self._metrics.step(seconds)
                        if unheard:
                            saved, unheard = job.stepped(done - 1, total).steps_done, False
                            self._metrics.went_on(saved, lost_steps=max(0, before - saved))
                        job = replace(job.stepped(done, total), way=way)
                        if job.steps_done > before:  # no job takes its replica down that gets on
                            job = replace(job, attempts=1)
                    case StageBegun(stage=stage):
                        entered(stage)
                        job = job.staged(stage)
                    case Rendered():
                        ended = news
                        break
                job = await self._write(job)
        await self._rendered(job, worker, ended)

    async def _rendered(self, job: VideoJob, worker: Worker, how: Rendered | None) -> None:
        if how is None:
            raise ReplicaLost(f"{job.id}: the rendering ended without a result; one is needed; it is tried again")
        if how.error is not None:
            await self._end(job, how.error)
        elif how.broke is not None:
            await self._broke(job, worker, how.broke)
        elif how.hindered is not None:
            await self._pause(job, how.hindered, lasting=how.lasting)
        elif how.preempted:
            self._metrics.preempted()
            self._workers.rest(worker.worker_id)
            await self._back(job.preempted())
        else:
            await self._end(job, None, signed=how.signed)

    async def _give_up(self, job: VideoJob) -> None:
        await self._end(
            job,
            ReplicaLost(
                f"{job.id}: its replica was lost {job.attempts} times, and {job.broke} broke; a job that ends is "
                "allowed; change the request, or try again"
            ),
        )

    async def _broke(self, job: VideoJob, worker: Worker, why: str) -> None:
        """Counted for good, unlike attempts: a job that gains a step each time must not take the pool down."""
        log.warning("video %s: replica %s broke: %s", job.id, worker.worker_id, why)
        self._metrics.broke()
        self._workers.rest(worker.worker_id)
        job = job.broken()
        if not given_up(0, job.broke):
            await self._surely(job)
            await self._back(job)
            return
        await self._end(
            job,
            EngineFailed(
                f"{job.id}: {job.broke} replicas broke at this job, alone at the last; the last since {why}; a job "
                "that leaves its replica whole is allowed; change the request, and look at the GPUs"
            ),
        )

    async def _end(self, job: VideoJob, error: MorayError | None, *, signed: bool = False) -> None:
        video, now_s = self.queue.video, int(self._now_s())
        ended = job.failed(error) if error else job.completed(now_s, signed=signed, expires_s=video.expires_s)
        if error:
            self._workers.over(job.id)  # its replica is done with it, however long a store keeps us waiting
        await self._book(ended)  # first: told twice it counts once, told never it is lost
        await self._surely(ended)  # the files are there: it is rendered only once
        self.queue.pop(job.id)
        self._hindered.pop(job.id, None)
        self._metrics.ended(ended.error_code or "ok", signed=signed, intended=not video.provenance.sign)
        if error:
            self._spawn(clear(self._files, job.id))

    async def _surely(self, job: VideoJob) -> None:
        """Written, however long the store does not answer. Raises _LostError."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                if await in_thread(self._store.update, job):
                    return
                raise _LostError
            except Unavailable as failure:
                self._unavailable(failure)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _write(self, job: VideoJob) -> VideoJob:
        """Raises _LostError. A store that does not answer holds up no rendering: the next step is written anyway."""
        if job.id in self.queue:
            self.queue.put(job)
        try:
            if not await in_thread(self._store.update, job):
                raise _LostError
        except Unavailable as failure:
            self._unavailable(failure)
        return job

    async def _back(self, job: VideoJob) -> None:
        """To the queue. Where the store does not answer it comes back when its lease ends."""
        with contextlib.suppress(_LostError):
            await self._write(job)
            try:
                await in_thread(self._store.release, self._gateway, job.id)
            except Unavailable as failure:
                self._unavailable(failure)

    async def _pause(self, job: VideoJob, why: str, *, lasting: bool) -> None:
        """Nothing is wrong with the job: it is held, without a replica, and goes back to the queue in a while."""
        log.warning("video %s: %s", job.id, why)
        self._metrics.hindered()
        pauses = FIRST_PAUSE_S, LONGEST_PAUSE_S
        now = self._hindered[job.id] = hindered(self._hindered.get(job.id), self._now_s(), pauses, lasting=lasting)
        if now.lasts_s >= LASTING_S:
            mend = "a disk or a store that has room and may be written is allowed; mend it, and ask again"
            await self._end(job, Unavailable(f"{why}; so for {now.lasts_s:.0f} s; {mend}"))
            return
        job = await self._write(job.preempted())
        self._workers.over(job.id)
        await asyncio.sleep(now.pause_s)
        await self._back(job)

    async def _lost(self, job: VideoJob, worker: Worker) -> None:
        """Deleted elsewhere, or claimed by another gateway: that one may have asked the same replica for it."""
        self.queue.pop(job.id)
        try:
            deleted = await in_thread(self._store.get, job.owner, job.id) is None
        except Unavailable as failure:
            self._unavailable(failure)
            deleted = False
        if deleted:
            await self._withdraw(job.id, worker)
        else:
            self._workers.settle(worker.worker_id)

    async def _withdraw(self, job_id: str, worker: Worker) -> None:
        """What its replica wrote since the deletion goes."""
        self._hindered.pop(job_id, None)
        await self._workers.withdraw(job_id, worker)
        await clear(self._files, job_id)

    def _unavailable(self, failure: Unavailable) -> None:
        self._metrics.store_failed()
        log.warning("videos: %s", told(failure))

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
