"""What a replica does where its device, its memory or its disk fails. The errors are those that torch raises."""

import asyncio
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from video_replica import asked, files, replica, told, video

from cluster.faults import HANGS_S
from deployments.stores.files import VIDEO
from deployments.stores.local_files import LocalFiles
from deployments.video.engine import VideoEngine
from deployments.video.messages import Begun, Doing, News, Rendered, StepDone
from deployments.video.simulated import Simulated, SimulatedVideoEngine
from deployments.video.spec import Frames, Rendering, RenderSpec
from deployments.video.worker import VideoWorker

DONE = Rendered(signed=True, simulated=True)
LENT = Rendered(preempted=True)
SOON_S = 20.0
LOST = "CUDA error: an illegal memory access was encountered"
NO_MEMORY = "CUDA out of memory. Tried to allocate 20.00 GiB"


class Engine(SimulatedVideoEngine):
    """`faults`: by job, what its next calls raise, once each. The prompt `waits` waits for `may` in its steps."""

    def __init__(self, **faults: list[Exception]) -> None:
        super().__init__(video())
        self.faults = faults
        self.freed = 0
        self.groups: list[tuple[str, ...]] = []
        self.may, self.waiting = threading.Event(), threading.Event()

    def open(self, spec: RenderSpec, folder: Path, saved: bytes | None) -> Simulated:
        self._fail(f"open_{spec.job_id}", spec.job_id if saved is not None else "")
        return super().open(spec, folder, saved)

    def step(self, renderings: Sequence[Rendering]) -> None:
        ids = tuple(each.spec.job_id for each in renderings)
        if any(each.spec.prompt == "waits" for each in renderings) and not self.may.is_set():
            self.waiting.set()
            assert self.may.wait(SOON_S)
        self.groups.append(ids)
        self._fail(*ids, *["second"] * (len(self.groups) == 2))
        super().step(renderings)

    def decode(self, rendering: Rendering) -> Iterator[Frames]:
        self._fail(f"decode_{rendering.spec.job_id}")
        yield from super().decode(rendering)

    def free(self) -> None:
        self.freed += 1

    def _fail(self, *names: str) -> None:
        for name in names:
            if self.faults.get(name):
                raise self.faults[name].pop(0)


def steps(news: Sequence[News]) -> list[int]:
    return [each.done for each in news if isinstance(each, StepDone)]


async def last(worker: VideoWorker, job_id: str = "video_1", **changes: object) -> Rendered:
    *_, word = await told(worker.render(asked(job_id, **changes)))  # type: ignore[arg-type]
    assert isinstance(word, Rendered)
    return word


def fails(engine: VideoEngine, at: int, error: Exception) -> None:
    """The transformer of a real pipeline, at its n-th forward from now on. Who loads it again has a whole one."""
    left = iter(range(at - 1))

    def hook(*_: object) -> None:
        if next(left, None) is None:
            raise error

    engine.family.pipe.transformer.register_forward_pre_hook(hook)


async def test_a_replica_that_loses_its_device_says_so_and_leaves_and_its_job_goes_on_elsewhere(
    tmp_path: Path, tiny: Callable[[str], VideoEngine]
) -> None:
    engine = tiny("wan")
    worker = replica(tmp_path, engine)
    await worker.load()
    watching = worker.watch()
    assert await anext(watching) == Doing(idle=True, leaving=False)
    fails(engine, 5, torch.AcceleratorError(LOST))  # two forwards a step, for and against: the third step
    *news, word = await told(worker.render(asked()))
    assert steps(news) == [1, 2]
    assert {each.way for each in news if isinstance(each, StepDone)} == {"full"}
    assert word == Rendered(broke=f"video_1: AcceleratorError: {LOST}")
    assert files(tmp_path) == ["state"]
    while (doing := await anext(watching)) is None or not doing.leaving:
        pass  # whoever watches it ends its process
    assert await told(worker.render(asked())) == [LENT]
    *news, word = await told(replica(tmp_path, engine).render(asked()))
    assert (steps(news)[-1], word) == (4, DONE)
    assert steps(news)[0] in (2, 3)  # a state is saved where that costs little: not after each step of so short ones


