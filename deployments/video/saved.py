"""The state of an unfinished job in the file store: it goes on where it stopped, on whatever replica and node."""

import asyncio
import logging

from cluster.errors import NotFound, Unavailable
from deployments.stores.files import STATE, Files

log = logging.getLogger("ray.serve")
SAVES_SHARE = 0.05  # of the time of steps


class Saves:
    """The states of one job in the file store, one write at a time, each of the newest state.

    A state is taken on the engine's thread and costs the jobs there its time; it is due once the steps since the last
    one took so much longer that saving is SAVES_SHARE of them, which for steps of more than a few milliseconds is every
    step. Writing goes on beside the next steps, and until it is done none is due. So a replica that dies loses one step
    of a job, or what a write or 20 saves take. An aid: where it fails the log says so and the job goes on.
    """

    def __init__(self, files: Files, job_id: str) -> None:
        self._files = files
        self._job_id = job_id
        self._key = f"{job_id}/{STATE}"
        self._steps_s = self._cost_s = 0.0
        self._writing: asyncio.Task[None] | None = None
        self.newest: bytes | None = None

    async def read(self) -> bytes | None:
        self.newest = await self._files.read(self._key)
        return self.newest

    def due(self, step_s: float) -> bool:
        """After a step that took so long. Any thread."""
        self._steps_s += step_s
        idle = self._writing is None or self._writing.done()
        return idle and self._cost_s <= SAVES_SHARE * self._steps_s

    def put(self, state: bytes, cost_s: float) -> None:
        """`cost_s`: the engine's time for it. No state: there is none to go on from."""
        self._steps_s, self._cost_s = 0.0, cost_s
        if state:
            self.newest = state
            self._writing = asyncio.create_task(self._write(self._writing, state))

    async def written(self) -> None:
        if self._writing is not None:
            await self._writing

    async def remove(self) -> None:
        await self.written()
        await self._files.delete(self._key)

    async def _write(self, before: asyncio.Task[None] | None, state: bytes) -> None:
        if before is not None:
            await before
        try:
            await self._files.put_bytes(self._key, state)
        except (Unavailable, NotFound) as error:  # the latter where its job was just deleted
            log.warning("video %s: its state is not saved: %s", self._job_id, error)
