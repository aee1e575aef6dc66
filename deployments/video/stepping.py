"""The engine's one thread: a step of some jobs, as cluster.steps chooses them, or a chunk of one decoded, in turns.

So what the device holds is bounded by one of either, and nothing of an engine is ever called twice at once.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from cluster.cost import video_step_s
from cluster.family import Video
from cluster.faults import fault_of
from cluster.steps import Underway, choose
from deployments.video.messages import Asked, Begun, News, StepDone
from deployments.video.saved import Saves
from deployments.video.spec import Frames, Rendering, RenderSpec, Stage, StepEngine
from deployments.video.thread import EngineThread

log = logging.getLogger("ray.serve")


class Stopped(Exception):
    """The job was told to stop; raised at the boundary of a step, a chunk or a stage."""


class Job:
    """One job under way in a worker; `folder` has what it is made from. `news`: for its stream, None is the end.

    `stopping`: it is to leave; `withdrawn`: and to leave nothing behind. `stopped` ends its waiting for room.
    """

    def __init__(self, asked: Asked, saves: Saves, step_s: float, now_s: float) -> None:
        self.asked, self.saves = asked, saves
        self.spec: RenderSpec = asked.spec
        self.news: asyncio.Queue[News | None] = asyncio.Queue()
        self.folder = Path()
        self.stage: Stage = "rendering"
        self.begun = self.stopping = self.withdrawn = False
        self.rendering: Rendering
        self.stepped: asyncio.Future[None]
        self.stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.alone = asked.alone  # or a step that it shared has failed
        self.saved: int | None = None  # steps done in the newest state
        self.key: tuple[object, ...] = ()
        self.tokens = 0
        self.since_s = now_s
        self._deadline_s = now_s + asked.deadline_s - time.time()
        self._spent_s, self._steps = step_s, 1  # the cost model counts as one step that was seen
        self._longest_s = step_s

    def begin(self) -> None:
        """Said once: its attempt counts from now on."""
        if not self.begun:
            self.begun = True
            self.news.put_nowait(Begun())

    def stop(self, *, withdrawn: bool = False) -> None:
        self.stopping, self.withdrawn = True, self.withdrawn or withdrawn
        if not self.stopped.done():
            self.stopped.set_exception(Stopped())
            self.stopped.exception()  # it is no fault where nobody waits

    @property
    def done(self) -> bool:
        return self.rendering.done >= self.rendering.total

    def took(self, share_s: float, now_s: float) -> None:
        self._spent_s, self._steps, self.since_s = self._spent_s + share_s, self._steps + 1, now_s
        self._longest_s = max(self._longest_s, share_s)

    @property
    def usual_s(self) -> float:
        """Of a call of the engine for it: a step; all of them, where a pipeline's own call may report none of them."""
        rendering: Rendering | None = vars(self).get("rendering")
        own = rendering is not None and rendering.way == "pipeline"
        return self._longest_s * (self.spec.steps if own else 1)

    def underway(self, gpus: int) -> Underway:
        step_s = self._spent_s / self._steps
        return Underway(
            job_id=self.spec.job_id,
            key=(*self.key, self.spec.job_id if self.alone else ""),
            tokens=self.tokens,
            step_s=step_s,
            left_gpu_s=(self.rendering.total - self.rendering.done) * step_s * gpus,
            deadline_s=self._deadline_s,
            since_s=self.since_s,
            priority=self.asked.priority,
        )


_State = tuple[Job, bytes, float]  # and the engine's seconds for it