async def test_what_a_real_pipeline_makes_of_numbers_fails_its_job_and_no_other(
    tmp_path: Path, tiny: Callable[[str], VideoEngine]
) -> None:
    engine = tiny("wan")
    worker = replica(tmp_path, engine)
    await worker.load()
    weight = engine.family.pipe.transformer.proj_out.weight
    before = weight.data[0, 0].clone()
    weight.data[0, 0] = float("nan")
    word = await last(worker)
    weight.data[0, 0] = before
    assert word.error is not None
    assert "not finite" in word.error.message
    assert await last(worker, "video_2") == DONE


async def shared(worker: VideoWorker, engine: Engine, *others: str) -> Sequence["asyncio.Future[list[News]]"]:
    """`video_1` in a step, the others waiting for their first."""
    streams = [asyncio.ensure_future(told(worker.render(asked(prompt="waits"))))]
    await asyncio.to_thread(engine.waiting.wait, SOON_S)
    streams += [asyncio.ensure_future(told(worker.render(asked(name)))) for name in others]
    while len(worker._jobs) <= len(others) or len(worker._room._line) <= len(others):
        await asyncio.sleep(0)
    return streams


async def test_a_job_beside_the_one_that_broke_the_device_is_given_back_and_not_blamed(tmp_path: Path) -> None:
    engine = Engine(video_1=[torch.AcceleratorError(LOST)])
    worker = replica(tmp_path, engine)
    one, other = await shared(worker, engine, "video_2")
    engine.may.set()
    assert (await one)[-1] == Rendered(broke=f"video_1: AcceleratorError: {LOST}")
    assert (await other)[-1] == LENT


async def test_a_device_that_hangs_is_told_of_and_left_and_no_job_beside_the_one_it_hangs_in_is_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.video.thread.LOOK_S", 0.01)
    engine = Engine()
    worker = replica(tmp_path, engine)
    thread = worker._stepping.thread
    thread.now_s = lambda: 0.0
    one, other = await shared(worker, engine, "video_2")
    thread.now_s = lambda: HANGS_S
    word = (await one)[-1]
    assert word == Rendered(broke="video_1: EngineHung: the engine has not answered for 1200 s, where 0.0 s are usual")
    assert (await other)[-1] == LENT
    await worker.vacate()  # it can be ended, whatever its thread is at
    engine.may.set()


async def test_frames_that_are_never_decoded_end_no_other_way_than_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.video.thread.LOOK_S", 0.01)
    engine = Engine()
    worker = replica(tmp_path, engine)
    thread = worker._stepping.thread
    thread.now_s = lambda: 0.0

    def hang(_: Rendering) -> Iterator[Frames]:
        thread.now_s = lambda: HANGS_S
        assert engine.may.wait(SOON_S)
        return iter(())

    monkeypatch.setattr(engine, "decode", hang)
    word = await last(worker)
    engine.may.set()
    assert word.broke is not None
    assert await last(worker, "video_2") == LENT


async def test_jobs_that_shared_the_step_in_which_the_device_broke_are_all_blamed(tmp_path: Path) -> None:
    engine = Engine()
    worker = replica(tmp_path, engine)
    streams = await shared(worker, engine, "video_2")
    while "video_2" not in worker._stepping._waiting:  # opening waits for the thread, which waits in a step
        engine.may.set()
        await asyncio.sleep(0)
    engine.faults["video_2"] = [torch.AcceleratorError(LOST)]
    words = [(await each)[-1] for each in streams]
    broke = [isinstance(word, Rendered) and word.broke is not None for word in words]
    assert broke == [len(engine.groups[-1]) == 2, True]


