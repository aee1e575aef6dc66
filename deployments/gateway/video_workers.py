"""The video replicas as the queue sees them: which has room, and which has to be settled, or to rest, before it has.

A replica that was just met may be at jobs of a gateway that is gone: it is halted first, what it does is saved, and
jobs of other gateways on it go back to the queue and on from there.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable

from deployments.control.words import Worker

log = logging.getLogger("ray.serve")
HALT_S = 60.0  # between a replica's steps, at most; then it is asked again
REST_S = 2.0  # of a replica that gave a job back: it leaves, or is full of another gateway's jobs


class VideoWorkers:
    """On one event loop; raises nothing for a replica's fault. `on_room` is called when there may be room again."""

    def __init__(self, on_room: Callable[[], None]) -> None:
        self.rest_s = REST_S
        self._on_room = on_room
        self._named: dict[str, Worker] = {}
        self._settled: set[str] = set()
        self._settling: dict[str, asyncio.Task[None]] = {}
        self._resting: dict[str, asyncio.TimerHandle] = {}
        self._jobs: dict[str, Worker] = {}  # by job
        self._alone: set[str] = set()  # jobs whose replicas take no other

    def take(self, workers: tuple[Worker, ...]) -> None:
        """The replicas that there are; jobs on others go on until they say how they end."""
        self._named = {worker.worker_id: worker for worker in workers}
        self._settled &= self._named.keys()
        for worker_id in self._named.keys() - self._settled - self._settling.keys():
            self.settle(worker_id)

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._named))

    def of(self, job_id: str) -> str | None:
        """The replica that has the job."""
        worker = self._jobs.get(job_id)
        return worker.worker_id if worker else None

    def with_room(self, concurrent: int) -> Worker | None:
        """The one with the fewest jobs of this gateway, where any has fewer than `concurrent`."""
        alone = {self._jobs[job_id].worker_id for job_id in self._alone}
        counts = {worker_id: 0 for worker_id in sorted(self._settled - self._resting.keys() - alone)}
        for worker in self._jobs.values():
            if worker.worker_id in counts:
                counts[worker.worker_id] += 1
        fewest = min(counts, key=lambda worker_id: counts[worker_id], default=None)
        return self._named[fewest] if fewest is not None and counts[fewest] < concurrent else None

    def give(self, job_id: str, worker: Worker, *, alone: bool = False) -> None:
        """`alone`: no other job of this gateway comes to the replica meanwhile, where it would have to wait."""
        self._jobs[job_id] = worker
        if alone:
            self._alone.add(job_id)

    def over(self, job_id: str) -> None:
        self._jobs.pop(job_id, None)
        self._alone.discard(job_id)
        self._on_room()

    async def withdraw(self, job_id: str, worker: Worker) -> None:
        """Returns once the replica writes no more of the job, however long what it stores takes, or is lost."""
        try:
            while not await self._withdrawn(job_id, worker):
                log.warning("video %s: replica %s is still at it after %g s", job_id, worker.worker_id, HALT_S)
        except Exception as failure:
            log.warning("video %s: %s", job_id, told(failure))
            self.settle(worker.worker_id)
        finally:
            self.over(job_id)

    def rest(self, worker_id: str) -> None:
        if worker_id not in self._resting:
            self._resting[worker_id] = asyncio.get_running_loop().call_later(self.rest_s, self._rested, worker_id)

    def settle(self, worker_id: str) -> None:
        """No job more until it has halted; if that fails it is asked again when it is named again."""
        self._settled.discard(worker_id)
        if worker_id in self._named and worker_id not in self._settling:
            task = self._settling[worker_id] = asyncio.create_task(self._settle(self._named[worker_id]))
            task.add_done_callback(lambda _: self._settling.pop(worker_id, None))

    async def _settle(self, worker: Worker) -> None:
        try:
            async with asyncio.timeout(HALT_S):
                await worker.actor.halt.remote()
        except Exception as failure:  # it is lost: it will not be named again; otherwise it is asked anew
            log.warning("video replica %s: %s", worker.worker_id, told(failure))
            return
        if worker.worker_id in self._named:
            self._settled.add(worker.worker_id)
            self._on_room()

    async def _withdrawn(self, job_id: str, worker: Worker) -> bool:
        """False where it does not say so in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HALT_S):
                await worker.actor.withdraw.remote(job_id)
                return True
        return False

    def _rested(self, worker_id: str) -> None:
        self._resting.pop(worker_id, None)
        self._on_room()


def told(failure: BaseException) -> str:
    """One line of it: Ray's messages carry tracebacks of other processes."""
    return f"{type(failure).__name__}: {str(failure).partition(chr(10))[0]}"
