"""The worker without Ray; its engine is the test's unless the test is about engines."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from threading import Event
from typing import Any

import av
import numpy as np
import pytest
from shell import VIDEO

from cluster.errors import CheckpointError, InvalidRequest
from cluster.family import Video
from deployments.video.engine import Cancelled, Frames, OnStep, RenderSpec, VideoEngine
from deployments.video.saved import SavedState
from deployments.video.worker import Begun, Doing, Rendered, StepDone, VideoWorker

FRAMES = np.zeros((4, 16, 16, 3), np.uint8)
BOUNDARY_S = 20.0


class Steps(VideoEngine):
    """Steps that are done when the test allows it; the prompt may name an exception."""

    def __init__(self) -> None:
        super().__init__("none", "float32", "cpu")
        self.go = Event()
        self.running = 0

    def load(self) -> None: ...

    def render(
        self, spec: RenderSpec, on_step: OnStep, cancelled: Callable[[], bool], saved: SavedState | None = None
    ) -> Frames:
        assert saved is not None
        self.running += 1
        assert self.running == 1, "two jobs at once"
        try:
            if spec.prompt == "refused":
                raise InvalidRequest("size: too large")
            if spec.prompt == "broken":
                raise RuntimeError("out of memory")
            for done in range(int(saved.read() or 0) + 1, spec.steps + 1):
                assert self.go.wait(BOUNDARY_S)
                on_step(done, spec.steps)
                if cancelled():
                    saved.write(str(done).encode())
                    raise Cancelled
            return FRAMES
        finally:
            self.running -= 1


def spec(prompt: str = "a ball", **changes: Any) -> RenderSpec:
    given: dict[str, Any] = {
        "job_id": "video_1", "prompt": prompt, "width": 16, "height": 16,
        "frames": 4, "fps": 8, "steps": 3, "guidance": 5.0, "seed": 7,
    }  # fmt: skip
    return RenderSpec(**given | changes)


def video(**changes: Any) -> Video:
    return Video.model_validate(VIDEO | {"engine": "simulated"} | changes)


def worker_of(engine: Steps) -> VideoWorker:
    worker = VideoWorker(video(), "cpu")
    worker._engine = engine
    return worker


async def told(stream: AsyncIterator[Any]) -> list[Any]:
    return [news async for news in stream]


@pytest.fixture
def engine() -> Steps:
    return Steps()


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(tmp_path / "video.mp4")


async def test_a_job_is_begun_stepped_and_rendered(engine: Steps, file: str) -> None:
    engine.go.set()
    begun, *steps, last = await told(worker_of(engine).render(spec(), file))
    assert (begun, last) == (Begun(), Rendered())
    assert [(step.done, step.total) for step in steps] == [(1, 3), (2, 3), (3, 3)]
    assert [each.name for each in Path(file).parent.iterdir()] == ["video.mp4"]


@pytest.mark.parametrize(("prompt", "code"), [("refused", "invalid_value"), ("broken", "engine_failed")])
async def test_a_failure_is_said_and_the_next_job_runs(engine: Steps, file: str, prompt: str, code: str) -> None:
    engine.go.set()
    worker = worker_of(engine)
    *_, last = await told(worker.render(spec(prompt), file))
    assert last.error.code == code
    assert (await told(worker.render(spec(), file)))[-1] == Rendered()


async def test_a_vacated_worker_stops_at_the_next_step_and_another_goes_on(engine: Steps, file: str) -> None:
    worker = worker_of(engine)
    stream = worker.render(spec(), file)
    assert await anext(stream) == Begun()
    rest = asyncio.ensure_future(told(stream))
    while not engine.running:
        await asyncio.sleep(0)
    vacated = asyncio.ensure_future(worker.vacate())
    await asyncio.sleep(0)
    assert not vacated.done()
    engine.go.set()
    step, last = await rest
    assert (step.done, last) == (1, Rendered(preempted=True))
    await vacated
    assert not Path(file).exists()
    other = await told(worker_of(engine).render(spec(), file))
    assert [news.done for news in other if isinstance(news, StepDone)] == [2, 3]
    assert other[-1] == Rendered()


async def test_a_vacated_worker_takes_no_more_jobs(engine: Steps, file: str) -> None:
    worker = worker_of(engine)
    await worker.vacate()
    assert await told(worker.render(spec(), file)) == [Rendered(preempted=True)]


async def test_a_halted_worker_takes_the_next_job(engine: Steps, file: str) -> None:
    worker = worker_of(engine)
    rest = asyncio.ensure_future(told(worker.render(spec(), file)))
    while not engine.running:
        await asyncio.sleep(0)
    halted = asyncio.ensure_future(worker.halt())
    await asyncio.sleep(0)
    engine.go.set()
    await halted
    assert (await rest)[-1] == Rendered(preempted=True)
    assert (await told(worker.render(spec(), file)))[-1] == Rendered()


async def test_a_stream_that_is_closed_stops_its_job_and_the_next_one_waits_for_that(engine: Steps, file: str) -> None:
    worker = worker_of(engine)
    withdrawn = asyncio.ensure_future(told(worker.render(spec(), file)))
    while not engine.running:
        await asyncio.sleep(0)
    withdrawn.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await withdrawn
    following = asyncio.ensure_future(told(worker.render(spec(), file)))
    await asyncio.sleep(0)
    engine.go.set()
    assert (await following)[-1] == Rendered()


async def test_changes_are_told_to_those_who_watch(engine: Steps, file: str) -> None:
    engine.go.set()
    worker = worker_of(engine)
    watching = worker.watch()
    assert await anext(watching) == Doing(idle=True, leaving=False)
    rendering = asyncio.ensure_future(told(worker.render(spec(), file)))
    while await anext(watching) != Doing(idle=False, leaving=False):
        pass
    await rendering
    while await anext(watching) != Doing(idle=True, leaving=False):
        pass
    await worker.vacate()
    assert await anext(watching) == Doing(idle=True, leaving=True)


async def test_a_simulated_video_is_a_video_and_says_what_it_is(file: str) -> None:
    cost = {"base_s": 0.0, "linear_s_per_mtok": 0, "quadratic_s_per_mtok2": 0, "source": "a test"}
    worker = VideoWorker(video(cost=cost), "cpu")
    await worker.load()
    assert (await told(worker.render(spec(), file)))[-1] == Rendered()
    with av.open(file) as container:
        assert container.metadata["title"] == "simulated"
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 4
    assert all(int(np.ptp(frame)) <= 2 for frame in frames)


async def test_weights_that_cannot_be_read_are_said_at_loading(tmp_path: Path) -> None:
    worker = VideoWorker(video(engine="diffusers", checkpoint=str(tmp_path)), "cpu")
    for _ in range(2):
        with pytest.raises(CheckpointError):
            await worker.load()
