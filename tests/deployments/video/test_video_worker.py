"""The worker without Ray. Its engine takes no time and steps when the test allows it, unless a test names another."""

import asyncio
import contextlib
import resource
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from video_replica import asked, files, replica, told, video

from cluster.errors import CheckpointError, InvalidRequest, Unavailable
from deployments.stores.files import VIDEO
from deployments.stores.local_files import LocalFiles
from deployments.video import encode
from deployments.video.credentials import verify
from deployments.video.finish import Finish
from deployments.video.messages import Begun, Doing, News, Rendered, StageBegun, StepDone
from deployments.video.simulated import Simulated, SimulatedVideoEngine
from deployments.video.spec import Rendering, RenderSpec
from deployments.video.worker import VideoWorker

MADE = ["kept.safetensors", "master.mkv", "spritesheet.jpg", "thumbnail.webp", "video.mp4"]
DONE = Rendered(signed=True, simulated=True)
LENT = Rendered(preempted=True)
STEPS = 4
MANY = 2000
Telling = asyncio.Future[list[News]]
SOON_S = 20.0


class Engine(SimulatedVideoEngine):
    """`may_step` counts steps that are allowed. The prompt may name a fault."""

    def __init__(self) -> None:
        super().__init__(video())
        self.may_step = threading.Semaphore(0)
        self.groups: list[set[str]] = []
        self.held = threading.Event()  # a step waits to be allowed

    def go(self, steps: int = 1000) -> None:
        self.may_step.release(steps)

    def open(self, spec: RenderSpec, folder: Path, saved: bytes | None) -> Simulated:
        if spec.prompt == "refused":
            raise InvalidRequest("size: too large")
        return super().open(spec, folder, saved)

    def step(self, renderings: Sequence[Rendering]) -> None:
        self.held.set()
        assert self.may_step.acquire(timeout=SOON_S)
        self.held.clear()
        self.groups.append({each.spec.job_id for each in renderings})
        if any(each.spec.prompt == "broken" for each in renderings):
            raise RuntimeError("shapes do not match")
        super().step(renderings)


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def worker(tmp_path: Path, engine: Engine) -> VideoWorker:
    return replica(tmp_path, engine)


def steps(news: Sequence[News]) -> list[int]:
    return [each.done for each in news if isinstance(each, StepDone)]


async def begun(worker: VideoWorker, engine: Engine, job_id: str = "video_1", **given: Any) -> Telling:
    """A job whose first step waits to be allowed."""
    rest = asyncio.ensure_future(told(worker.render(asked(job_id, **given))))
    await asyncio.to_thread(engine.held.wait, SOON_S)
    return rest


async def beside(worker: VideoWorker, engine: Engine, job_id: str, **given: Any) -> Telling:
    """One more that waits for a step; others step until it does, as the engine's thread is theirs until then."""
    rest = asyncio.ensure_future(told(worker.render(asked(job_id, **given))))
    while job_id not in worker._stepping._waiting:
        engine.go(1)
        await asyncio.to_thread(engine.held.wait, SOON_S)
    return rest


async def test_a_job_is_begun_stepped_staged_and_rendered_and_leaves_its_files_alone(
    worker: VideoWorker, engine: Engine, tmp_path: Path
) -> None:
    engine.go()
    first, *rest = await told(worker.render(asked()))
    assert first == Begun()
    assert steps(rest) == [1, 2, 3, 4]
    assert [news.stage for news in rest if isinstance(news, StageBegun)] == [
        "decoding", "encoding", "signing", "storing",
    ]  # fmt: skip
    assert rest[-1] == DONE
    assert files(tmp_path) == MADE
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize(("prompt", "code"), [("refused", "invalid_value"), ("broken", "engine_failed")])
async def test_a_failure_is_said_and_the_next_job_runs(
    worker: VideoWorker, engine: Engine, prompt: str, code: str
) -> None:
    engine.go()
    *_, last = await told(worker.render(asked(prompt=prompt)))
    assert isinstance(last, Rendered)
    assert last.error is not None
    assert last.error.code == code
    assert (await told(worker.render(asked())))[-1] == DONE


