"""What every store of jobs promises, on SQLite and on a real PostgreSQL."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from job_stores import Open, job, numbers, postgresql, sqlite, video_id
from postgres import Server

from cluster.clip import Region, Span
from cluster.errors import EngineFailed, InvalidRequest
from cluster.family import Video, load
from deployments.stores.jobs import JobStore, jobs_of
from deployments.stores.postgres import PostgresJobs
from deployments.video.jobs import Character, Jobs, Order, VideoJob
from deployments.video.spec import Edit, Inputs

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SIDE = st.integers(0, 4096)
TIME_S = st.floats(0, 120)
JOBS = st.builds(
    job,
    st.just(1),
    prompt=TEXT,
    negative_prompt=TEXT,
    seed=st.integers(0, 2**63 - 1),
    guidance=st.floats(0, 50),
    task=st.sampled_from(["create", "remix", "edit", "extend"]),
    parent_id=st.none() | st.just(video_id(2)),
    edit=st.none()
    | st.builds(
        Edit,
        span=st.none() | st.builds(Span, start_s=TIME_S, end_s=TIME_S),
        region=st.none() | st.builds(Region, x=SIDE, y=SIDE, width=SIDE, height=SIDE),
        mode=st.sampled_from(["exact", "fast"]),
    ),
    inputs=st.builds(Inputs, first=st.none() | TEXT, references=st.lists(TEXT, max_size=3).map(tuple)),
    style=st.none() | TEXT,
    style_phrase=TEXT,
    out_size=st.none() | st.just("4096x2160"),
    out_fps=st.none() | st.just(120),
    strength=st.floats(0, 1),
    priority=st.integers(-(2**31), 2**31),
    idempotency_key=st.none() | TEXT.filter(lambda text: "\0" not in text),
    signed=st.none() | st.booleans(),
    expires_at_s=st.none() | st.integers(0, 2**40),
    stage=st.sampled_from(["queued", "decoding"]),
    broke=st.integers(0, 9),
    way=st.none() | TEXT.filter(lambda text: "\0" not in text),
)


@pytest.fixture(params=["sqlite", "postgresql"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    if request.param == "sqlite":
        return sqlite(tmp_path / "state")
    return postgresql(request.getfixturevalue("database"))


@pytest.fixture
def store(opened: Open) -> Iterator[Jobs]:
    store = opened()
    yield store
    store.close()


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=JOBS)
def test_a_job_comes_back_as_it_went_in(store: Jobs, asked: VideoJob) -> None:
    assert store.create(asked) == asked
    try:
        assert store.get("key_a", asked.id) == asked
        changed = asked.begun().stepped(5, 12).staged("decoding").failed(EngineFailed("why\0"))
        assert store.update(changed)
        assert store.get("key_a", asked.id) == changed
    finally:
        store.delete("key_a", asked.id)


def test_jobs_survive_a_restart(store: Jobs, opened: Open) -> None:
    store.create(job(1))
    again = opened()  # the first never closed: as after a crash
    assert again.get("key_a", video_id(1)) == job(1)
    again.close()


def test_one_key_sees_nothing_of_another(store: Jobs) -> None:
    store.create(job(1, "key_a"))
    store.create(job(2, "key_a", parent_id=video_id(1)))
    assert store.get("key_b", video_id(1)) is None
    assert not store.delete("key_b", video_id(1))
    assert store.page("key_b") == ((), False)
    assert store.children("key_b", [video_id(1)]) == {}
    with pytest.raises(InvalidRequest, match="after"):
        store.page("key_b", after=video_id(1))
    assert store.get("key_a", video_id(1)) == job(1)


def test_an_id_is_taken_once_and_the_same_job_twice_is_once(store: Jobs) -> None:
    store.create(job(1))
    assert store.create(job(1)) == job(1)
    with pytest.raises(ValueError, match="is taken"):
        store.create(job(1, "key_b"))
    assert store.counts() == {"queued": 1}


def test_an_idempotency_key_is_answered_with_the_first_job_of_its_owner(store: Jobs) -> None:
    first = store.create(job(1, idempotency_key="again"))
    store.update(first.begun())
    assert store.create(job(2, idempotency_key="again", prompt="another")) == first.begun()
    assert store.create(job(3, "key_b", idempotency_key="again")) == job(3, "key_b", idempotency_key="again")
    for number in (4, 5):
        store.create(job(number))
    assert numbers(store.unfinished()) == [1, 3, 4, 5]
    store.delete("key_a", video_id(1))
    assert store.create(job(6, idempotency_key="again")).id == video_id(6)


def test_many_clients_with_one_idempotency_key_get_one_job(opened: Open) -> None:
    got: list[str] = []

    def create(number: int) -> None:
        store = opened()
        got.append(store.create(job(number, idempotency_key="again")).id)
        store.close()

    together([threading.Thread(target=create, args=(number,)) for number in range(8)])
    assert len(got) == 8
    assert len(set(got)) == 1


def test_updating_a_deleted_job_says_that_it_is_gone(store: Jobs) -> None:
    store.create(job(1))
    assert store.delete("key_a", video_id(1))
    assert not store.delete("key_a", video_id(1))
    assert not store.update(job(1).begun())
    assert store.get("key_a", video_id(1)) is None


def test_a_job_ends_once(store: Jobs) -> None:
    store.create(job(1))
    done = job(1).begun().completed(1010, signed=True, expires_s=90)
    assert store.update(done)
    assert store.update(done)  # as after a lost answer
    assert not store.update(job(1).begun().failed(EngineFailed("why")))
    assert not store.update(job(1).requeued())
    assert store.get("key_a", video_id(1)) == done


@pytest.mark.parametrize(("order", "expected"), [("asc", [1, 2, 3, 4, 5]), ("desc", [5, 4, 3, 2, 1])])
def test_pages_follow_each_other_in_order_of_creation(store: Jobs, order: Order, expected: list[int]) -> None:
    for number in range(1, 6):
        store.create(job(number))
        store.create(job(number + 100, "key_b"))
    seen: list[int] = []
    after: str | None = None
    for more in (True, True, False):
        page, has_more = store.page("key_a", after=after, limit=2, order=order)
        assert has_more == more
        seen += numbers(page)
        after = page[-1].id
    assert seen == expected


def test_unfinished_jobs_of_all_owners_come_oldest_first(store: Jobs) -> None:
    for number, owner in enumerate(["key_b", "key_a", "key_a", "key_b"], 1):
        store.create(job(number, owner))
    store.update(job(1, "key_b").stepped(1, 12))
    store.update(job(2).begun().completed(2000))
    store.update(job(3).begun().failed(EngineFailed("why")))
    assert numbers(store.unfinished()) == [1, 4]
    assert store.counts() == {"queued": 2, "completed": 1, "failed": 1}


def test_what_is_made_from_a_job_is_told_by_job(store: Jobs) -> None:
    store.create(job(1))
    for number, parent in ((2, 1), (3, 1), (4, 2)):
        store.create(job(number, parent_id=video_id(parent)))
    asked = [video_id(number) for number in (1, 2, 3, 9)]
    expected = {video_id(1): (video_id(2), video_id(3)), video_id(2): (video_id(4),)}
    assert store.children("key_a", asked) == expected
    assert store.children("key_a", []) == {}


def test_jobs_are_claimed_by_priority_and_then_by_age(store: Jobs) -> None:
    for number, priority in ((1, 0), (2, 5), (3, 0), (4, 5), (5, -1)):
        store.create(job(number, priority=priority))
    claimed = tuple(filter(None, (store.claim("gateway_a", 0, 10) for _ in range(6))))
    assert numbers(claimed) == [2, 4, 1, 3, 5]
    assert {(each.claimed_by, each.lease_until_s) for each in claimed} == {("gateway_a", 10)}


def test_jobs_of_other_models_than_those_asked_for_stay_where_they_are(store: Jobs) -> None:
    for number, model in ((1, "old"), (2, "new"), (3, "newest")):
        store.create(job(number, model=model))
    claimed = tuple(filter(None, (store.claim("gateway_a", 0, 10, ("new", "newest")) for _ in range(3))))
    assert numbers(claimed) == [2, 3]
    left = store.get("key_a", video_id(1))
    assert left is not None
    assert (left.status, left.claimed_by) == ("queued", None)


def test_a_lease_that_is_not_renewed_runs_out_and_its_old_holder_writes_no_more(store: Jobs) -> None:
    store.create(job(1))
    held = store.claim("gateway_a", 0, 10)
    assert held is not None
    assert store.update(held.begun().stepped(6, 12))
    assert store.renew("gateway_a", [held.id, video_id(9)], 9, 10) == {held.id}
    assert store.claim("gateway_b", 18, 10) is None
    taken = store.claim("gateway_b", 19, 10)
    assert taken is not None
    assert (taken.claimed_by, taken.status, taken.progress, taken.attempts) == ("gateway_b", "queued", 50, 1)
    assert not store.update(held.begun().completed(20))
    assert store.renew("gateway_a", [held.id], 20, 10) == frozenset()
    store.release("gateway_a")
    assert store.get("key_a", held.id) == taken


def test_a_released_job_is_claimed_at_once(store: Jobs) -> None:
    for number in (1, 2, 3):
        store.create(job(number))
    for _ in range(3):
        held = store.claim("gateway_a", 0, 10)
        assert held is not None
        store.update(held.begun())
    store.release("gateway_a", video_id(2))
    assert numbers(tuple(filter(None, [store.claim("gateway_b", 1, 10), store.claim("gateway_b", 1, 10)]))) == [2]
    store.release("gateway_a")
    back = [store.claim("gateway_c", 1, 10) for _ in range(3)]
    assert [each and (each.id, each.attempts) for each in back] == [(video_id(1), 1), (video_id(3), 1), None]


def test_an_update_writes_no_lease(store: Jobs) -> None:
    store.create(job(1))
    held = store.claim("gateway_a", 0, 10)
    assert held is not None
    store.renew("gateway_a", [held.id], 5, 10)
    store.update(replace(held, steps_done=3, lease_until_s=1.0))
    assert store.get("key_a", held.id) == replace(held, steps_done=3, lease_until_s=15.0)


def test_a_job_may_be_claimed_from_its_creation(store: Jobs) -> None:
    store.create(job(1, claimed_by="gateway_a", lease_until_s=10.0))
    assert store.claim("gateway_b", 5, 10) is None
    assert store.claim("gateway_b", 10, 10) is not None


def test_gateways_that_claim_at_once_share_the_jobs_and_none_gets_one_twice(store: Jobs, opened: Open) -> None:
    for number in range(40):
        store.create(job(number))
    claimed: list[VideoJob] = []

    def claim(gateway: str) -> None:
        own = opened()
        while (held := own.claim(gateway, 0, 10)) is not None:
            claimed.append(held)
        own.close()

    together([threading.Thread(target=claim, args=(f"gateway_{index}",)) for index in range(4)])
    assert sorted(numbers(tuple(claimed))) == list(range(40))


def test_expired_jobs_are_those_whose_end_is_long_past_and_that_nothing_is_made_from(store: Jobs) -> None:
    for number in range(1, 6):
        store.create(job(number))
    for number, expires_s in ((1, 10), (2, 20), (3, None), (4, 10)):
        store.update(job(number).completed(1000, expires_s=expires_s))
    store.create(job(6, parent_id=video_id(4)))
    assert numbers(store.expired(1009)) == []
    assert numbers(store.expired(1010)) == [1]
    assert numbers(store.expired(1020)) == [1, 2]
    store.update(job(6, parent_id=video_id(4)).failed(EngineFailed("why")))
    assert numbers(store.expired(1020)) == [1, 2, 4]


def test_characters_are_their_owners_alone(store: Jobs) -> None:
    ball = Character(id="char_1", owner="key_a", name="Ball ✓", file="char_1/video.mp4", created_at_s=1000)
    cube = replace(ball, id="char_2", name="Cube")
    for _ in range(2):
        assert store.put_character(ball, 2)
    assert store.put_character(cube, 2)
    assert not store.put_character(replace(ball, id="char_3"), 2)
    assert store.characters("key_a") == (ball, cube)
    store.create(job(1))
    assert store.present(["char_2", video_id(1), video_id(2), "char_3"]) == {"char_2", video_id(1)}
    assert store.character("key_a", "char_2") == cube
    assert (store.characters("key_b"), store.character("key_b", "char_1")) == ((), None)
    with pytest.raises(ValueError, match="is taken"):
        store.put_character(replace(ball, owner="key_b"), 2)
    assert not store.delete_character("key_b", "char_1")
    assert store.delete_character("key_a", "char_1")
    assert store.characters("key_a") == (cube,)


def test_readers_in_other_threads_and_connections_never_meet_half_a_job(store: Jobs, opened: Open) -> None:
    reader = opened()
    store.create(job(1))
    seen: list[VideoJob | None] = []
    stop = threading.Event()

    def read(source: Jobs) -> None:
        while not stop.is_set():
            seen.append(source.get("key_a", video_id(1)))

    threads = [threading.Thread(target=read, args=(source,)) for source in (store, reader)]
    for thread in threads:
        thread.start()
    for done in range(60):
        store.update(replace(job(1), steps_done=done, attempts=done))
    stop.set()
    for thread in threads:
        thread.join()
    reader.close()
    assert seen
    assert all(each is not None and each.steps_done == each.attempts for each in seen)


def test_the_family_file_names_the_database(database: Server, tmp_path: Path) -> None:
    video = load("laptop").video
    assert video is not None
    for url, kind in ((None, JobStore), (database.fresh(), PostgresJobs)):
        store = jobs_of(Video.model_validate(video.model_dump() | {"database": url}), tmp_path)
        assert isinstance(store, kind)
        store.close()


def together(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
