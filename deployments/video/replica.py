"""A video replica: one engine, one job at a time, progress per denoising step."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import EngineFailed, MorayError
from cluster.family import Family
from deployments.video.encode import write_mp4
from deployments.video.engine import RenderSpec, VideoEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone:
    """`done` 0: this replica has begun."""

    done: int
    total: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """How a job ended; errors travel as values, so that a refused size is no fault of the replica in Serve's eyes."""

    error: MorayError | None = None


class VideoReplica:
    async def __init__(self, family: Family) -> None:  # type: ignore[misc]  # Serve awaits it
        video = family.video
        assert video is not None
        self._engine = VideoEngine(video.checkpoint, video.dtype, family.accelerator)
        await asyncio.to_thread(self._engine.load)

    async def render(self, spec: RenderSpec, path: str) -> AsyncIterator[StepDone | Rendered]:
        """Steps as they are done, then how it ended. Closing the iterator stops the work at the next step."""
        loop = asyncio.get_running_loop()
        steps: asyncio.Queue[StepDone | None] = asyncio.Queue()
        stop = threading.Event()
        before_s = time.monotonic()

        def on_step(done: int, total: int) -> None:
            nonlocal before_s
            now_s = time.monotonic()
            loop.call_soon_threadsafe(steps.put_nowait, StepDone(done=done, total=total, seconds=now_s - before_s))
            before_s = now_s

        def work() -> None:
            write_mp4(self._engine.render(spec, on_step, stop.is_set), spec.fps, Path(path))

        yield StepDone(done=0, total=spec.steps, seconds=0.0)
        working = asyncio.ensure_future(asyncio.to_thread(work))
        working.add_done_callback(lambda _: steps.put_nowait(None))
        try:
            while step := await steps.get():
                yield step
            await working
            yield Rendered()
        except MorayError as error:
            yield Rendered(error=error)
        except Exception as error:
            yield Rendered(error=EngineFailed(f"{spec.job_id}: {type(error).__name__}: {error}; try again"))
        finally:
            stop.set()