async def test_jobs_of_one_shape_share_their_steps_and_others_do_not(worker: VideoWorker, engine: Engine) -> None:
    long = await begun(worker, engine, "long", steps=MANY)
    mate = await beside(worker, engine, "mate", steps=MANY // 2)
    other = await beside(worker, engine, "other", width=96, steps=2)
    engine.go(2 * MANY)
    assert [(await each)[-1] for each in (long, mate, other)] == [DONE] * 3
    assert {"long", "mate"} in engine.groups
    assert [group for group in engine.groups if "other" in group] == [{"other"}] * 2
    assert engine.groups[-1] == {"long"}


async def test_of_jobs_that_share_a_step_only_the_one_at_fault_fails(
    worker: VideoWorker, engine: Engine, tmp_path: Path
) -> None:
    good = await begun(worker, engine, "good", steps=MANY)
    bad = await beside(worker, engine, "bad", prompt="broken")
    engine.go(2 * MANY)
    last = (await bad)[-1]
    assert isinstance(last, Rendered)
    assert str(last.error) == "bad: RuntimeError: shapes do not match; try again"
    assert (await good)[-1] == DONE
    assert files(tmp_path, "good") == MADE


async def test_a_vacated_worker_stops_at_the_next_step_and_another_goes_on(
    worker: VideoWorker, engine: Engine, tmp_path: Path
) -> None:
    rest = await begun(worker, engine)
    vacated = asyncio.ensure_future(worker.vacate())
    await asyncio.sleep(0)
    assert not vacated.done()
    engine.go(1)
    news = await rest
    assert (steps(news), news[-1]) == ([1], LENT)
    await vacated
    assert files(tmp_path) == ["state"]
    assert await told(worker.render(asked())) == [LENT]  # it takes no more
    other = Engine()
    other.go()
    news = await told(replica(tmp_path, other).render(asked()))
    assert (steps(news), news[-1]) == ([2, 3, 4], DONE)


async def test_a_worker_has_vacated_only_once_its_last_word_is_heard(worker: VideoWorker, engine: Engine) -> None:
    """Whoever vacates a worker ends it then: a job whose end is not heard would count as lost."""
    news = worker.render(asked())
    assert await anext(news) == Begun()
    vacated = asyncio.ensure_future(worker.vacate())
    engine.go()
    while await anext(news) != LENT:
        pass
    await asyncio.wait((vacated,), timeout=0.05)
    assert not vacated.done()
    assert [each async for each in news] == []
    await vacated


async def test_a_halted_worker_takes_the_next_job(worker: VideoWorker, engine: Engine) -> None:
    rest = await begun(worker, engine)
    halted = asyncio.ensure_future(worker.halt())
    await asyncio.sleep(0)
    engine.go()
    await halted
    assert (await rest)[-1] == LENT
    assert (await told(worker.render(asked("video_2"))))[-1] == DONE


async def test_a_job_whose_stream_is_closed_stops_and_goes_on_in_a_new_one(worker: VideoWorker, engine: Engine) -> None:
    closed = await begun(worker, engine)
    closed.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await closed
    following = asyncio.ensure_future(told(worker.render(asked())))
    await asyncio.sleep(0)
    engine.go()
    news = await following
    assert (steps(news), news[-1]) == ([2, 3, 4], DONE)


async def test_of_a_withdrawn_job_nothing_is_left(worker: VideoWorker, engine: Engine, tmp_path: Path) -> None:
    rest = await begun(worker, engine)
    withdrawn = asyncio.ensure_future(worker.withdraw("video_1"))
    await asyncio.sleep(0)
    engine.go(1)
    await withdrawn
    assert (await rest)[-1] == LENT
    assert engine.groups == [{"video_1"}]
    assert files(tmp_path) == []
    await worker.withdraw("video_9")  # which nobody asked for


async def test_more_jobs_than_there_is_room_for_are_given_back_at_once(tmp_path: Path, engine: Engine) -> None:
    worker = replica(tmp_path, engine, concurrent=1)
    rest = await begun(worker, engine)
    assert await told(worker.render(asked("video_2"))) == [LENT]
    engine.go()
    assert (await rest)[-1] == DONE


class Held(Finish):
    """Waits in a stage until it is allowed."""

    def __init__(self, stage: str, folder: Path) -> None:
        super().__init__(video(), folder / "state")
        self.stage, self.reached, self.may = stage, threading.Event(), threading.Event()

    def make(self, asked, chunks, folder, at) -> None:  # type: ignore[no-untyped-def]
        def held(stage: str) -> None:
            at(stage)
            if stage == self.stage:
                self.reached.set()
                assert self.may.wait(SOON_S)

        super().make(asked, chunks, folder, held)


async def test_others_step_while_one_is_encoded(worker: VideoWorker, engine: Engine, tmp_path: Path) -> None:
    await worker.load()
    worker._finish = finishing = Held("encoding", tmp_path)
    engine.go()
    one = asyncio.ensure_future(told(worker.render(asked())))
    await asyncio.to_thread(finishing.reached.wait, SOON_S)
    stream = worker.render(asked("video_2"))
    while steps([await anext(stream)]) != [STEPS]:
        assert not one.done()
    finishing.may.set()
    assert (await one)[-1] == (await told(stream))[-1] == DONE


async def test_a_worker_that_is_vacated_while_it_encodes_leaves_a_job_of_which_all_steps_are_done(
    worker: VideoWorker, engine: Engine, tmp_path: Path
) -> None:
    await worker.load()
    worker._finish = finishing = Held("encoding", tmp_path)
    engine.go()
    one = asyncio.ensure_future(told(worker.render(asked())))
    await asyncio.to_thread(finishing.reached.wait, SOON_S)
    vacated = asyncio.ensure_future(worker.vacate())
    await asyncio.sleep(0)
    finishing.may.set()
    await vacated
    assert (await one)[-1] == LENT
    news = await told(replica(tmp_path).render(asked()))
    assert (steps(news), news[-1]) == ([], DONE)


@contextlib.contextmanager
def no_file_larger_than(bytes_: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_disk_that_is_full_hinders_a_job_and_does_not_fail_it(
    worker: VideoWorker, engine: Engine, tmp_path: Path
) -> None:
    engine.go()
    await worker.load()
    with no_file_larger_than(3000):  # enough for a state
        *_, last = await told(worker.render(asked()))
    assert isinstance(last, Rendered)
    assert (last.error, last.preempted) == (None, False)
    assert last.hindered
    assert last.lasting
    assert "File too large" in last.hindered
    assert files(tmp_path) == ["state"]
    assert list((tmp_path / "scratch").iterdir()) == []
    news = await told(worker.render(asked()))
    assert (steps(news), news[-1]) == ([], DONE)


class Refusing(LocalFiles):
    """A store that has no room for the last file."""

    async def put(self, key: str, file: Path) -> None:
        if key.endswith(VIDEO):
            raise Unavailable("files: no answer")
        await super().put(key, file)


async def test_a_store_that_does_not_answer_hinders_a_job_and_its_video_is_not_there(
    worker: VideoWorker, engine: Engine, tmp_path: Path
) -> None:
    engine.go()
    worker._files = Refusing(tmp_path / "state" / "videos")
    *_, last = await told(worker.render(asked()))
    assert last == Rendered(hindered="video_1: files: no answer")  # not a lasting one
    assert VIDEO not in files(tmp_path)
    assert (await told(replica(tmp_path).render(asked())))[-1] == DONE


@pytest.mark.parametrize("sign", [True, False])
async def test_a_video_that_is_stored_already_is_not_made_again(tmp_path: Path, sign: bool) -> None:
    provenance = {"sign": sign}
    done = Rendered(signed=sign, simulated=True)
    assert (await told(replica(tmp_path, provenance=provenance).render(asked())))[-1] == done
    path = tmp_path / "state" / "videos" / "video_1" / VIDEO
    first = path.stat()
    assert await told(replica(tmp_path).render(asked())) == [Begun(), done]
    assert path.stat() == first
    assert verify(path, None).state == ("Valid" if sign else "Unsigned")


async def test_a_remix_names_what_it_was_made_from(worker: VideoWorker, engine: Engine, tmp_path: Path) -> None:
    engine.go()
    await told(worker.render(asked()))
    news = await told(worker.render(asked("video_2", task="remix", parent="video_1", seed=8)))
    assert news[-1] == DONE
    verdict = verify(tmp_path / "state" / "videos" / "video_2" / VIDEO, None)
    assert verdict.state == "Valid"
    own, parent = verdict.manifests
    assert [(each.title, each.relationship) for each in own.ingredients] == [("video_1", "parentOf")]
    assert (own.own["job_id"], parent.own["job_id"]) == ("video_2", "video_1")


async def test_a_remix_of_a_video_that_is_gone_fails_with_the_reason(worker: VideoWorker) -> None:
    *_, last = await told(worker.render(asked("video_2", task="remix", parent="video_1")))
    assert isinstance(last, Rendered)
    assert "video_1/" in str(last.error)


async def test_changes_are_told_to_those_who_watch(worker: VideoWorker, engine: Engine) -> None:
    engine.go()
    watching = worker.watch()
    assert await anext(watching) == Doing(idle=True, leaving=False)
    rendering = asyncio.ensure_future(told(worker.render(asked())))
    while await anext(watching) != Doing(idle=False, leaving=False):
        pass
    await rendering
    while await anext(watching) != Doing(idle=True, leaving=False):
        pass
    await worker.vacate()
    assert await anext(watching) == Doing(idle=True, leaving=True)


async def test_who_watches_hears_that_a_worker_is_there_though_nothing_changes(
    worker: VideoWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.video.worker.BEAT_S", 0.01)
    watching = worker.watch()
    assert [await anext(watching) for _ in range(3)] == [Doing(idle=True, leaving=False), None, None]
    await worker.vacate()
    while (told := await anext(watching)) is None:
        pass
    assert told.leaving


async def test_a_simulated_video_is_a_video_and_says_what_it_is(
    worker: VideoWorker, engine: Engine, tmp_path: Path
) -> None:
    engine.go()
    last = (await told(worker.render(asked(out_width=128, out_height=128, out_fps=24))))[-1]
    assert last == DONE
    job = tmp_path / "state" / "videos" / "video_1"
    with av.open(str(job / VIDEO)) as container:
        assert container.metadata["title"] == "simulated"
        shapes = {frame.to_ndarray(format="rgb24").shape for frame in container.decode(video=0)}
    assert shapes == {(128, 128, 3)}
    frames = np.concatenate(list(encode.read(job / "master.mkv")))
    assert frames.shape == (8, 64, 64, 3)
    assert np.ptp(frames) == 0  # without the mark


async def test_weights_that_cannot_be_read_are_said_at_loading(tmp_path: Path) -> None:
    worker = replica(tmp_path, engine="diffusers", checkpoint=str(tmp_path))
    for _ in range(2):
        with pytest.raises(CheckpointError):
            await worker.load()


async def test_a_real_clip_that_was_interrupted_is_bit_for_bit_the_one_that_was_not(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    whole, interrupted = (replica(folder, engine="diffusers") for folder in (tmp_path / "other", tmp_path))
    assert (await told(whole.render(asked(steps=60))))[-1] == Rendered(signed=True)
    stream = interrupted.render(asked(steps=60))
    while not isinstance(await anext(stream), StepDone):
        pass
    halted = asyncio.ensure_future(interrupted.halt())
    assert (await told(stream))[-1] == LENT
    await halted
    assert 0 <= len(steps(await told(interrupted.render(asked(steps=60))))) < 60
    one, other = (
        np.concatenate(list(encode.read(folder / "state" / "videos" / "video_1" / "master.mkv")))
        for folder in (tmp_path / "other", tmp_path)
    )
    assert np.array_equal(one, other)
