"""A video replica that can be lent: a Ray actor with one engine and up to `video.concurrent` jobs under way.

Steps are taken and chunks decoded on the engine's thread; files are made and stored on others meanwhile. Told to
vacate, it stops at the next boundary, with the states of its jobs in the file store, and takes no more.
"""

import asyncio
import contextlib
import logging
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster.errors import EngineFailed, MorayError, RequestError
from cluster.family import Video
from cluster.faults import fault_of, short
from deployments.stores.files import VIDEO, files_of
from deployments.video import finish
from deployments.video.engine import engine_for
from deployments.video.finish import Finish
from deployments.video.messages import BEAT_S, Asked, Doing, News, Rendered, StageBegun
from deployments.video.room import Room
from deployments.video.saved import Saves
from deployments.video.scratch import scratch, sweep
from deployments.video.simulated import SimulatedVideoEngine
from deployments.video.spec import Stage, StepEngine
from deployments.video.stepping import Job, Stepping, Stopped

log = logging.getLogger("ray.serve")
TELL_SAVED_S = 1.0  # at least, between two words about saved states


class VideoWorker:
    """All methods run on the actor's event loop."""

    def __init__(
        self,
        video: Video,
        accelerator: str,
        state_folder: str,
        scratch_folder: str | None = None,
        engine: StepEngine | None = None,
    ) -> None:
        """`accelerator`: the family's, cpu or cuda. `scratch_folder`: where files are made before they are stored;

        the system's for temporary files where none is named. `engine`: in place of the family's.
        """
        self._video = video
        self._state_folder, self._scratch = Path(state_folder), Path(scratch_folder or tempfile.gettempdir())
        self._files = files_of(video, self._state_folder)
        self._stepping = Stepping(video, engine or _engine(video, accelerator), self._tell_saved)
        self._finish: Finish
        self._finishing = ThreadPoolExecutor(max_workers=video.concurrent, thread_name_prefix="finish")
        self._loading: asyncio.Future[None] | None = None
        self._jobs: dict[str, Job] = {}
        self._streams = 0  # whose last word has not been said
        self._room = Room()
        self._proven_tokens, self._was_short = 0, False  # see cluster.faults.short
        self._broken: Exception | None = None
        self._leaving = False
        self._told_s = 0.0
        self._changed = asyncio.Event()

    async def load(self) -> None:
        """Read the weights, once. Raises CheckpointError, ConfigurationError; OSError where no file can be made."""
        if self._loading is None:
            self._loading = asyncio.ensure_future(self._load())
        await asyncio.shield(self._loading)

    async def _load(self) -> None:
        await asyncio.to_thread(sweep, self._scratch)
        async with scratch(self._scratch):  # it is told before a job is asked for
            pass
        self._finish = await asyncio.to_thread(Finish, self._video, self._state_folder)
        await self._stepping.load()

    async def watch(self) -> AsyncIterator[Doing | None]:
        """Never ends: as long as somebody listens, this actor lives."""
        while True:
            changed = self._changed
            yield Doing(idle=not self._jobs, leaving=self._leaving)
            while not await _within(changed.wait(), BEAT_S):
                yield None

    async def vacate(self) -> None:
        """Take no more jobs; those under way stop at their next step. Returns once they have."""
        self._leaving = True
        self._tell()
        await self.halt()

    async def halt(self) -> None:
        """The jobs under way stop at their next step, their states saved. Returns once all have been told of it."""
        while self._jobs or self._streams:
            changed = self._changed
            for job in self._jobs.values():
                job.stop()
            await changed.wait()

    async def withdraw(self, job_id: str) -> None:
        """The job was deleted: it stops at its next step and saves nothing. Returns once it writes no more."""
        while (job := self._jobs.get(job_id)) is not None:
            changed = self._changed
            job.stop(withdrawn=True)
            await changed.wait()

    async def render(self, asked: Asked) -> AsyncIterator[News]:
        """See deployments.video.messages. Closing the iterator stops the work, too; its state is saved.

        A job that is under way here already stops, and goes on from its state in the new stream.
        """
        while (earlier := self._jobs.get(asked.spec.job_id)) is not None:
            changed = self._changed
            earlier.stop()
            await changed.wait()
        if self._leaving or len(self._jobs) >= self._video.concurrent:
            yield Rendered(preempted=True)
            return
        job = self._stepping.job(asked, Saves(self._files, asked.spec.job_id))
        self._jobs[job.spec.job_id] = job
        self._streams += 1
        self._tell()
        working = asyncio.create_task(self._work(job))  # not cancelled with its stream: it ends at a boundary
        working.add_done_callback(lambda _: job.news.put_nowait(None))
        try:
            while news := await job.news.get():
                yield news
            yield working.result()
        finally:
            job.stop()
            self._streams -= 1
            self._tell()

    async def _work(self, job: Job) -> Rendered:
        try:
            async with scratch(self._scratch) as job.folder:
                return await self._rendered(job)
        except Stopped:
            return Rendered(preempted=True)
        except Exception as error:
            return self._faulty(job, error)
        finally:
            await job.saves.written()  # the next replica reads it, and who withdraws a job finds it once it is whole
            del self._jobs[job.spec.job_id]
            self._tell()

    async def _rendered(self, job: Job) -> Rendered:
        await self.load()
        simulated, job_id = self._video.engine == "simulated", job.spec.job_id
        signed = await self._stored(job)  # a worker stored it and died before it said so
        if signed is None:
            await finish.fetch(self._files, job.spec, job.folder, sign=self._finish.signs)
            await job.saves.read()
            kept = await self._kept(job)
            self._at(job)("storing")
            signed = await self._stored(job)  # by another, of a gateway whose lease had ended: one result is enough
            if signed is None:
                await finish.store(self._files, job_id, kept, job.folder)
                signed = self._finish.signs
        await job.saves.remove()
        return Rendered(signed=signed, simulated=simulated)

    async def _stored(self, job: Job) -> bool | None:
        """Whether its video is signed; None where there is none."""
        key, found = f"{job.spec.job_id}/{VIDEO}", job.folder / f"stored-{VIDEO}"
        if await self._files.size(key) is None:
            return None
        job.begin()
        await self._files.get(key, found)
        return await asyncio.to_thread(finish.signed, found)

    async def _kept(self, job: Job) -> bytes:
        """Its latents, all else made. Where memory is short once more, from its newest state, without other jobs."""
        try:
            async with self._room.entered(job.stopped, alone=job.asked.alone):
                job.begin()
                return await self._made(job)
        except Exception as error:
            if fault_of(error) != "memory" or self._broken is not None:
                raise
            log.warning("video %s: %s; it tries once more, alone", job.spec.job_id, error)
        async with self._room.entered(job.stopped, alone=True):
            await self._stepping.free(job)
            return await self._made(job)

    async def _made(self, job: Job) -> bytes:
        job.stage = "rendering"
        kept = await self._stepping.run(job)
        loop, at, chunks = asyncio.get_running_loop(), self._at(job), self._stepping.chunks(job)
        await loop.run_in_executor(self._finishing, self._finish.make, job.asked, chunks, job.folder, at)
        self._proven_tokens, self._was_short = max(self._proven_tokens, job.tokens), False
        return kept

    def _faulty(self, job: Job, error: Exception) -> Rendered:
        """The last word of a job that ended otherwise than it should."""
        job_id, spec = job.spec.job_id, job.spec
        why = f"{job_id}: {error}" if isinstance(error, OSError) else f"{job_id}: {type(error).__name__}: {error}"
        if self._broken is not None and error is not self._broken and not isinstance(error, RequestError):
            return Rendered(preempted=True)  # nothing that is said of a lost device can be believed
        match fault_of(error):
            case "full" | "passing" as fault:
                told = error.message if isinstance(error, MorayError) else str(error)
                return Rendered(hindered=f"{job_id}: {told}", lasting=fault == "full")
            case "device" | "disk":
                return self._broke(error, why)
            case "memory" if short(job.tokens, self._proven_tokens, failed_before=self._was_short) == "device":
                return self._broke(error, f"{why}; jobs as large had room here, or another has just had none")
            case "memory":
                self._was_short = True
                size = f"{spec.width}x{spec.height}, {spec.frames} frames"
                return Rendered(
                    error=EngineFailed(
                        f"{why}; {size} alone do not fit into the memory of a replica; less is allowed; ask for a "
                        "smaller size or fewer seconds, or serve it with video.acceleration or on larger GPUs",
                        param="size",
                    )
                )
        return Rendered(error=error if isinstance(error, MorayError) else EngineFailed(f"{why}; try again"))

    def _broke(self, error: Exception, why: str) -> Rendered:
        """This process can render no more: whoever watches it ends it once its jobs have left."""
        if self._broken is None:
            log.error("this replica is broken and leaves: %s", why)
            self._broken, self._stepping.thread.broken, self._leaving = error, True, True
            for other in self._jobs.values():
                other.stop()
            self._tell()
        return Rendered(broke=why)

    def _at(self, job: Job) -> Callable[[Stage], None]:
        """For any thread: tells of stages, and stops at their boundaries. What is signed is stored unless withdrawn."""
        loop = asyncio.get_running_loop()

        def at(stage: Stage) -> None:
            if job.withdrawn or (job.stopping and stage in ("decoding", "encoding")):
                raise Stopped
            if stage != job.stage:
                job.stage = stage
                loop.call_soon_threadsafe(job.news.put_nowait, StageBegun(stage=stage))

        return at

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _tell_saved(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._told_s >= TELL_SAVED_S:
            self._told_s = now_s
            self._tell()


async def _within(waiting: Coroutine[None, None, object], seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await waiting
            return True
    return False


def _engine(video: Video, accelerator: str) -> StepEngine:
    return SimulatedVideoEngine(video) if video.engine == "simulated" else engine_for(video, accelerator)
