"""A video replica that can be lent: a Ray actor with one engine, one job at a time.

Told to vacate, it stops at the next step boundary, with the job's state saved beside its file, and takes no more.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import EngineFailed, MorayError
from cluster.family import Video
from deployments.video.encode import write_mp4
from deployments.video.engine import Cancelled, OnStep, RenderSpec, VideoEngine
from deployments.video.saved import SavedState
from deployments.video.simulated import TITLE, SimulatedVideoEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A replica has started on the job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone:
    done: int
    total: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """How a job ended; errors travel as values. `preempted`: it did not, its state is saved and the replica leaves."""

    error: MorayError | None = None
    preempted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Doing:
    """What a worker is at; said at every change, and whenever a state was saved."""

    idle: bool
    leaving: bool


class VideoWorker:
    """All methods run on the actor's event loop. `accelerator` is the family's: cpu or cuda."""

    def __init__(self, video: Video, accelerator: str) -> None:
        self._engine: VideoEngine | SimulatedVideoEngine = (
            SimulatedVideoEngine(video)
            if video.engine == "simulated"
            else VideoEngine(video.checkpoint, video.dtype, accelerator)
        )
        self._loading: asyncio.Future[None] | None = None
        self._turn = asyncio.Lock()  # held while the engine works
        self._stop = threading.Event()  # of the job under way
        self._open = 0  # streams whose last word has not been said
        self._leaving = False
        self._changed = asyncio.Event()

    async def load(self) -> None:
        """Read the weights, once. Raises CheckpointError."""
        if self._loading is None:
            engine = self._engine
            reading = asyncio.to_thread(engine.load) if isinstance(engine, VideoEngine) else asyncio.sleep(0)
            self._loading = asyncio.ensure_future(reading)
        await asyncio.shield(self._loading)

    async def watch(self) -> AsyncIterator[Doing]:
        """Never ends: as long as somebody listens, this actor lives."""
        while True:
            changed = self._changed
            yield Doing(idle=not self._open, leaving=self._leaving)
            await changed.wait()

    async def vacate(self) -> None:
        """Take no more jobs; the one under way stops at its next step. Returns once it has."""
        self._leaving = True
        self._tell()
        await self.halt()

    async def halt(self) -> None:
        """The job under way stops at its next step, its state saved. Returns once there is none."""
        while self._open or self._turn.locked():
            changed = self._changed
            self._stop.set()
            await changed.wait()

    async def render(self, spec: RenderSpec, path: str) -> AsyncIterator[Begun | StepDone | Rendered]:
        """Its beginning, steps as they are done, then how it ended. Closing the iterator stops the work, too."""
        if self._leaving:
            yield Rendered(preempted=True)
            return
        self._open += 1
        stop = threading.Event()
        try:
            yield Begun()
            async for news in self._rendering(spec, Path(path), stop):
                yield news
        finally:
            stop.set()
            self._open -= 1
            self._tell()

    async def _rendering(
        self, spec: RenderSpec, path: Path, stop: threading.Event
    ) -> AsyncIterator[StepDone | Rendered]:
        loop = asyncio.get_running_loop()
        steps: asyncio.Queue[StepDone | None] = asyncio.Queue()
        before_s = time.monotonic()

        def on_step(done: int, total: int) -> None:
            nonlocal before_s
            now_s = time.monotonic()
            loop.call_soon_threadsafe(steps.put_nowait, StepDone(done=done, total=total, seconds=now_s - before_s))
            before_s = now_s

        def on_saved() -> None:
            loop.call_soon_threadsafe(self._tell)

        saved = SavedState(path, on_saved=on_saved)
        working = asyncio.ensure_future(self._work(spec, path, on_step, stop, saved))
        working.add_done_callback(lambda _: steps.put_nowait(None))
        while step := await steps.get():
            yield step
        yield await working

    async def _work(
        self, spec: RenderSpec, path: Path, on_step: OnStep, stop: threading.Event, saved: SavedState
    ) -> Rendered:
        """Not cancelled with its stream: the engine is free only once its thread has reached a step boundary."""
        try:
            async with self._turn:
                self._stop = stop
                self._tell()
                if isinstance(self._engine, VideoEngine):
                    frames, title = await asyncio.to_thread(self._engine.render, spec, on_step, stop.is_set, saved), ""
                else:
                    frames, title = await self._engine.render(spec, on_step, stop.is_set, saved), TITLE
                await asyncio.to_thread(write_mp4, frames, spec.fps, path, title)
                await asyncio.to_thread(saved.remove)
            return Rendered()
        except Cancelled:
            return Rendered(preempted=True)
        except MorayError as error:
            return Rendered(error=error)
        except Exception as error:
            return Rendered(error=EngineFailed(f"{spec.job_id}: {type(error).__name__}: {error}; try again"))
        finally:
            self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
