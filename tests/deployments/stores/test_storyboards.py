"""The store of storyboards."""

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.errors import ConfigurationError, InvalidRequest
from cluster.storyboard import Character, Shot, Warned
from deployments.stores.storyboards import Storyboard, StoryboardStore, Take


@pytest.fixture
def store(tmp_path: Path) -> StoryboardStore:
    return StoryboardStore(tmp_path / "storyboards.sqlite")


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


def test_what_was_written_is_read_by_the_next_process_and_by_no_other_owner(tmp_path: Path) -> None:
    path = tmp_path / "storyboards.sqlite"
    StoryboardStore(path).create(board())
    again = StoryboardStore(path)
    assert again.get("key_1", "storyboard_a") == board()
    assert again.get("key_2", "storyboard_a") is None
    assert again.page("key_2") == ((), False)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_second_request_with_one_idempotency_key_is_the_first(store: StoryboardStore) -> None:
    first = store.create(board("a", idempotency_key="k"))
    assert store.create(board("b", idempotency_key="k")) == first
    assert store.create(board("c", owner="key_2", idempotency_key="k")).id == "storyboard_c"
    assert store.create(board("d")).id == "storyboard_d"
    assert store.asked("key_1", None) is None


def test_of_two_who_write_what_they_read_one_is_told_that_it_is_late(store: StoryboardStore) -> None:
    read = store.create(board())
    now = store.update(replace(read, title="one"))
    assert now is not None
    assert store.update(replace(read, title="other")) is None
    assert store.get("key_1", "storyboard_a") == now
    assert store.delete("key_1", "storyboard_a")
    assert store.update(now) is None
    assert not store.delete("key_1", "storyboard_a")


def test_only_what_is_unsettled_is_looked_at(store: StoryboardStore) -> None:
    read = store.create(board("a"))
    store.create(board("b", owner="key_2"))
    assert [each.id for each in store.unsettled()] == ["storyboard_a", "storyboard_b"]
    store.update(replace(read, settled=True))
    assert [each.id for each in store.unsettled()] == ["storyboard_b"]


def test_pages_follow_each_other_in_both_orders(store: StoryboardStore) -> None:
    for name in "abc":
        store.create(board(name))
    newest, more = store.page("key_1", limit=2)
    assert ([each.id[-1] for each in newest], more) == (["c", "b"], True)
    assert [each.id[-1] for each in store.page("key_1", after="storyboard_b")[0]] == ["a"]
    assert [each.id[-1] for each in store.page("key_1", after="storyboard_a", order="asc")[0]] == ["b", "c"]
    with pytest.raises(InvalidRequest, match="is no storyboard of this key"):
        store.page("key_1", after="storyboard_x")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "storyboards.sqlite").write_text("no database, but long enough to be looked at as one")
    with pytest.raises(ConfigurationError, match="move the file away"):
        StoryboardStore(tmp_path / "storyboards.sqlite")
