import sqlite3
import stat
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.errors import ConfigurationError, EngineFailed, InvalidRequest
from deployments.stores.jobs import JobStore
from deployments.video.jobs import VideoJob


def job(number: int, owner: str = "key_a") -> VideoJob:
    return VideoJob(
        id=f"video_{number:024x}", owner=owner, model="sora-2", prompt="a red ball ✓", negative_prompt="", seconds=1,
        size="64x64", fps=8, steps=12, guidance=5.0, seed=2**63 - 1, created_at_s=1000,
    )  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "state" / "jobs.sqlite")


def ids(jobs: tuple[VideoJob, ...]) -> list[int]:
    return [int(each.id.removeprefix("video_"), 16) for each in jobs]


def test_a_job_comes_back_as_it_went_in(store: JobStore) -> None:
    store.create(job(1))
    assert store.get("key_a", job(1).id) == job(1)
    changed = job(1).begun().stepped(5, 12).failed(EngineFailed("why"))
    assert store.update(changed)
    assert store.get("key_a", job(1).id) == changed


def test_jobs_survive_a_restart(tmp_path: Path) -> None:
    first = JobStore(tmp_path / "jobs.sqlite")
    first.create(job(1))
    second = JobStore(tmp_path / "jobs.sqlite")  # the first never closed: as after a crash
    assert second.get("key_a", job(1).id) == job(1)


def test_one_key_sees_nothing_of_another(store: JobStore) -> None:
    store.create(job(1, "key_a"))
    assert store.get("key_b", job(1).id) is None
    assert not store.delete("key_b", job(1).id)
    assert store.page("key_b") == ((), False)
    with pytest.raises(InvalidRequest, match="after"):
        store.page("key_b", after=job(1).id)
    assert store.get("key_a", job(1).id) == job(1)


def test_an_id_is_taken_once(store: JobStore) -> None:
    store.create(job(1))
    with pytest.raises(ValueError, match="is taken"):
        store.create(job(1, "key_b"))


def test_updating_a_deleted_job_says_that_it_is_gone(store: JobStore) -> None:
    store.create(job(1))
    assert store.delete("key_a", job(1).id)
    assert not store.delete("key_a", job(1).id)
    assert not store.update(job(1).begun())
    assert store.get("key_a", job(1).id) is None


@pytest.mark.parametrize(("order", "expected"), [("asc", [1, 2, 3, 4, 5]), ("desc", [5, 4, 3, 2, 1])])
def test_pages_follow_each_other_in_order_of_creation(store: JobStore, order: str, expected: list[int]) -> None:
    for number in range(1, 6):
        store.create(job(number))
        store.create(job(number + 100, "key_b"))
    seen: list[int] = []
    after: str | None = None
    for more in (True, True, False):
        page, has_more = store.page("key_a", after=after, limit=2, order=order)  # type: ignore[arg-type]
        assert has_more == more
        seen += ids(page)
        after = page[-1].id
    assert seen == expected


def test_unfinished_jobs_of_all_owners_come_oldest_first(store: JobStore) -> None:
    for number, owner in enumerate(["key_b", "key_a", "key_a", "key_b"], 1):
        store.create(job(number, owner))
    store.update(job(1, "key_b").stepped(1, 12))
    store.update(job(2).begun().completed(2000))
    store.update(job(3).begun().failed(EngineFailed("why")))
    assert ids(store.unfinished()) == [1, 4]


def test_readers_in_other_threads_and_connections_never_meet_half_a_job(tmp_path: Path) -> None:
    store, reader = JobStore(tmp_path / "jobs.sqlite"), JobStore(tmp_path / "jobs.sqlite")
    store.create(job(1))
    seen: list[VideoJob | None] = []
    stop = threading.Event()

    def read(source: JobStore) -> None:
        while not stop.is_set():
            seen.append(source.get("key_a", job(1).id))

    threads = [threading.Thread(target=read, args=(source,)) for source in (store, reader)]
    for thread in threads:
        thread.start()
    for done in range(100):
        store.update(replace(job(1), steps_done=done, attempts=done))
    stop.set()
    for thread in threads:
        thread.join()
    assert seen
    assert all(each is not None and each.steps_done == each.attempts for each in seen)


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    JobStore(tmp_path / "jobs.sqlite")
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}


@pytest.mark.parametrize(
    ("content", "told"), [("PRAGMA user_version = 9", "version 9; version 2 is allowed"), (None, "not a database")]
)
def test_a_foreign_file_is_refused_and_left_alone(content: str | None, told: str, tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    if content is None:
        path.write_bytes(b"no database at all" * 100)
    else:
        with sqlite3.connect(path) as connection:
            connection.execute(content)
    before = path.stat().st_size
    with pytest.raises(ConfigurationError, match=told):
        JobStore(path)
    assert path.stat().st_size == before


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(deeds=st.lists(st.tuples(st.sampled_from(["create", "step", "complete", "delete"]), st.integers(1, 5))))
def test_the_store_behaves_as_a_dictionary(store: JobStore, deeds: list[tuple[str, int]]) -> None:
    for number in range(1, 6):
        store.delete("key_a", job(number).id)
    model: dict[int, VideoJob] = {}
    for deed, number in deeds:
        known = model.get(number)
        match deed:
            case "create" if known is None:
                model[number] = job(number)
                store.create(model[number])
            case "delete":
                assert store.delete("key_a", job(number).id) == (model.pop(number, None) is not None)
            case "step" | "complete":
                changed = (
                    (known or job(number)).stepped(1, 2) if deed == "step" else (known or job(number)).completed(9)
                )
                assert store.update(changed) == (known is not None)
                if known is not None:
                    model[number] = changed
    page, more = store.page("key_a", order="asc")
    assert (page, more) == (tuple(model.values()), False)
    assert store.unfinished() == tuple(each for each in model.values() if each.status != "completed")
