import asyncio
from pathlib import Path

import pytest

from cluster.errors import Unavailable
from deployments.stores.local_files import LocalFiles
from deployments.video.saved import SAVES_SHARE, Saves


class Slow(LocalFiles):
    """Writes when it may, or refuses."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.may, self.refuses, self.writes = asyncio.Event(), False, 0

    async def put_bytes(self, key: str, data: bytes) -> None:
        self.writes += 1
        await self.may.wait()
        if self.refuses:
            raise Unavailable("files: no room")
        await super().put_bytes(key, data)


@pytest.fixture
def files(tmp_path: Path) -> Slow:
    return Slow(tmp_path)


async def test_what_was_put_last_is_read_until_it_is_removed(files: Slow) -> None:
    saves = Saves(files, "video_1")
    assert await saves.read() is None
    files.may.set()
    saves.put(b"one", 0.0)
    saves.put(b"two", 0.0)
    await saves.written()
    assert await Saves(files, "video_1").read() == b"two"
    await saves.remove()
    await saves.remove()
    assert await saves.read() is None


async def test_an_empty_state_is_none(files: Slow) -> None:
    saves = Saves(files, "video_1")
    saves.put(b"", 0.0)
    await saves.written()
    assert (saves.newest, files.writes) == (None, 0)


async def test_saving_takes_no_more_than_its_share_of_the_steps(files: Slow) -> None:
    files.may.set()
    saves = Saves(files, "video_1")
    assert saves.due(0.001)  # what it costs is not known before the first
    saves.put(b"state", 0.01)
    await saves.written()
    steps = 1
    while not saves.due(0.06):
        steps += 1
    assert steps == 4  # 0.01 s are 5 % of 0.2 s
    assert pytest.approx(0.05) == SAVES_SHARE


async def test_steps_longer_than_twenty_saves_are_saved_each(files: Slow) -> None:
    files.may.set()
    saves = Saves(files, "video_1")
    for _ in range(5):
        assert saves.due(1.0)
        saves.put(b"state", 0.04)
        await saves.written()


async def test_none_is_due_while_one_is_being_written(files: Slow) -> None:
    saves = Saves(files, "video_1")
    saves.put(b"one", 0.0)
    assert not saves.due(1.0)
    files.may.set()
    await saves.written()
    assert saves.due(1.0)


async def test_a_store_without_room_is_logged_and_tried_again_at_the_next_state(
    files: Slow, caplog: pytest.LogCaptureFixture
) -> None:
    files.refuses = True
    files.may.set()
    saves = Saves(files, "video_1")
    saves.put(b"one", 0.0)
    await saves.written()
    assert "its state is not saved: files: no room" in caplog.text
    files.refuses = False
    assert saves.due(1.0)
    saves.put(b"two", 0.0)
    await saves.written()
    assert await Saves(files, "video_1").read() == b"two"