class Stepping:
    """`on_saved` is called on the loop whenever states are on their way to the store."""

    def __init__(self, video: Video, engine: StepEngine, on_saved: Callable[[], None]) -> None:
        self._video = video
        self._engine = engine
        self._on_saved = on_saved
        self.thread = EngineThread()
        self._waiting: dict[str, Job] = {}  # for a step
        self._loop: asyncio.Task[None] | None = None
        self._most_tokens = 0  # of a step: no more than one of the largest clip has

    async def load(self) -> None:
        """Raises CheckpointError."""
        await self.thread.ask(math.inf, self._load)

    def _load(self) -> None:
        self._engine.load()
        self._most_tokens = max(self._engine.tokens(spec) for spec in _largest(self._video))

    def job(self, asked: Asked, saves: Saves) -> Job:
        spec, now_s = asked.spec, asyncio.get_running_loop().time()
        step_s = video_step_s(self._video, f"{spec.width}x{spec.height}", spec.frames / self._video.fps)
        return Job(asked, saves, step_s, now_s)

    async def run(self, job: Job) -> bytes:
        """All of its steps, from its newest state; then the latents that are kept. The last state is stored before.

        Raises Stopped, its state stored, too, unless it was withdrawn or the device is lost; whatever `thread` raises.
        """
        await self.thread.ask(job.usual_s, self._open, job)
        if not job.done:
            await self._stepped(job)
        return await self.thread.ask(job.usual_s, self._engine.kept, job.rendering)

    def chunks(self, job: Job) -> Iterator[Frames]:
        """Its frames, for another thread; each chunk is decoded on the engine's. Then the engine is done with it."""
        pieces = self.thread.wait(job.usual_s, partial(self._engine.decode, job.rendering))
        while (chunk := self.thread.wait(job.usual_s, lambda: next(pieces, None))) is not None:
            yield chunk
        del job.rendering

    async def free(self, job: Job) -> None:
        """All memory that can be spared, the job's own too: it is to be run again."""
        await self.thread.ask(job.usual_s, self._free, job)

    def _free(self, job: Job) -> None:
        vars(job).pop("rendering", None)
        self._engine.free()

    def _open(self, job: Job) -> None:
        job.key, job.tokens = self._engine.key(job.spec), self._engine.tokens(job.spec)
        newest = job.saves.newest
        try:
            job.rendering = self._engine.open(job.spec, job.folder, newest)
            job.saved = job.rendering.done if newest is not None else None
        except ValueError as why:
            if newest is None or fault_of(why) != "job":  # it is no fault of the state that memory is short
                raise
            log.warning("video %s: its state: %s; the job begins anew", job.spec.job_id, why)
            job.rendering, job.saved = self._engine.open(job.spec, job.folder, None), None

    async def _stepped(self, job: Job) -> None:
        loop = asyncio.get_running_loop()
        job.since_s, job.stepped = loop.time(), loop.create_future()
        self._waiting[job.spec.job_id] = job
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._step())
        await job.stepped
        if not job.withdrawn and not self.thread.broken:
            if job.saved != job.rendering.done:
                self._put(await self.thread.ask(job.usual_s, self._states, [job]))
            await job.saves.written()
        if not job.done:
            raise Stopped

    async def _step(self) -> None:
        """One forward after the other, as long as jobs wait for one."""
        while self._let_go():
            try:
                group = self._group()
            except Exception as error:  # nobody may wait for a step that is never chosen
                self._failed(list(self._waiting.values()), error)
                return
            try:
                await self._forward(group)
            except Exception as error:  # whatever an engine raises, the others go on
                await self._fault(group, error)

    def _group(self) -> list[Job]:
        now_s, gpus = asyncio.get_running_loop().time(), self._video.gpus
        jobs = [job.underway(gpus) for job in self._waiting.values()]
        choice = choose(jobs, now_s, max_tokens=self._most_tokens, gpus=gpus)
        return [self._waiting[job_id] for job_id in choice.job_ids]

    def _let_go(self) -> bool:
        """Those that have all their steps or were told to stop. Whether others wait."""
        for job in list(self._waiting.values()):
            if job.done or job.stopping:
                del self._waiting[job.spec.job_id]
                job.stepped.set_result(None)
        return bool(self._waiting)

    async def _forward(self, group: Sequence[Job]) -> None:
        seconds, states = await self.thread.ask(sum(job.usual_s for job in group), self._one_step, group)
        now_s = asyncio.get_running_loop().time()
        for job in group:
            job.took(seconds / len(group), now_s)
            done, total, way = job.rendering.done, job.rendering.total, job.rendering.way
            job.news.put_nowait(StepDone(done=done, total=total, seconds=seconds, together=len(group), way=way))
        self._put(states)

    def _one_step(self, group: Sequence[Job]) -> tuple[float, list[_State]]:
        """Its seconds, and the states that are due."""
        start_s = time.perf_counter()
        self._engine.step([job.rendering for job in group])
        seconds = time.perf_counter() - start_s
        due = [job for job in group if job.saves.due(seconds) or job.done or job.stopping]
        return seconds, self._states([job for job in due if not job.withdrawn])

    def _states(self, jobs: Sequence[Job]) -> list[_State]:
        states = []
        for job in jobs:
            start_s = time.perf_counter()
            state = self._engine.save(job.rendering)
            job.saved = job.rendering.done
            states.append((job, state, time.perf_counter() - start_s))
        return states

    def _put(self, states: Sequence[_State]) -> None:
        for job, state, cost_s in states:
            job.saves.put(state, cost_s)
        if states:
            self._on_saved()

    async def _fault(self, group: Sequence[Job], error: Exception) -> None:
        """Of several, each goes on from its newest state and steps alone: who is at fault fails then.

        A lost device is all of theirs: any of them may have broken it.
        """
        lost = len(group) == 1 or fault_of(error) == "device"
        for job in group:
            job.alone = True
            if not lost:
                try:
                    await self.thread.ask(job.usual_s, self._reopen, job)
                    continue
                except Exception as again:
                    if fault_of(again) != "device":
                        self._failed([job], again)
                        continue
                    error, lost = again, True
            self._failed([job], error)

    def _reopen(self, job: Job) -> None:
        self._free(job)
        self._open(job)

    def _failed(self, jobs: Sequence[Job], error: Exception) -> None:
        for job in jobs:
            del self._waiting[job.spec.job_id]
            job.stepped.set_exception(error)


def _largest(video: Video) -> Iterator[RenderSpec]:
    """The longest clip of each size."""
    frames = max(video.seconds) * video.fps
    for size in video.sizes:
        width, height = (int(side) for side in size.split("x"))
        yield RenderSpec(
            job_id="", prompt="", width=width, height=height, frames=frames, fps=video.fps, steps=1, guidance=1, seed=0
        )