async def test_memory_that_is_out_is_freed_and_the_job_tries_once_more_alone(tmp_path: Path) -> None:
    engine = Engine(video_1=[torch.OutOfMemoryError(NO_MEMORY)])
    worker = replica(tmp_path, engine)
    news = await told(worker.render(asked()))
    assert (news.count(Begun()), steps(news), news[-1]) == (1, [1, 2, 3, 4], DONE)
    assert engine.freed == 1


async def test_memory_that_is_out_while_frames_are_decoded_costs_no_step(tmp_path: Path) -> None:
    engine = Engine(decode_video_1=[torch.OutOfMemoryError(NO_MEMORY)])
    news = await told(replica(tmp_path, engine).render(asked()))
    assert (steps(news), news[-1]) == ([1, 2, 3, 4], DONE)


async def test_a_job_that_has_no_room_alone_fails_with_its_size_and_the_mend_and_the_replica_stays(
    tmp_path: Path,
) -> None:
    engine = Engine(video_1=[torch.OutOfMemoryError(NO_MEMORY) for _ in range(2)])
    worker = replica(tmp_path, engine)
    word = await last(worker)
    assert word.error is not None
    assert (word.error.code, word.error.param) == ("engine_failed", "size")
    assert "64x64, 8 frames alone do not fit" in word.error.message
    assert "ask for a smaller size or fewer seconds" in word.error.message
    assert await last(worker, "video_2") == DONE


async def test_who_tries_alone_waits_for_the_others_to_end(tmp_path: Path) -> None:
    engine = Engine(video_1=[torch.OutOfMemoryError(NO_MEMORY)])
    worker = replica(tmp_path, engine)
    one, other = await shared(worker, engine, "video_2")
    engine.may.set()
    assert [(await each)[-1] for each in (one, other)] == [DONE, DONE]
    tried_again = engine.groups.index(("video_1",), 1)
    assert "video_2" not in {name for group in engine.groups[tried_again:] for name in group}


@pytest.mark.parametrize("before", ["as large", "failed"])
async def test_memory_that_does_not_suffice_for_what_it_did_before_is_a_broken_replica(
    tmp_path: Path, before: str
) -> None:
    engine = Engine(video_2=[torch.OutOfMemoryError(NO_MEMORY) for _ in range(2)])
    worker = replica(tmp_path, engine)
    if before == "failed":
        engine.faults["video_1"] = [torch.OutOfMemoryError(NO_MEMORY) for _ in range(2)]
        assert (await last(worker)).error is not None
    else:
        assert await last(worker) == DONE
    word = await last(worker, "video_2")
    assert word.broke is not None
    assert NO_MEMORY in word.broke
    assert await last(worker, "video_3") == LENT


async def test_a_state_for_which_memory_is_short_is_not_thrown_away(tmp_path: Path) -> None:
    await LocalFiles(tmp_path / "state" / "videos").put_bytes("video_1/state", saved(3))
    cannot_be_read = ValueError("its state")
    cannot_be_read.__cause__ = torch.OutOfMemoryError(NO_MEMORY)
    engine = Engine(open_video_1=[cannot_be_read])
    news = await told(replica(tmp_path, engine).render(asked()))
    assert (steps(news), news[-1]) == ([4], DONE)


def saved(done: int) -> bytes:
    engine = SimulatedVideoEngine(video())
    job = engine.open(asked().spec, Path(), None)
    job.done = done
    return engine.save(job)


async def test_a_job_that_is_to_be_alone_begins_once_it_is_and_others_once_it_has_ended(tmp_path: Path) -> None:
    engine = Engine()
    worker = replica(tmp_path, engine)
    (one,) = await shared(worker, engine)
    alone = asyncio.ensure_future(told(worker.render(asked("video_2", alone=True))))
    while len(worker._room._line) < 2:
        await asyncio.sleep(0)
    third = asyncio.ensure_future(told(worker.render(asked("video_3"))))
    while len(worker._room._line) < 3:
        await asyncio.sleep(0)
    engine.may.set()
    assert [(await each)[-1] for each in (one, alone, third)] == [DONE] * 3
    assert [names for (names,) in engine.groups] == ["video_1"] * 4 + ["video_2"] * 4 + ["video_3"] * 4


