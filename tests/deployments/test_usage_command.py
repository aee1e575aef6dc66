"""What `moray usage` and `moray keys log` refuse before they ask any store, and what they tell."""

import argparse
import csv
import io
import json
import time
from pathlib import Path

import pytest
from rich.console import Console
from shell import family
from usage_events import event

from cluster.errors import ConfigurationError, InvalidRequest
from cluster.family import Family
from cluster.usage import Held
from deployments import keys_options, usage_options
from deployments.keys_command import keys
from deployments.stores.usage import usage_of
from deployments.usage_command import usage


@pytest.fixture
def spec(tmp_path: Path) -> Family:
    return family(tmp_path)


def asked(spec: Family, *words: str, width: int = 120) -> str:
    said = io.StringIO()
    parser = argparse.ArgumentParser()
    usage_options.add_arguments(parser)
    assert usage(spec, parser.parse_args(words), Console(file=said, width=width)) == 0
    return said.getvalue()


@pytest.mark.parametrize("days", ["0", "-1", "3661", "99999999999999999999"])
def test_days_that_no_ledger_can_hold_are_refused(spec: Family, days: str) -> None:
    with pytest.raises(ConfigurationError, match="1 to 3660 is allowed"):
        asked(spec, "--days", days)


@pytest.mark.parametrize("last", ["0", "-5", "99999999999999999999"])
def test_so_many_acts_as_there_can_be_are_told(spec: Family, last: str) -> None:
    parser = argparse.ArgumentParser()
    keys_options.add_arguments(parser)
    with pytest.raises(InvalidRequest, match="1 to 100000 are allowed"):
        keys(spec, parser.parse_args(["log", "--last", last]), Console(file=io.StringIO()))


def test_what_is_told_is_what_the_ledger_has_in_every_shape(spec: Family, capsys: pytest.CaptureFixture[str]) -> None:
    store = usage_of(spec)
    store.add([event(number, at_s=int(time.time()), org=org) for number, org in enumerate(["[red]", "[red]", "b"])])
    store.close()
    asked(spec, "--json")
    told = {row["org"]: (row["events"], row["output_tokens"]) for row in json.loads(capsys.readouterr().out)}
    assert told == {"[red]": (2, 10), "b": (1, 5)}
    asked(spec, "--csv", "--org", "b")
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["org"], row["price_usd"]) == ("b", "0.00125")
    assert "[red]" in asked(spec), "names are no markup"


def test_what_was_held_while_nobody_used_a_tier_is_told_apart(spec: Family, capsys: pytest.CaptureFixture[str]) -> None:
    now_s = int(time.time())
    store = usage_of(spec)
    store.add([event(1, at_s=now_s, tier_served="pro")])
    store.hold(
        [Held(id=tier, at_s=now_s, tier=tier, gpu_s=7200, usd_per_gpu_hour=2.0) for tier in ("pro", "mini", "b")]
    )
    store.close()
    assert "no row: b 2.00 GPU-hours, 4.00 USD; mini 2.00 GPU-hours, 4.00 USD" in asked(spec)
    asked(spec, "--json")
    told = [(row["org"], row["cost_usd"], row["unallocated"]) for row in json.loads(capsys.readouterr().out)]
    assert told == [("acme", 4.0, False), (None, 8.0, True)]
    asked(spec, "--csv", "--by", "tier,org")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["tier"], row["org"], row["unallocated"]) for row in rows] == [
        ("pro", "acme", ""),
        ("b", "", "yes"),
        ("mini", "", "yes"),
    ]
    assert "no row" not in asked(spec, "--org", "acme"), "of one organisation alone it says nothing"


def test_a_narrow_table_folds_names_and_cuts_no_figure(spec: Family) -> None:
    store = usage_of(spec)
    store.add([event(1, at_s=int(time.time()), org="an-organisation-of-many-letters", project="films")])
    store.close()
    told = asked(spec, "--by", "org,project,key,model,tier", width=80)
    (row,) = [line for line in told.splitlines() if "0.001250" in line]
    assert row.split()[-3:] == ["10", "5", "0.001250"]
    assert "video_s" not in told
