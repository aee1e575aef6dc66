import io
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from shell import family

from cluster.errors import ConfigurationError
from cluster.family import Family, load
from deployments.change import Change
from deployments.source import Source
from deployments.update import Update


class Edited:
    """A family file, what was put in place of it, and what was said."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.file = folder / "family.yaml"
        self.raw: dict[str, Any] = family(folder).model_dump(mode="json")
        self._said = io.StringIO()
        self.applied: list[tuple[str, ...]] = []
        self.fails_at: int | None = None
        self.mini_runs = 64
        self.write()
        source = Source(file=self.file, load=lambda: load(self.file))
        text = self.file.read_text(encoding="utf-8")
        self._update = Update(source, load(self.file), text, Console(file=self._said, width=400))

    @property
    def said(self) -> str:
        return self._said.getvalue()

    def write(self) -> None:
        self.file.write_text(yaml.safe_dump(self.raw), encoding="utf-8")

    def look(self) -> None:
        def apply(family: Family, changed: Change) -> None:
            self.applied.append(changed.words)
            self.mini_runs = family.tiers["mini"].max_running
            if self.mini_runs == self.fails_at:
                raise ConfigurationError("checkpoint: wrong")

        self._update.look(apply)


@pytest.fixture
def edited(tmp_path: Path) -> Edited:
    return Edited(tmp_path)


def test_a_file_that_stays_is_not_put_in_place_again(edited: Edited) -> None:
    edited.look()
    edited.file.write_text(edited.file.read_text(encoding="utf-8") + "# a comment\n", encoding="utf-8")
    edited.look()
    assert (edited.applied, edited.said) == ([], "")


def test_an_edit_is_told_and_put_in_place_once(edited: Edited) -> None:
    edited.raw["tiers"]["mini"]["max_running"] = 3
    edited.write()
    edited.look()
    edited.look()
    assert edited.applied == [("tiers.mini.max_running: 64 -> 3",)]
    assert "the replicas of mini are replaced" in edited.said
    assert edited.said.endswith("changed\n")


def test_edits_are_judged_against_what_is_served(edited: Edited) -> None:
    for value in (3, 64):
        edited.raw["tiers"]["mini"]["max_running"] = value
        edited.write()
        edited.look()
    assert edited.applied[1] == ("tiers.mini.max_running: 3 -> 64",)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gpu_budget_gpus": 0}, "gpu_budget_gpus: 0;"),
        ({"name": "other"}, "name: tested -> other;"),
        ({"tiers": {}}, "tiers:"),
    ],
)
def test_a_wrong_edit_is_told_once_and_mended_by_the_next(edited: Edited, change: dict[str, Any], words: str) -> None:
    right = edited.raw
    edited.raw = right | change
    edited.write()
    edited.look()
    edited.look()
    assert edited.said.count("not changed: ") == edited.said.count(words) == 1
    right["tiers"]["mini"]["max_running"] = 3
    edited.raw = right
    edited.write()
    edited.look()
    assert edited.applied == [("tiers.mini.max_running: 64 -> 3",)]


def test_what_no_longer_fits_is_not_put_in_place(edited: Edited) -> None:
    edited.raw["tiers"]["mini"] |= {"ranks": 9, "replicas": {"min": 1, "max": 1, "initial": 1}}
    edited.write()
    edited.look()
    assert edited.applied == []
    assert "not changed: tested: mini[0]: needs 9 GPUs" in edited.said


def test_an_engine_that_is_not_installed_is_not_put_in_place(edited: Edited, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    edited.raw["tiers"]["mini"] |= {"engine": "vllm"}
    edited.write()
    edited.look()
    assert edited.applied == []
    assert "not changed: tested: tiers.mini.engine: vllm; the package vllm is not installed here" in edited.said


def test_what_its_checkpoint_cannot_do_is_not_put_in_place(edited: Edited, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.json").write_text("{}", encoding="utf-8")
    edited.raw["tiers"]["mini"] |= {"engine": "torch"}
    edited.write()
    edited.look()
    assert edited.applied == []
    assert "tiers.mini.checkpoint: " in edited.said
    assert "the fields that transformers saves are needed" in edited.said


def test_what_fails_half_way_is_undone(edited: Edited) -> None:
    edited.fails_at = 3
    edited.raw["tiers"]["mini"]["max_running"] = 3
    edited.write()
    edited.look()
    assert "not changed: checkpoint: wrong" in edited.said
    assert edited.mini_runs == 64
    edited.raw["tiers"]["mini"]["max_running"] = 4
    edited.write()
    edited.look()
    assert edited.applied[-1] == ("tiers.mini.max_running: 64 -> 4",)
    assert edited.mini_runs == 4


def test_a_file_that_is_gone_for_a_moment_is_no_edit(edited: Edited) -> None:
    edited.file.unlink()
    edited.look()
    assert (edited.applied, edited.said) == ([], "")
