"""What every store of files promises, on a folder and on obstore's stores in memory and in a folder."""

import resource
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from integration.server import free_port

from cluster.errors import ConfigurationError, NotFound, Unavailable
from cluster.family import load
from deployments.stores import local_files, object_files
from deployments.stores.files import Files, files_of
from deployments.stores.local_files import LocalFiles
from deployments.stores.object_files import ObjectFiles


@pytest.fixture(params=["folder", "memory", "objects in a folder"])
def files(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    for module in (local_files, object_files):
        monkeypatch.setattr(module, "CHUNK_BYTES", 7)  # small files have many chunks
    match request.param:
        case "folder":
            return LocalFiles(tmp_path / "files")
        case "memory":
            return ObjectFiles("memory:///")
    (tmp_path / "objects").mkdir()
    return ObjectFiles(f"file://{tmp_path}/objects")


async def streamed(files: Files, key: str, start: int = 0, end: int = 10**9) -> bytes:
    return b"".join([chunk async for chunk in files.stream(key, start, end)])


async def test_what_is_put_comes_back_and_is_replaced_whole(files: Files, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for content in (b"a first version " * 9, b"b", b""):
        source.write_bytes(content)
        await files.put("video_1/video.mp4", source)
        await files.get("video_1/video.mp4", target)
        assert source.read_bytes() == target.read_bytes() == await files.read("video_1/video.mp4") == content
        assert await files.size("video_1/video.mp4") == len(content)
    await files.put_bytes("video_1/state", b"small")
    assert await files.read("video_1/state") == b"small"


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=40), start=st.integers(0, 50), end=st.integers(0, 50))
async def test_a_range_is_that_slice_of_the_file(files: Files, content: bytes, start: int, end: int) -> None:
    await files.put_bytes("video_1/video.mp4", content)
    assert await streamed(files, "video_1/video.mp4", start, end) == content[start:end]


async def test_a_range_comes_in_bounded_chunks(files: Files) -> None:
    await files.put_bytes("video_1/video.mp4", bytes(50))
    assert max([len(chunk) async for chunk in files.stream("video_1/video.mp4", 3, 50)]) <= 7


async def test_what_is_not_there_is_not_found(files: Files, tmp_path: Path) -> None:
    await files.put_bytes("video_1/state", b"x")
    for key in ("video_2/state", "video_1/other", "video_1"):
        assert (await files.size(key), await files.read(key)) == (None, None), key
        with pytest.raises(NotFound):
            await files.get(key, tmp_path / "target")
        with pytest.raises(NotFound):
            await streamed(files, key)


async def test_a_job_is_deleted_with_all_below_it_and_no_neighbour(files: Files) -> None:
    kept, gone = ("video_10/state", "video/state", "characters/video_1"), ("video_1/state", "video_1/inputs/first.png")
    for key in (*kept, *gone):
        await files.put_bytes(key, b"x")
    await files.delete("video_1")
    await files.delete("video_1")
    assert [await files.size(key) for key in gone] == [None, None]
    assert [await files.size(key) for key in kept] == [1, 1, 1]
    await files.delete("video_10/state")
    assert await files.size("video_10/state") is None


async def test_all_files_are_listed_with_when_they_were_written(files: Files, tmp_path: Path) -> None:
    assert [each async for each in files.list()] == []
    keys = {"video_1/video.mp4", "video_1/a/b", "file-1"}
    for key in keys:
        await files.put_bytes(key, b"x")
    listed = [each async for each in files.list()]
    assert {each.key for each in listed} == keys
    assert all(abs(each.written_s - time.time()) < 3600 for each in listed)
    await files.delete("video_1")
    assert [each.key async for each in files.list()] == ["file-1"]


@pytest.mark.parametrize("key", ["../keys.sqlite", "video_1/../../x", "/etc/passwd", "", "video_1//x", ".x", "a/\0"])
async def test_a_key_that_leads_elsewhere_is_refused(files: Files, key: str) -> None:
    for call in (files.read(key), files.size(key), files.delete(key), files.put_bytes(key, b"x")):
        with pytest.raises(ValueError, match="key: given"):
            await call


async def test_a_reader_goes_on_with_the_version_that_it_began_or_is_told(files: Files) -> None:
    await files.put_bytes("video_1/video.mp4", b"a" * 30)
    stream = files.stream("video_1/video.mp4", 0, 30)
    seen = await anext(stream)
    await files.put_bytes("video_1/video.mp4", b"b" * 31)
    try:
        async for chunk in stream:
            seen += chunk
    except Unavailable:
        return
    assert seen == b"a" * 30


async def test_a_disk_without_room_is_told_and_what_was_there_stays(tmp_path: Path) -> None:
    files, folder = LocalFiles(tmp_path / "files"), tmp_path / "files" / "video_1"
    await files.put_bytes("video_1/video.mp4", b"whole")
    (tmp_path / "large").write_bytes(bytes(100_000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(Unavailable, match="File too large"):
            await files.put("video_1/video.mp4", tmp_path / "large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert await files.read("video_1/video.mp4") == b"whole"
    assert [each.name for each in folder.iterdir()] == ["video.mp4"]


async def test_a_store_that_does_not_answer_is_told() -> None:
    files = ObjectFiles(f"http://127.0.0.1:{free_port()}/bucket")
    for call in (files.read("video_1/state"), files.size("video_1/state"), files.put_bytes("video_1/state", b"x")):
        with pytest.raises(Unavailable, match="video_1/state"):
            await call


def test_the_family_file_names_the_store(tmp_path: Path) -> None:
    video = load("laptop").video
    assert video is not None
    assert isinstance(files_of(video, tmp_path), LocalFiles)
    assert isinstance(files_of(video.model_copy(update={"files": f"file://{tmp_path}"}), tmp_path), LocalFiles)
    s3 = video.model_copy(update={"files": "s3://bucket/prefix?region=eu-central-1"})
    assert isinstance(files_of(s3, tmp_path), ObjectFiles)
    with pytest.raises(ConfigurationError, match="nowhere://bucket"):
        files_of(video.model_copy(update={"files": "nowhere://bucket"}), tmp_path)
