"""What the store of files, responses, conversations and batches promises, on SQLite and on a real PostgreSQL."""

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from postgres import Server

from cluster.errors import ConfigurationError, InvalidRequest
from cluster.family import Gateway
from deployments.stores.objects import OBJECTS_FILE, Object, Objects, Page, in_file, in_postgres, objects_of

Open = Callable[[], Objects]


@pytest.fixture(params=["sqlite", "postgresql"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    if request.param == "sqlite":
        return lambda: in_file(tmp_path / "state" / "objects.sqlite")
    url = request.getfixturevalue("database").fresh()
    return lambda: in_postgres(url)


@pytest.fixture
def store(opened: Open) -> Iterator[Objects]:
    store = opened()
    yield store
    store.close()


def made(name: str, owner: str = "key_a", **more: object) -> Object:
    told: dict[str, object] = {"id": name, "kind": "response", "owner": owner, "document": '{"text":"✓ \\u0000"}'}
    return Object(**told | more)  # type: ignore[arg-type]


def ids(found: tuple[Object, ...]) -> list[str]:
    return [each.id for each in found]


def test_an_object_comes_back_as_it_went_in_also_in_the_next_process(store: Objects, opened: Open) -> None:
    given = made("a", parent="p", label="l", open=True, expires_at_s=2**40)
    store.create(given, made("b"))
    again = opened()  # the first never closed: as after a crash
    assert again.get("key_a", "response", "a") == given
    assert again.get("key_a", "response", "b") == made("b")
    again.close()


def test_one_key_sees_and_deletes_nothing_of_another(store: Objects) -> None:
    store.create(made("a"))
    assert store.get("key_b", "response", "a") is None
    assert store.get("key_a", "file", "a") is None
    assert store.page("key_b", "response", Page()) == ((), False)
    assert not store.delete("key_b", "a")
    assert store.unfinished("key_b", "response") == 0
    with pytest.raises(InvalidRequest, match="no response here"):
        store.page("key_b", "response", Page(after="a"))


def test_what_is_created_twice_is_there_once_as_it_was_first(store: Objects) -> None:
    store.create(made("a"), made("b"))
    store.create(made("a", document="other"), made("c"))
    found, _ = store.page("key_a", "response", Page(order="asc"))
    assert ids(found) == ["a", "b", "c"]
    assert found[0] == made("a")


def test_a_row_is_written_only_over_the_one_that_was_read(store: Objects) -> None:
    store.create(made("a"))
    first = store.update(made("a", document="1"))
    assert first == made("a", document="1", revision=1)
    assert store.update(made("a", document="2")) is None
    assert store.get("key_a", "response", "a") == first
    assert store.update(made("a", document="1")) == first, "the same words again, as after a lost answer"
    store.delete("key_a", "a")
    assert store.update(first) is None


def test_pages_follow_the_order_of_creation_within_a_parent_and_a_label(store: Objects) -> None:
    store.create(*(made(f"i{n}", kind="item", parent="ab"[n % 2], label="xy"[n > 5]) for n in range(8)))
    assert [*map(ids, store.page("key_a", "item", Page(parent="a", limit=3, order="asc"))[:1])] == [["i0", "i2", "i4"]]
    rest, more = store.page("key_a", "item", Page(parent="a", limit=3, order="asc", after="i4"))
    assert (ids(rest), more) == (["i6"], False)
    newest, more = store.page("key_a", "item", Page(limit=2))
    assert (ids(newest), more) == (["i7", "i6"], True)
    assert ids(store.page("key_a", "item", Page(label="y"))[0]) == ["i7", "i6"]
    assert store.counts("b") == {"x": 3, "y": 1}
    assert store.children("b") == {"i1", "i3", "i5", "i7"}
    assert store.present(["i1", "i8", "i2"]) == {"i1", "i2"}


def test_what_has_a_parent_goes_with_it(store: Objects) -> None:
    store.create(made("c", kind="conversation"), made("i", kind="item", parent="c"), made("j", kind="item"))
    assert store.delete("key_a", "c")
    assert ids(store.page("key_a", "item", Page())[0]) == ["j"]
    assert not store.delete("key_a", "c")


def test_open_objects_are_claimed_once_oldest_first_and_again_when_their_lease_has_run_out(store: Objects) -> None:
    store.create(made("a", open=True), made("b", open=True), made("c"), made("f", kind="batch", open=True))
    first, second = store.claim("response", "g1", 0, 10), store.claim("response", "g2", 0, 10)
    assert first is not None
    assert second is not None
    assert (first.id, second.id) == ("a", "b")
    assert store.claim("response", "g3", 9, 10) is None
    assert store.renew("g1", ["a", "b"], 9, 10) == {"a": 1}
    taken = store.claim("response", "g3", 11, 10)
    assert taken is not None
    assert (taken.id, taken.revision) == ("b", 2)
    assert store.update(replace(second, open=False)) is None, "the holder whose lease ran out writes nothing"
    assert store.renew("g2", ["b"], 11, 10) == {}
    assert store.unfinished("key_a", "response") == 2


def test_what_is_given_back_can_be_claimed_from_the_time_that_was_said(store: Objects) -> None:
    store.create(made("a", open=True))
    held = store.claim("response", "g1", 0, 10)
    assert held is not None
    assert store.update(held, free_at_s=30.0) is not None
    assert store.claim("response", "g2", 29, 10) is None
    again = store.claim("response", "g2", 30, 10)
    assert again is not None
    assert store.update(replace(again, open=False), free_at_s=0.0) is not None
    assert store.claim("response", "g2", 99, 10) is None, "it is finished"


def test_what_has_expired_is_found_by_kind_unless_there_is_work_to_do(store: Objects) -> None:
    store.create(made("a", expires_at_s=5), made("b", expires_at_s=5, open=True), made("c", expires_at_s=7), made("d"))
    assert ids(store.expired("response", 5)) == ["a"]
    assert ids(store.expired("response", 9)) == ["a", "c"]
    assert store.expired("file", 9) == ()


def test_the_family_says_where_objects_are(tmp_path: Path, database: Server) -> None:
    objects_of(Gateway(), tmp_path).close()
    assert (tmp_path / OBJECTS_FILE).stat().st_mode & 0o777 == 0o600
    there = objects_of(Gateway(database=database.fresh()), tmp_path / "none")
    there.create(made("a"))
    there.close()
    assert not (tmp_path / "none").exists()


def test_a_file_of_a_later_release_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "objects.sqlite"
    in_file(file).close()
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA user_version = 9")
    with pytest.raises(ConfigurationError, match="its layout is version 9"):
        in_file(file)
