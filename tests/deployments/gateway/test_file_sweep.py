"""Files without a row, on a folder and on obstore's, beside rows in SQLite; and the gateway, which looks for them."""

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from job_stores import job, video_id
from shell import VIDEO, Handle, application, family

from cluster.family import Video
from cluster.orphans import GRACE_S
from deployments.gateway import file_sweep
from deployments.gateway.file_sweep import Swept, sweep
from deployments.stores import objects, storyboards
from deployments.stores.files import Files
from deployments.stores.jobs import JobStore
from deployments.stores.local_files import LocalFiles
from deployments.stores.object_files import ObjectFiles
from deployments.stores.objects import Object
from deployments.stores.storyboards import Storyboard
from deployments.video.jobs import Character

HEX = "{:024x}".format
LATER_S = 2 * GRACE_S


class Stores:
    """Rows in a folder, and what is to be swept of files that others may have, too."""

    def __init__(self, folder: Path, files: Files) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.jobs, self.boards = JobStore(folder / "jobs.sqlite"), storyboards.in_file(folder / "storyboards.sqlite")
        self.objects = objects.in_file(folder / "objects.sqlite")
        rows: file_sweep.Rows = {
            "video": self.jobs.present,
            "character": self.jobs.present,
            "storyboard": self.boards.present,
        }
        self.videos = Swept(name="videos", files=files, database=None, rows=rows)
        self.files = Swept(name="files", files=files, database=None, rows={"file": self.objects.present})

    async def sweep(self, now_s: float) -> set[str]:
        return {*await sweep(self.videos, self.folder, now_s), *await sweep(self.files, self.folder, now_s)}

    def fill(self) -> set[str]:
        """A row of each kind; returns the keys of its files."""
        self.jobs.create(job(1))
        character = Character(id=f"char_{HEX(1)}", owner="a", name="Ann", file="", created_at_s=1)
        assert self.jobs.put_character(character, 1)
        self.boards.create(
            Storyboard(id=f"storyboard_{HEX(1)}", owner="a", created_at_s=1, request="", title="", cast=(), takes=())
        )
        self.objects.create(Object(id=f"file-{HEX(1)}", kind="file", owner="a", document="{}"))
        return _keys(1)


def _keys(number: int) -> set[str]:
    digits = HEX(number)
    jobs = {f"{video_id(number)}/first.png", f"characters/char_{digits}", f"storyboard_{digits}/cut.mp4"}
    return jobs | {f"file-{digits}"}


@pytest.fixture(params=["folder", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    return LocalFiles(tmp_path / "files") if request.param == "folder" else ObjectFiles("memory:///")


@pytest.fixture
def stores(files: Files, tmp_path: Path) -> Iterator[Stores]:
    made = Stores(tmp_path / "one", files)
    yield made
    for each in (made.jobs, made.boards, made.objects):
        each.close()


async def keys(files: Files) -> set[str]:
    return {each.key async for each in files.list() if not each.key.startswith("swept/")}


async def test_what_has_no_row_goes_once_it_is_old_and_nothing_else(
    files: Files, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_sweep, "MOST_IDS", 1)  # several questions
    kept = stores.fill() | {"characters/notes", "video_of_somebody/a", "notes.txt"}
    gone = _keys(2) | {f"{video_id(2)}/video.mp4", f"file-{HEX(2)}-output"}
    for key in kept | gone:
        await files.put_bytes(key, b"x")
    assert await stores.sweep(time.time()) == set()
    assert await keys(files) == kept | gone
    deleted = {video_id(2), f"storyboard_{HEX(2)}", f"characters/char_{HEX(2)}"}
    assert await stores.sweep(time.time() + LATER_S) == deleted | {f"file-{HEX(2)}", f"file-{HEX(2)}-output"}
    assert await keys(files) == kept


async def test_a_store_of_files_that_two_databases_share_is_not_swept(
    files: Files, stores: Stores, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = Stores(tmp_path / "two", files)
    for key in other.fill():
        await files.put_bytes(key, b"x")
    for now_s in (time.time(), time.time() + LATER_S):
        assert [await each.sweep(now_s) for each in (other, stores)] == [set(), set()]
    assert await keys(files) == _keys(1)
    assert "give each a store of its own, then delete swept/videos/" in caplog.text


async def test_the_rows_of_a_folder_keep_their_mark_wherever_it_is_moved(
    files: Files, stores: Stores, tmp_path: Path
) -> None:
    await asyncio.gather(*(stores.sweep(time.time()) for _ in range(4)))
    await files.put_bytes(f"file-{HEX(2)}", b"x")
    (tmp_path / "moved").mkdir()
    (stores.folder / "identity").rename(tmp_path / "moved" / "identity")
    assert await sweep(stores.files, tmp_path / "moved", time.time() + LATER_S) == (f"file-{HEX(2)}",)


async def test_a_gateway_sweeps_the_files_of_videos_and_of_its_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_sweep, "FIRST_S", 0.0)
    spec = family(tmp_path, video=True, gateway={"tokens": "streamed"})
    spec = spec.model_copy(update={"video": Video.model_validate(VIDEO)})
    places = {key: tmp_path / ("files" if key.startswith("file-") else "videos") / key for key in _keys(2)}
    for path in (*places.values(), tmp_path / "videos" / "notes", tmp_path / "files" / "notes"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        os.utime(path, (0, 0))
    before = asyncio.all_tasks()
    await application(spec, {name: Handle(object()) for name in spec.tiers}, background=True)
    while any(path.exists() for path in places.values()):
        await asyncio.sleep(0.01)
    assert all((tmp_path / name / "notes").exists() for name in ("videos", "files"))
    while tasks := asyncio.all_tasks() - before:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
