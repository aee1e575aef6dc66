"""What every store of keys promises, on SQLite and on a real PostgreSQL."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from integration.server import eventually
from key_stores import OpenKeys, postgresql_keys, sqlite_keys
from postgres import Server

from cluster.access import Grant
from cluster.errors import ConfigurationError, Conflict, InvalidRequest, NotFound, Unavailable
from deployments.stores.key_lists import KeysAsked, State
from deployments.stores.key_rows import Act, KeyRows
from deployments.stores.postgres_keys import PostgresKeys

SOON_S = 60.0


@pytest.fixture(params=["sqlite", "postgresql"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> OpenKeys:
    if request.param == "sqlite":
        return sqlite_keys(tmp_path / "state")
    return postgresql_keys(request.getfixturevalue("database"))


@pytest.fixture
def store(opened: OpenKeys) -> Iterator[KeyRows]:
    store = opened()
    yield store
    store.close()


@pytest.fixture
def other(opened: OpenKeys) -> Iterator[KeyRows]:
    """Another gateway's, which has looked a key up before."""
    other = opened()
    assert other.find("sk-moray-none") is None
    yield other
    other.close()


def act(subject: str) -> Act:
    return Act(at_s=1.5, actor="key_a", from_="10.0.0.1", act="keys.revoke", subject=subject, outcome="ok")


def test_a_key_keeps_whose_it_is_and_what_it_may_do(store: KeyRows) -> None:
    grant = Grant(org="acme", project="trailers", scopes=("files", "videos"), expires_s=9.5)
    secret, record = store.create("studio ✓", 1.5, "pro", grant)
    assert store.find(secret) == store.get(record.id) == store.list()[0] == record
    assert (record.org, record.project, record.scopes) == ("acme", "trailers", ("videos", "files"))
    assert (record.plan, record.expires_s) == ("pro", 9.5)


def test_a_key_that_names_no_scopes_has_all_but_that_of_admins(store: KeyRows) -> None:
    assert store.create("a", 1.0)[1].scopes == ("chat", "videos", "files")


