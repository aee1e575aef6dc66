import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from shell import TIER, VIDEO

from cluster.family import load
from cluster.placement import declared_cells
from deployments.cli import main
from deployments.source import Source
from deployments.stores.keys import KEYS_FILE, KeyStore


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """State goes where the command is run."""
    monkeypatch.chdir(tmp_path)


def written(**changes: Any) -> str:
    raw: dict[str, Any] = {
        "name": "tested",
        "accelerator": "cpu",
        "gpu_budget_gpus": 4,
        "cells": [{"name": "here", "gpus": 4}],
        "tiers": {"mini": TIER | {"names": ["mini"], "replicas": {"min": 1, "max": 2, "initial": 1}}},
        "video": VIDEO,
    }
    Path("family.yaml").write_text(yaml.safe_dump(raw | changes), encoding="utf-8")
    return "family.yaml"


def keys(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    assert main(["keys", *words, "--json"]) == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return rows


def test_keys_go_round_trip(capsys: pytest.CaptureFixture[str]) -> None:
    (created,) = keys(capsys, "create", "alice")
    (listed,) = keys(capsys, "list")
    assert created["name"] == listed["name"] == "alice"
    assert created["key"].startswith("sk-moray-")
    assert "key" not in listed
    store = KeyStore(Path(".moray") / KEYS_FILE)
    assert store.find(created["key"]) is not None
    (revoked,) = keys(capsys, "revoke", created["id"])
    assert revoked["revoked_s"] is not None
    assert store.find(created["key"]) is None
    store.close()


def test_a_new_key_is_shown_whole_and_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "create", "alice"]) == 0
    shown = capsys.readouterr().out
    (secret,) = [word for word in shown.split() if word.startswith("sk-moray-")]
    store = KeyStore(Path(".moray") / KEYS_FILE)
    assert store.find(secret) is not None
    store.close()
    assert main(["keys", "list"]) == 0
    assert secret not in capsys.readouterr().out


def test_a_key_is_made_for_a_plan_of_the_family_or_none(capsys: pytest.CaptureFixture[str]) -> None:
    (created,) = keys(capsys, "create", "alice", "--plan", "professional")
    assert created["plan"] == "professional"
    assert keys(capsys, "create", "bob")[0]["plan"] is None
    assert main(["keys", "create", "carol", "--plan", "gold"]) == 1
    assert "'gold'; plans of the family are developer, professional" in capsys.readouterr().err
    assert len(keys(capsys, "list")) == 2


def test_a_damaged_checkpoint_concerns_who_serves_it_and_nobody_else(capsys: pytest.CaptureFixture[str]) -> None:
    Path("damaged").mkdir()
    mini = TIER | {"names": ["mini"], "replicas": {"min": 1, "max": 2, "initial": 1}}
    file = written(tiers={"mini": mini | {"engine": "torch", "checkpoint": "damaged"}})
    assert main(["keys", "create", "alice", "--family", file]) == 0
    capsys.readouterr()
    for command in ("plan", "up"):
        assert main([command, "--family", file]) == 1
        assert "config.json: " in capsys.readouterr().err


def test_a_key_is_of_a_project_has_scopes_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--org", "acme", "--project", "films", "--scope", "videos,files", "--expires", "2d")
    (created,) = keys(capsys, "create", "studio", *words)
    assert (created["org"], created["project"], created["scopes"]) == ("acme", "films", ["videos", "files"])
    assert created["expires_s"] == created["created_s"] + 2 * 86_400
    keys(capsys, "create", "other")
    assert [row["name"] for row in keys(capsys, "list", "--org", "acme")] == ["studio"]
    for wrong in (("--scope", "root"), ("--expires", "soon"), ("--expires", "0s")):
        assert main(["keys", "create", "x", *wrong]) == 1
        assert capsys.readouterr().err.count(";") >= 1


