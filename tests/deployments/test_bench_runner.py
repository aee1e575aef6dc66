import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

RUNNER = Path(__file__).parents[1] / "bench" / "run.py"
FAKE = 'def run():\n    return {"figures": {"speed": 3}, "aim": {"speed": 2}, "met": True}\n'


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The runner beside one benchmark, `fake`."""
    spec = importlib.util.spec_from_file_location("bench_runner", RUNNER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "fake_bench.py").write_text(FAKE, encoding="utf-8")
    monkeypatch.setattr(module, "HERE", tmp_path / "bench")
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.delitem(sys.modules, "bench.fake_bench", raising=False)
    return module


def ran(runner: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["run.py", *words])
    code: int = runner.main()
    return code


def test_a_benchmark_prints_one_json_object_with_its_conditions(
    runner: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran(runner, monkeypatch, "fake", "--json") == 0
    (line,) = capsys.readouterr().out.splitlines()
    result: dict[str, Any] = json.loads(line)
    assert result["name"] == "fake"
    assert (result["figures"], result["aim"], result["met"]) == ({"speed": 3}, {"speed": 2}, True)
    assert {"cores", "load_average_1m", "cpu", "python", "versions", "gpu", "date"} <= result["conditions"].keys()


def test_for_people_the_object_is_indented(
    runner: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran(runner, monkeypatch, "fake") == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) > 5
    assert json.loads(shown)["met"] is True


def test_an_unknown_benchmark_is_answered_with_those_there_are(
    runner: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        ran(runner, monkeypatch, "none")
    assert "fake" in capsys.readouterr().err


def test_an_option_that_a_benchmark_does_not_have_is_refused(
    runner: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        ran(runner, monkeypatch, "fake", "--seeds", "3")
    assert "fake has no option seeds" in capsys.readouterr().err


def test_every_benchmark_that_ships_says_what_it_aims_at() -> None:
    shipped = list(RUNNER.parent.glob("*_bench.py"))
    assert shipped
    for file in shipped:
        text = file.read_text(encoding="utf-8")
        assert re.search(r"^def run\(", text, re.MULTILINE), file.name
        parts = [text, *(_text(name) for name in re.findall(r"^from bench\.(\w+) import", text, re.MULTILINE))]
        assert any('"aim"' in part and '"met"' in part for part in parts), file.name


def _text(module: str) -> str:
    return (RUNNER.parent / f"{module}.py").read_text(encoding="utf-8")