async def test_a_job_that_waits_to_be_alone_leaves_with_its_replica_and_no_attempt_counts(tmp_path: Path) -> None:
    engine = Engine()
    worker = replica(tmp_path, engine)
    (one,) = await shared(worker, engine)
    alone = asyncio.ensure_future(told(worker.render(asked("video_2", alone=True))))
    while len(worker._room._line) < 2:
        await asyncio.sleep(0)
    vacated = asyncio.ensure_future(worker.vacate())
    assert await alone == [LENT]  # not begun
    engine.may.set()
    await vacated
    assert (await one)[-1] == LENT


async def test_a_replica_without_a_folder_for_its_files_does_not_begin(tmp_path: Path) -> None:
    worker = replica(tmp_path, Engine())
    (tmp_path / "scratch").rmdir()
    with pytest.raises(OSError, match="scratch"):
        await worker.load()


async def test_a_replica_whose_own_folder_is_lost_leaves_and_its_job_goes_on(tmp_path: Path) -> None:
    worker = replica(tmp_path, Engine())
    await worker.load()
    (tmp_path / "scratch").rmdir()
    word = await last(worker)
    assert word.broke is not None
    assert "No such file or directory" in word.broke
    assert await last(replica(tmp_path, Engine())) == DONE


class Slow(LocalFiles):
    """Another replica stores the video while this one makes it."""

    async def read(self, key: str) -> bytes | None:
        await self.put_bytes(f"video_1/{VIDEO}", b"of another")
        return await super().read(key)


async def test_a_video_that_another_has_stored_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.video.finish.signed", lambda _: True)
    worker = replica(tmp_path, Engine())
    worker._files = Slow(tmp_path / "state" / "videos")
    assert await last(worker) == DONE
    assert (tmp_path / "state" / "videos" / "video_1" / VIDEO).read_bytes() == b"of another"


class Late(LocalFiles):
    """States come to lie long after they were put."""

    async def put_bytes(self, key: str, data: bytes) -> None:
        await asyncio.sleep(0.05)
        await super().put_bytes(key, data)


class Deleted(LocalFiles):
    """What the job has is deleted while its state is written."""

    def _write(self, key: str, write: Callable[[Path], object]) -> None:
        def cut(place: Path) -> None:
            write(place)
            shutil.rmtree(place.parent)

        super()._write(key, cut)


async def test_a_job_that_is_deleted_while_its_state_is_written_leaves_its_place_to_others(tmp_path: Path) -> None:
    worker = replica(tmp_path, Engine(), concurrent=1)
    store, worker._files = worker._files, Deleted(tmp_path / "state" / "videos")
    assert (await last(worker)).error is not None
    worker._files = store
    assert await last(worker, "video_2") == DONE


@pytest.mark.parametrize("error", [torch.AcceleratorError(LOST), ValueError("shapes do not match")])
async def test_whatever_ends_a_job_its_last_state_is_written_before_its_last_word(
    tmp_path: Path, error: Exception
) -> None:
    engine = Engine(second=[error])
    worker = replica(tmp_path, engine)
    worker._files = Late(tmp_path / "state" / "videos")
    await last(worker)
    assert files(tmp_path) == ["state"]


async def test_a_step_that_cannot_be_chosen_fails_those_who_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = replica(tmp_path, Engine())
    monkeypatch.setattr("deployments.video.stepping.choose", lambda *_, **__: 1 / 0)
    word = await last(worker)
    assert word.error is not None
    assert "ZeroDivisionError" in word.error.message
    monkeypatch.undo()
    assert await last(worker) == DONE