@pytest.mark.parametrize(
    ("grant", "said"),
    [
        (Grant(scopes=("chat", "root")), "'root'; chat, videos, files, admin are allowed"),
        (Grant(org=" "), "org: given ' '"),
        (Grant(project="a\n"), "project: given"),
        (Grant(expires_s=1.0), "past already"),
        (Grant(expires_s=1e300), "a hundred years"),
        (Grant(expires_s=math.nan), "a hundred years"),
    ],
)
def test_what_no_key_can_have_is_refused_and_makes_none(store: KeyRows, grant: Grant, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        store.create("a", 1.0, None, grant)
    assert store.list() == ()


def test_a_rotated_key_has_a_new_secret_at_once_and_the_one_before_until_its_grace_ends(store: KeyRows) -> None:
    before, record = store.create("a", 1.0, None, Grant(expires_s=100.0))
    after, rotated = store.rotate(record.id, 10.0, grace_s=30.0)
    assert store.find(after) == rotated == record
    found = store.find(before)
    assert found is not None
    assert (found.id, found.expires_s) == (record.id, 40.0)
    store.rotate(after, 20.0, grace_s=1000.0)
    assert store.find(before) is None, "it was rotated out twice"
    found = store.find(after)
    assert found is not None
    assert found.expires_s == 100.0, "no grace outlives the key"


def test_revoking_refuses_every_secret_of_the_key_and_it_is_rotated_no_more(store: KeyRows) -> None:
    before, record = store.create("a", 1.0)
    after, _ = store.rotate(record.id, 2.0, grace_s=1000.0)
    store.revoke(before, 3.0)
    assert store.find(before) is None
    assert store.find(after) is None
    with pytest.raises(Conflict, match="is revoked"):
        store.rotate(record.id, 4.0)
    with pytest.raises(NotFound):
        store.rotate("key_none", 4.0)


@pytest.mark.parametrize("grace_s", [-1.0, math.nan, math.inf, 1e300])
def test_a_grace_has_an_end(store: KeyRows, grace_s: float) -> None:
    secret, record = store.create("a", 1.0)
    with pytest.raises(InvalidRequest, match="grace_s"):
        store.rotate(record.id, 4.0, grace_s)
    assert store.find(secret) == record


def test_what_is_no_id_is_of_nobody_and_a_secret_that_is_named_is_not_told(store: KeyRows) -> None:
    assert store.get("key_\0") is None
    with pytest.raises(NotFound, match=r"'sk-moray-\.\.\.' is unknown"):
        store.revoke("sk-moray-of-nobody", 1.0)


def test_another_gateway_knows_of_each_change(store: KeyRows, other: KeyRows) -> None:
    secret, record = store.create("a", 1.0)
    eventually(lambda: other.find(secret) == record, SOON_S, "created")
    after, _ = store.rotate(record.id, 2.0)
    eventually(lambda: other.find(after) == record, SOON_S, "rotated")
    store.revoke(record.id, 3.0)
    eventually(lambda: other.find(after) is None, SOON_S, "revoked")


def test_acts_are_kept_in_their_order(store: KeyRows) -> None:
    for number in range(5):
        store.log(act(f"key_{number}"))
    assert store.acts(2) == (act("key_3"), act("key_4"))
    for limit in (0, -1, 2**70):
        with pytest.raises(InvalidRequest, match="last"):
            store.acts(limit)


def test_the_acts_before_one_are_told_of_some_kinds_or_of_what_was_refused_alone(store: KeyRows) -> None:
    for number in range(4):
        store.log(replace(act(f"key_{number}"), outcome="ok" if number % 2 else "not_found", act=f"keys.{number // 2}"))
    seen = store.acts_before(None, 9)
    assert [one.subject for _, one in seen] == ["key_0", "key_1", "key_2", "key_3"]
    assert store.acts_before(seen[2][0], 1) == (seen[1],)
    assert store.acts_before(0, 9) == ()
    assert store.acts_before(None, 9, ("keys.1", "keys.2")) == seen[2:]
    assert store.acts_before(None, 9, ("keys.1",), refused=True) == (seen[2],)


def walked(store: KeyRows, asked: KeysAsked) -> list[str]:
    """The names on all pages."""
    found, more = store.page(asked)
    names = [record.name for record in found]
    assert not more or len(found) == asked.limit
    return names + (walked(store, replace(asked, after=found[-1].id)) if more else [])


def test_pages_tell_every_key_once_in_either_order_of_those_of_one_moment_too(store: KeyRows) -> None:
    for number in range(7):
        store.create(f"{number}", number // 3)
    oldest = [record.name for record in store.list()]
    assert walked(store, KeysAsked(limit=2, order="asc")) == oldest
    assert walked(store, KeysAsked(limit=3)) == oldest[::-1]
    with pytest.raises(InvalidRequest, match="after: 'key_none' is no key"):
        store.page(KeysAsked(after="key_none"))


@pytest.mark.parametrize(
    ("search", "names"),
    [
        ("MED", ["Media 100%"]),
        ("acme/Films", ["Media 100%"]),
        ("gold", ["b_c"]),
        ("%", ["Media 100%"]),
        ("b_", ["b_c"]),
        ("!", []),
        ("none", []),
    ],
)
def test_a_search_finds_part_of_what_a_key_is_called_in_any_case_and_means_no_pattern(
    store: KeyRows, search: str, names: list[str]
) -> None:
    store.create("Media 100%", 1.0, None, Grant(org="acme", project="films"))
    store.create("b_c", 2.0, "gold")
    store.create("bec", 3.0)
    assert walked(store, KeysAsked(search=search)) == names


@pytest.mark.parametrize(
    ("state", "names"), [("valid", ["endless", "later"]), ("expired", ["over"]), ("revoked", ["gone"])]
)
def test_keys_are_listed_by_their_state(store: KeyRows, state: State, names: list[str]) -> None:
    for name, expires_s in (("gone", 50.0), ("over", 50.0), ("later", 51.0), ("endless", None)):
        _, record = store.create(name, 1.0, None, Grant(expires_s=expires_s))
        if name == "gone":
            store.revoke(record.id, 2.0)
    assert sorted(walked(store, KeysAsked(state=state, now_s=50.0))) == names
    assert walked(store, KeysAsked(state=state, now_s=50.0, org="acme")) == []


def test_projects_are_told_with_their_keys_and_plans(store: KeyRows) -> None:
    for org, project, plan in (("a", "x", "pro"), ("a", "x", None), ("a", "y", "pro"), ("b", "x", None)):
        _, record = store.create("k", 1.0, plan, Grant(org=org, project=project))
    store.revoke(record.id, 2.0)
    found, more = store.projects(limit=2)
    assert ([(one.org, one.project, one.keys, one.valid) for one in found], more) == (
        [("a", "x", 2, 2), ("a", "y", 1, 1)],
        True,
    )
    rest, more = store.projects("B/", ("a", "y"), 2)
    assert ([(one.org, one.project, one.keys, one.valid) for one in rest], more) == ([("b", "x", 1, 0)], False)
    assert set(store.plans("a", "x")) == {"pro", None}
    assert store.names([record.id, "key_none"]) == {record.id: "k"}


def test_acts_can_neither_be_changed_nor_deleted(store: KeyRows) -> None:
    store.log(act("key_a"))
    for statement in ("UPDATE key_acts SET actor = 'nobody'", "DELETE FROM key_acts"):
        with contextlib.suppress(ConfigurationError):  # SQLite says so, PostgreSQL does nothing
            store._run(statement, ())
    assert store.acts() == (act("key_a"),)


def test_a_gateway_that_hears_nothing_from_the_database_refuses_and_goes_on_when_it_is_back(database: Server) -> None:
    store = PostgresKeys(database.fresh())
    try:
        secret, record = store.create("a", 1.0)
        assert store.find(secret) == record
        database.stop()
        try:
            eventually(lambda: _refuses(store, secret), SOON_S, "it refuses")
        finally:
            database.start()
        eventually(lambda: not _refuses(store, secret), SOON_S, "it goes on")
        assert store.find(secret) == record
    finally:
        store.close()


def test_a_gateway_that_began_without_its_database_goes_on_when_it_is_there(database: Server) -> None:
    url = database.fresh()
    maker, store = PostgresKeys(url), PostgresKeys(url)
    try:
        secret, record = maker.create("a", 1.0)
        database.stop()
        try:
            assert _refuses(store, secret)
        finally:
            database.start()
        eventually(lambda: not _refuses(store, secret), SOON_S, "it goes on")
        assert store.find(secret) == record
    finally:
        maker.close()
        store.close()


def test_a_change_that_a_cut_listener_did_not_hear_is_read_when_it_listens_again(database: Server) -> None:
    url = database.fresh()
    store = PostgresKeys(url)
    try:
        secret, record = store.create("a", 1.0)
        assert store.find(secret) == record
        read_s = store._heard_s
        eventually(lambda: store._heard_s > read_s, SOON_S, "it listens")
        with psycopg.connect(url, autocommit=True) as other:
            other.execute("ALTER TABLE keys DISABLE TRIGGER key_told")
            other.execute("UPDATE keys SET revoked_s = 2")
        assert store.find(secret) == record, "nobody told"
        database.cut()
        eventually(lambda: store.find(secret) is None, SOON_S, "read again")
    finally:
        store.close()


def _refuses(store: KeyRows, secret: str) -> bool:
    try:
        store.find(secret)
    except Unavailable:
        return True
    return False
