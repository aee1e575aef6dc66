"""What `moray keys list` and `moray plans` show in little room, and how many keys at a time."""

import argparse
import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from shell import family

from cluster.access import Grant
from cluster.errors import ConfigurationError
from cluster.family import Family, Plan
from deployments import keys_options
from deployments.keys_command import keys, plans
from deployments.stores.keys import keys_of

LONG = "the night batch of a department whose name is long"


@pytest.fixture
def spec(tmp_path: Path) -> Family:
    return family(tmp_path)


def made(spec: Family, *names: str, plan: str | None = None, **grant: object) -> list[str]:
    """Their ids, the oldest first."""
    store = keys_of(spec)
    before = len(store.list())
    found = [
        store.create(name, before + number, plan, Grant(**grant))[1].id  # type: ignore[arg-type]
        for number, name in enumerate(names)
    ]
    store.close()
    return found


def listed(spec: Family, *words: str, width: int = 80) -> list[str]:
    said, parser = io.StringIO(), argparse.ArgumentParser()
    keys_options.add_arguments(parser)
    assert keys(spec, parser.parse_args(["list", *words]), Console(file=said, width=width)) == 0
    return said.getvalue().splitlines()


def test_ids_and_ends_are_whole_in_eighty_columns_however_long_names_are(spec: Family) -> None:
    (key,) = made(spec, LONG, plan="professional", org="globex-international", scopes=("videos",), expires_s=2e9)
    told = listed(spec)
    (row,) = [line for line in told if key in line]
    assert {key, "professional", "videos", "2033-05-18"} <= set(row.split())
    assert all(len(line) <= 80 for line in told)


def test_what_all_keys_have_in_common_is_left_out_and_shown_where_one_differs(spec: Family) -> None:
    made(spec, "alice")
    assert listed(spec)[0].split() == ["id", "name", "until"]
    assert listed(spec, width=120)[0].split() == ["id", "name", "created", "until"]
    made(spec, "ops", scopes=("admin",))
    assert listed(spec)[0].split() == ["id", "name", "scopes", "until"]


def test_a_table_shows_some_keys_and_says_how_to_go_on(spec: Family, capsys: pytest.CaptureFixture[str]) -> None:
    ids = made(spec, *(f"key {number}" for number in range(103)))
    told = listed(spec)
    assert told[-1] == f"there are more: moray keys list --after {ids[99]}"
    assert [line.split()[0] for line in listed(spec, "--after", ids[99])[2:]] == ids[100:]
    assert [line.split()[0] for line in listed(spec, "--search", "KEY 10", "--limit", "2")[2:-1]] == [ids[10], ids[100]]
    listed(spec, "--json")
    assert [key["id"] for key in json.loads(capsys.readouterr().out)] == ids


@pytest.mark.parametrize("limit", ["0", "-1", "1000001"])
def test_so_many_keys_as_nobody_lists_are_refused(spec: Family, limit: str) -> None:
    with pytest.raises(ConfigurationError, match="1 to 1000000 is allowed"):
        listed(spec, "--limit", limit)


@pytest.mark.parametrize(("width", "tables"), [(200, 1), (80, 2)])
def test_plans_stand_beside_each_other_as_far_as_there_is_room(spec: Family, width: int, tables: int) -> None:
    many = {f"professional-{number}": Plan(tiers=("mini",), tokens_per_minute=10**9) for number in range(5)}
    said = io.StringIO()
    spec = spec.model_copy(update={"plans": many})
    assert plans(spec, argparse.Namespace(json=False), Console(file=said, width=width)) == 0
    told = said.getvalue().splitlines()
    assert sum("tokens_per_minute" in line for line in told) == tables
    assert all(len(line) <= width for line in told)
    assert said.getvalue().count("1000000000") == len(many)
