"""What the store of storyboards promises, on SQLite and on a real PostgreSQL."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from postgres import Server

from cluster.errors import ConfigurationError, InvalidRequest
from cluster.family import load
from cluster.storyboard import Character, Shot, Warned
from deployments.stores.jobs import jobs_of
from deployments.stores.storyboards import (
    Retake,
    State,
    Storyboard,
    StoryboardStore,
    Take,
    boards_of,
    in_file,
    in_postgres,
)

Open = Callable[[], StoryboardStore]  # another connection to one set of rows
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@pytest.fixture(params=["sqlite", "postgresql"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    if request.param == "sqlite":
        return lambda: in_file(tmp_path / "storyboards.sqlite")
    url = request.getfixturevalue("database").fresh()
    return lambda: in_postgres(url)


@pytest.fixture
def store(opened: Open) -> Iterator[StoryboardStore]:
    store = opened()
    yield store
    store.close()


def board(name: str = "a", owner: str = "key_1", **more: object) -> Storyboard:
    take = Take(shot=Shot(prompt="a road", seconds=1.5, characters=("Anna",)), asked="{}", video_id="v", earlier=("u",))
    told: dict[str, object] = {
        "id": f"storyboard_{name}",
        "owner": owner,
        "created_at_s": 1,
        "request": "digest",
        "title": "",
        "cast": (Character(name="Anna", phrase="a woman"),),
        "takes": (take,),
        "warnings": (Warned(shot=0, kind="seconds", message="m"),),
    }
    return Storyboard(**(told | more))  # type: ignore[arg-type]


BOARDS = st.builds(
    board,
    title=TEXT,
    cast=st.lists(st.builds(Character, name=TEXT, phrase=TEXT), max_size=2).map(tuple),
    takes=st.lists(
        st.builds(
            Take,
            shot=st.builds(Shot, prompt=TEXT, seconds=st.floats(0.1, 60), dialogue=TEXT),
            asked=TEXT,
            refused=st.none() | TEXT,
            ended=st.sampled_from([None, "ok", "failed"]),
        ),
        max_size=3,
    ).map(tuple),
    retakes=st.lists(st.builds(Retake, key=TEXT, request=TEXT), max_size=2).map(tuple),
    state=st.sampled_from(get_args(State)),
    expires_at_s=st.none() | st.integers(0, 2**40),
    joining_until_s=st.floats(0, 2**40),
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=BOARDS)
def test_a_storyboard_comes_back_as_it_went_in(store: StoryboardStore, asked: Storyboard) -> None:
    assert store.create(asked) == asked
    try:
        assert store.get("key_1", "storyboard_a") == asked
        now = store.update(replace(asked, cut_error="why"))
        assert now is not None
        assert store.get("key_1", "storyboard_a") == now
        assert store.counts() == {asked.state: 1}
    finally:
        store.delete("key_1", "storyboard_a")


def test_what_was_written_is_read_by_the_next_process_and_by_no_other_owner(
    store: StoryboardStore, opened: Open
) -> None:
    store.create(board())
    again = opened()  # the first never closed: as after a crash
    assert again.get("key_1", "storyboard_a") == board()
    assert again.get("key_2", "storyboard_a") is None
    assert again.page("key_2") == ((), False)
    again.close()


def test_a_second_request_with_one_idempotency_key_is_the_first(store: StoryboardStore) -> None:
    first = store.create(board("a", idempotency_key="k"))
    assert store.create(board("b", idempotency_key="k")) == first
    assert store.create(board("c", owner="key_2", idempotency_key="k")).id == "storyboard_c"
    assert store.create(board("d")).id == "storyboard_d"
    assert store.asked("key_1", None) is None


def test_an_id_is_taken_once_and_the_same_storyboard_twice_is_once(store: StoryboardStore) -> None:
    store.create(board())
    assert store.create(board()) == board()
    with pytest.raises(ValueError, match="is taken"):
        store.create(board(title="another"))


def test_of_two_who_write_what_they_read_one_is_told_that_it_is_late(store: StoryboardStore) -> None:
    read = store.create(board())
    now = store.update(replace(read, title="one"))
    assert now is not None
    for late in ("other", "one"):  # the same words are another's, too
        assert store.update(replace(read, title=late)) is None
    assert store.get("key_1", "storyboard_a") == now
    assert store.delete("key_1", "storyboard_a")
    assert store.update(now) is None
    assert not store.delete("key_1", "storyboard_a")


def test_of_many_gateways_that_write_at_once_one_wins(opened: Open) -> None:
    first = opened()
    read = first.create(board())
    wrote: list[Storyboard | None] = []

    def write(number: int) -> None:
        store = opened()
        wrote.append(store.update(replace(read, title=str(number))))
        store.close()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (won,) = [each for each in wrote if each is not None]
    assert first.get("key_1", "storyboard_a") == won
    first.close()


def test_only_what_is_unsettled_is_looked_at(store: StoryboardStore) -> None:
    read = store.create(board("a"))
    store.create(board("b", owner="key_2", state="joining"))
    assert [each.id for each in store.unsettled()] == ["storyboard_a", "storyboard_b"]
    store.update(replace(read, state="completed"))
    assert [each.id for each in store.unsettled()] == ["storyboard_b"]
    assert store.counts() == {"completed": 1, "joining": 1}
    assert store.present(["storyboard_b", "storyboard_c", "storyboard_a"]) == {"storyboard_a", "storyboard_b"}


def test_what_has_expired_is_forgotten_unless_it_was_asked_for_again(store: StoryboardStore) -> None:
    store.create(board("a", state="completed"))
    store.create(board("b", state="completed", expires_at_s=100))
    store.create(board("c", state="failed", expires_at_s=100))
    assert store.expired(99) == ()
    due = store.expired(100)
    assert [each.id for each in due] == ["storyboard_b", "storyboard_c"]
    store.update(replace(due[1], state="in_progress", expires_at_s=None))
    for each in due:
        store.forget(each)
    assert [each.id for each in store.page("key_1", order="asc")[0]] == ["storyboard_a", "storyboard_c"]


def test_pages_follow_each_other_in_both_orders(store: StoryboardStore) -> None:
    for name in "abc":
        store.create(board(name))
    newest, more = store.page("key_1", limit=2)
    assert ([each.id[-1] for each in newest], more) == (["c", "b"], True)
    assert [each.id[-1] for each in store.page("key_1", after="storyboard_b")[0]] == ["a"]
    assert [each.id[-1] for each in store.page("key_1", after="storyboard_a", order="asc")[0]] == ["b", "c"]
    with pytest.raises(InvalidRequest, match="is no storyboard of this key"):
        store.page("key_1", after="storyboard_x")


def test_storyboards_are_where_the_jobs_are(tmp_path: Path, database: Server) -> None:
    video = load("laptop").video
    assert video is not None
    url = database.fresh()
    for each in (video, video.model_copy(update={"database": url})):
        jobs, boards = jobs_of(each, tmp_path), boards_of(each, tmp_path)
        boards.create(board())
        assert (tmp_path / "storyboards.sqlite").exists()
        jobs.close()
        boards.close()
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT id, state FROM storyboards").fetchall()
    assert found == [("storyboard_a", "in_progress")]
    assert (tmp_path / "storyboards.sqlite").stat().st_mode & 0o777 == 0o600


def test_a_connection_that_was_cut_is_made_anew_and_writes_once(database: Server) -> None:
    store = in_postgres(database.fresh())
    database.cut()
    now = store.create(board())
    for revision in (1, 2):
        database.cut()
        written = store.update(now)
        assert written is not None
        assert written.revision == revision
        now = written
    store.close()


def test_a_file_of_the_first_layout_is_taken_over_and_all_of_it_is_looked_at_again(tmp_path: Path) -> None:
    path = tmp_path / "storyboards.sqlite"
    document = '{"id":"storyboard_a","owner":"key_1","created_at_s":1,"request":"r","title":"","cast":[],"takes":[],'
    with sqlite3.connect(path) as connection:
        connection.executescript("""
CREATE TABLE storyboards (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, idempotency_key TEXT,
    settled INTEGER NOT NULL, revision INTEGER NOT NULL, document TEXT NOT NULL
) STRICT;
CREATE INDEX storyboards_of_owner ON storyboards (owner, seq);
CREATE INDEX storyboards_unsettled ON storyboards (seq) WHERE NOT settled;
CREATE UNIQUE INDEX storyboards_asked_once ON storyboards (owner, idempotency_key);
PRAGMA user_version = 1""")
        row = ("storyboard_a", "key_1", "k", 1, 3, f'{document}"settled":true,"revision":3}}')
        connection.execute(
            "INSERT INTO storyboards (id, owner, idempotency_key, settled, revision, document) VALUES (?,?,?,?,?,?)",
            row,
        )
    connection.close()
    for _ in range(2):  # the second finds it done
        store = in_file(path)
        assert [(each.id, each.state, each.revision) for each in store.unsettled()] == [
            ("storyboard_a", "in_progress", 3)
        ]
        assert store.asked("key_1", "k") is not None
        store.close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "storyboards.sqlite").write_text("no database, but long enough to be looked at as one")
    with pytest.raises(ConfigurationError, match="move the file away"):
        in_file(tmp_path / "storyboards.sqlite")
