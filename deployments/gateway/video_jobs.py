"""The queue of video jobs and who renders them: the most urgent first, one per worker.

A job whose worker is lent goes back to the queue with what is done of it; so does one whose worker is lost, but only as
often as a job may begin. Nothing that goes wrong with a worker, or with the store, drops a job.
"""

import asyncio
import functools
import logging
import time
from collections.abc import Callable
from pathlib import Path

from autoscaling.signals import JobSeen
from cluster.cost import video_step_s
from cluster.errors import MorayError, ReplicaLost
from cluster.family import Video
from deployments.control.words import Worker
from deployments.gateway.metrics import GatewayMetrics
from deployments.stores.jobs import JobStore
from deployments.video.jobs import VideoJob
from deployments.video.worker import Begun, Rendered, StepDone

log = logging.getLogger("ray.serve")
MAX_ATTEMPTS = 3  # a job that takes its worker down each time must not do so for ever
HALT_S = 60.0  # between a worker's steps, at most; then it is asked again


class VideoJobs:
    """`file_of`: where the video of a job goes; its folder is made."""

    def __init__(self, video: Video, store: JobStore, file_of: Callable[[str], Path], metrics: GatewayMetrics) -> None:
        self.video = video  # as it is served now
        self._store = store
        self._file_of = file_of
        self._metrics = metrics
        self._jobs: dict[str, VideoJob] = {}
        self._rendering: dict[str, asyncio.Task[bool]] = {}  # by job
        self._workers: dict[str, Worker] = {}
        self._free: set[str] = set()
        self._busy: set[str] = set()
        self._settling: dict[str, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        """Jobs that are not finished."""
        return len(self._jobs)

    def resume(self) -> None:
        """Jobs that the last stop interrupted go back to the queue."""
        for job in self._store.unfinished():
            again = job.requeued()
            self._store.update(again)
            self.add(again)

    def add(self, job: VideoJob) -> None:
        """The store has it already."""
        self._jobs[job.id] = job
        self._dispatch()

    def drop(self, job_id: str) -> None:
        """Its worker stops at its next step."""
        self._jobs.pop(job_id, None)
        if (task := self._rendering.get(job_id)) is not None:
            task.cancel()

    def take(self, workers: tuple[Worker, ...]) -> None:
        """The workers that there are; jobs on others go on until they say how they end."""
        self._workers = {worker.worker_id: worker for worker in workers}
        self._free &= self._workers.keys()
        for worker in workers:
            if worker.worker_id not in self._free | self._busy | self._settling.keys():
                self._settle(worker)

    def seen(self) -> tuple[JobSeen, ...]:
        """The most urgent first."""
        return tuple(self._seen(job) for job in sorted(self._jobs.values(), key=_urgency))

    def _seen(self, job: VideoJob) -> JobSeen:
        step_s = video_step_s(self.video, job.size, job.seconds)
        return JobSeen(
            left_gpu_s=(job.steps - job.steps_done) * step_s * self.video.gpus,
            deadline_s=job.created_at_s + self.video.slo.deadline_s,
            value_usd=job.seconds * self.video.price.usd_per_second,
        )

    def _settle(self, worker: Worker) -> None:
        """It may be at a job that nobody here follows: of a gateway that is gone, or of one that was deleted."""
        task = self._settling[worker.worker_id] = asyncio.create_task(self._settled(worker))
        task.add_done_callback(lambda _: self._settling.pop(worker.worker_id, None))

    async def _settled(self, worker: Worker) -> None:
        try:
            async with asyncio.timeout(HALT_S):
                await worker.actor.halt.remote()
        except Exception as failure:  # it is lost: it will not be named again; otherwise it is asked anew
            log.warning("video worker %s: %s", worker.worker_id, _told(failure))
            return
        if worker.worker_id in self._workers:
            self._free.add(worker.worker_id)
            self._dispatch()

    def _dispatch(self) -> None:
        waiting = sorted((job for job in self._jobs.values() if job.id not in self._rendering), key=_urgency)
        for job, worker_id in zip(waiting, sorted(self._free), strict=False):
            self._free.remove(worker_id)
            self._busy.add(worker_id)
            worker = self._workers[worker_id]
            task = self._rendering[job.id] = asyncio.create_task(self._render(job, worker))
            task.add_done_callback(functools.partial(self._over, job.id, worker))

    async def _render(self, job: VideoJob, worker: Worker) -> bool:
        """One attempt. Whether the worker is free afterwards; otherwise it has to be settled first."""
        try:
            return await (self._attempt(job, worker) if job.attempts < MAX_ATTEMPTS else self._give_up(job))
        except Exception as failure:  # whatever Ray or the store raises: an accepted job is not dropped for it
            log.warning("video %s: %s", job.id, _told(failure))
            await self._requeue(job)
            return False

    def _over(self, job_id: str, worker: Worker, rendering: asyncio.Task[bool]) -> None:
        """Also of one that was cancelled before it began, of which its own code would tell nothing."""
        self._rendering.pop(job_id, None)
        self._busy.discard(worker.worker_id)
        if rendering.cancelled():
            self._settle(worker)
        elif rendering.result() and worker.worker_id in self._workers:
            self._free.add(worker.worker_id)
        self._dispatch()

    async def _attempt(self, job: VideoJob, worker: Worker) -> bool:
        """One rendering, its steps written to the store. False where the worker takes no more jobs now."""
        file = self._file_of(job.id)
        file.parent.mkdir(exist_ok=True)
        stream = worker.actor.render.options(num_returns="streaming").remote(job.spec(), str(file))
        async for item in stream:
            match await item:
                case Begun():
                    job = await self._write(job.begun())
                case StepDone(done=done, total=total, seconds=seconds):
                    self._metrics.video_step(seconds)
                    job = await self._write(job.stepped(done, total))
                case Rendered(preempted=True):
                    self._metrics.video_preempted()
                    await self._write(job.preempted())
                    return False
                case Rendered(error=error):
                    await self._end(job, error)
                    return True
        await self._end(job, ReplicaLost(f"{job.id}: the rendering ended without a result; try again"))
        return True

    async def _give_up(self, job: VideoJob) -> bool:
        await self._end(job, ReplicaLost(f"{job.id}: its replica was lost {job.attempts} times; try again"))
        return True

    async def _end(self, job: VideoJob, error: MorayError | None) -> None:
        job = job.failed(error) if error else job.completed(int(time.time()))
        await asyncio.to_thread(self._store.update, job)
        self._jobs.pop(job.id, None)
        self._metrics.video_finished(job.error_code or "ok")

    async def _write(self, job: VideoJob) -> VideoJob:
        if job.id in self._jobs:
            self._jobs[job.id] = job
        await asyncio.to_thread(self._store.update, job)
        return job

    async def _requeue(self, job: VideoJob) -> None:
        """The attempt counts if the worker had begun."""
        again = self._jobs.get(job.id, job).requeued()
        try:
            await self._write(again)
        except Exception as failure:  # its next change is written anyway
            log.warning("video %s: %s", job.id, _told(failure))


def _told(failure: Exception) -> str:
    """One line of it: Ray's messages carry tracebacks of other processes."""
    return f"{type(failure).__name__}: {str(failure).partition(chr(10))[0]}"


def _urgency(job: VideoJob) -> int:
    """All have the same time from creation to deadline; those of one second stay as they came."""
    return job.created_at_s
