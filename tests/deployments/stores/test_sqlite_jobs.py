"""What is of the SQLite file alone: its mode, its layouts, and faults of the disk."""

import contextlib
import sqlite3
import stat
from pathlib import Path

import pytest
from job_stores import job, numbers, video_id

from cluster.errors import ConfigurationError, Unavailable
from deployments.stores import jobs
from deployments.stores.jobs import JobStore
from deployments.video.jobs import VideoJob

FIRST = Path(__file__).with_name("jobs_version_1.sql")  # as the release with that layout wrote it


@pytest.fixture
def first(tmp_path: Path) -> Path:
    path = tmp_path / "jobs.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(FIRST.read_text(encoding="utf-8"))
    connection.close()
    return path


def version(path: Path) -> int:
    connection = sqlite3.connect(path)
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    connection.close()
    return int(found)


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite")
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}
    store.close()


def test_a_file_of_the_first_layout_keeps_its_jobs_and_their_order(first: Path) -> None:
    for _ in range(2):
        store = JobStore(first)
        newest, interrupted = store.get("key_a", "video_4"), store.get("key_b", "video_2")
        assert [each.id for each in store.page("key_a", order="asc")[0]] == ["video_1", "video_3", "video_4"]
        assert [each.id for each in store.unfinished()] == ["video_1", "video_2"]
        store.close()
    assert interrupted == VideoJob(
        id="video_2", owner="key_b", model="sora-2", prompt='a "square"\nstill', negative_prompt="blur", seconds=2,
        size="64x64", fps=8, steps=20, guidance=1.5, seed=0, created_at_s=1001, status="in_progress", steps_done=7,
        attempts=1,
    )  # fmt: skip
    assert newest is not None
    assert (newest.status, newest.error_code, newest.error_message) == ("failed", "engine_failed", "why")
    assert version(first) == 3


def test_jobs_of_the_first_layout_are_claimed_and_followed_by_new_ones(first: Path) -> None:
    store = JobStore(first)
    store.create(job(5))
    claimed = [store.claim("gateway_a", 0, 10) for _ in range(3)]
    assert [each and each.id for each in claimed] == ["video_1", "video_2", video_id(5)]
    assert numbers(store.page("key_a", limit=1)[0]) == [5]
    store.close()


def test_a_file_whose_layout_cannot_be_brought_up_to_date_stays_as_it_was(
    first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = first.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "SCHEMA", f"{jobs.SCHEMA}; CREATE TABLE video_jobs (id TEXT)")
        with pytest.raises(ConfigurationError, match="already exists"):
            JobStore(first)
    assert version(first) == 1
    store = JobStore(first)
    assert len(store.unfinished()) == 2
    store.close()
    assert before != first.read_bytes()


def test_a_file_of_the_second_layout_keeps_its_jobs_and_learns_what_is_new(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    store = JobStore(path)
    store.create(job(1))
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for statement in ("DROP COLUMN broke", "DROP COLUMN way"):
            connection.execute(f"ALTER TABLE video_jobs {statement}")
        connection.execute("PRAGMA user_version = 2")
    for broke in (0, 1):
        store = JobStore(path)
        (kept,) = store.unfinished()
        assert (kept.id, kept.broke) == (video_id(1), broke)
        assert store.update(kept.broken())
        store.close()
    assert version(path) == 3


@pytest.mark.parametrize(
    ("content", "told"), [("PRAGMA user_version = 9", "version 9; version 3 is allowed"), (None, "not a database")]
)
def test_a_foreign_file_is_refused_and_left_alone(content: str | None, told: str, tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    if content is None:
        path.write_bytes(b"no database at all" * 100)
    else:
        with sqlite3.connect(path) as connection:
            connection.execute(content)
        connection.close()
    before = path.stat().st_size
    with pytest.raises(ConfigurationError, match=told):
        JobStore(path)
    assert path.stat().st_size == before


def test_a_disk_without_room_refuses_a_job_and_keeps_those_it_has(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite")
    store.create(job(1))
    (pages,) = store._file._connection.execute("PRAGMA page_count").fetchone()
    store._file._connection.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own way to have no room
    with pytest.raises(Unavailable, match="database or disk is full"):
        store.create(job(2, prompt="x" * 32_000))
    assert numbers(store.unfinished()) == [1]
    assert store.update(job(1).begun())
    store.close()