def test_a_rotated_key_is_shown_once_and_every_act_is_logged_without_secrets(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (created,) = keys(capsys, "create", "alice")
    (rotated,) = keys(capsys, "rotate", created["id"], "--grace", "1h")
    keys(capsys, "revoke", created["id"])
    assert main(["keys", "rotate", created["id"]]) == 1
    capsys.readouterr()
    acts = keys(capsys, "log")
    assert [(act["act"], act["outcome"]) for act in acts] == [
        *(("keys.create", "ok"), ("keys.rotate", "ok"), ("keys.revoke", "ok")),
        ("keys.rotate", "conflict"),
    ]
    assert not any(secret["key"] in str(acts) for secret in (created, rotated))


def test_the_plans_are_told_with_the_fields_that_they_have(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plans", "--json"]) == 0
    plans = {row.pop("plan"): row for row in json.loads(capsys.readouterr().out)}
    family = load("laptop")
    assert plans == {name: plan.model_dump(mode="json") for name, plan in family.plans.items()}
    assert main(["plans"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in (*plans, "tokens_per_minute", "8000000"))


@pytest.mark.parametrize("name", ["[/]", "[red]alice[/red]", ":smile:"])
def test_names_of_keys_are_shown_as_they_are(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert main(["keys", "create", name]) == 0
    assert name in capsys.readouterr().out


def test_an_unknown_key_cannot_be_revoked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "revoke", "key_nobody"]) == 1
    shown = capsys.readouterr()
    assert (shown.out, len(shown.err.splitlines())) == ("", 1)
    assert "'key_nobody' is unknown" in shown.err


def test_the_plan_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--family", written(), "plan", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["family"], made["used_gpus"], made["unplaced"]) == ("tested", 3, [])


def test_the_plan_is_a_table_of_cells_groups_and_video(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--family", written(), "plan"]) == 0
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert ["here", "4", "1", "mini", "1", "1", "1"] in rows
    assert ["", "", "", "video", "1", "", "1"] in rows


def test_the_plan_shows_how_vllm_is_told_to_serve_a_tier(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--family", "h200", "plan"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("turbo is served by: ")]
    turbo = load("h200").tiers["turbo"]
    assert line.removeprefix("turbo is served by: ").startswith(f"vllm serve {turbo.checkpoint} --served-model-name")
    assert f"--max-model-len {turbo.context_tokens}" in line


def test_the_table_says_who_takes_turns_and_what_has_no_place_and_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    tiers = {
        "mini": TIER | {"names": ["mini"], "ranks": 2, "replicas": {"min": 0, "max": 2, "initial": 1}},
        "ultra": TIER | {"names": ["ultra"], "ranks": 3, "replicas": {"min": 0, "max": 1, "initial": 0}},
        "pro": TIER | {"names": ["pro"], "ranks": 6, "replicas": {"min": 0, "max": 1, "initial": 0}},
    }
    assert main(["--family", written(tiers=tiers), "plan"]) == 1
    shown = capsys.readouterr().out
    for words in ("taking turns", "ultra 0", "without a place", "pro", "to start", "raise gpu_budget_gpus to"):
        assert words in shown


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_family_that_cannot_start_ends_with_exit_code_1(as_json: list[str]) -> None:
    tiers = {"mini": TIER | {"names": ["mini"], "ranks": 5, "replicas": {"min": 1, "max": 1, "initial": 1}}}
    assert main(["--family", written(tiers=tiers, video=None), "plan", *as_json]) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gpu_budget_gpus": 0}, "family.yaml: gpu_budget_gpus: 0;"),
        ({"gpus": 4}, "family.yaml: gpus: 4;"),
        ({"tiers": {}}, "family.yaml: tiers:"),
    ],
)
def test_a_wrong_family_file_is_one_clear_line(
    capsys: pytest.CaptureFixture[str], changes: dict[str, Any], words: str
) -> None:
    assert main(["--family", written(**changes), "plan"]) == 1
    shown = capsys.readouterr()
    assert (shown.out, len(shown.err.splitlines())) == ("", 1)
    assert shown.err.startswith(f"moray: {words}")


def test_a_missing_family_file_names_those_that_ship(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--family", "elsewhere.yaml", "plan"]) == 1
    assert "h200, laptop" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["fly"], ["keys"], ["keys", "create"], ["up", "--port", "x"]])
def test_a_wrong_command_is_told_how(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert exit_.value.code == 2
    assert "usage: moray" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["laptop", "h200"])
def test_the_families_that_ship_can_be_planned(family: str) -> None:
    assert main(["--family", family, "plan"]) == 0


def test_a_rehearsal_is_of_h200_unless_another_family_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int, int | None]] = []

    def up(source: Source, console: Console, nodes: int | None) -> None:
        family = source.load()
        told.append((family.name, len(declared_cells(family)), nodes))
        assert source.file.is_file()

    monkeypatch.setattr("deployments.up.up", up)
    assert main(["up", "--nodes", "3"]) == 0
    assert main(["--family", written(), "up", "--nodes", "2"]) == 0
    assert main(["up"]) == 0
    assert told == [("h200", 3, 3), ("tested", 2, 2), ("laptop", 1, None)]


def test_a_rehearsal_without_nodes_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up", "--nodes", "0"]) == 1
    assert capsys.readouterr().err.startswith("moray: --nodes: 0;")
