"""The command as an operator types it, on traces of a few requests."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from rich.console import Console
from shell import TIER, VIDEO

from autoscaling.report import Figures
from deployments import simulate
from deployments.cli import main
from deployments.simulate_options import Trace

KEYS = {
    *("requests", "completed", "rejected", "failed", "attainment", "ttft_p50_s", "ttft_p99_s", "tpot_p50_ms"),
    *("tpot_p99_ms", "bad_minutes", "gpu_hours", "gpu_hours_floor", "spilled", "jobs", "jobs_in_time", "cost_usd"),
    *("value_usd", "wall_s", "requests_per_s", "conditions"),
}
ROWS = 200


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A family, an Azure trace of ten minutes and a Mooncake trace lie where the command is run."""
    monkeypatch.chdir(tmp_path)
    slow = {"cold_start": {"p50_s": 20, "p99_s": 40}, "max_running": 2}  # 200 tokens/s, ten requests/s
    family = {
        "name": "tested",
        "accelerator": "cpu",
        "gpu_budget_gpus": 8,
        "gpu_usd_per_hour": 2.0,
        "cells": [{"name": "here", "gpus": 8}],
        "tiers": {
            "mini": TIER | slow | {"names": ["small"], "quality": 1},
            "pro": TIER | slow | {"names": ["large"], "quality": 2, "ranks": 2},
        },
        "auto": {"names": ["any-of-them"], "default": "mini", "long": "pro", "long_prompt_tokens": 1000},
        "video": VIDEO | {"cold_start": {"p50_s": 5, "p99_s": 10}},
    }
    Path("family.yaml").write_text(yaml.safe_dump(family), encoding="utf-8")
    rows = [f"{3 * row},{100 + row % 7},{20 + row % 5}" for row in range(ROWS)]
    Path("azure.csv").write_text("\n".join(("t_s,input_tokens,output_tokens", *rows)), encoding="utf-8")
    asked = [
        {"timestamp": 500 * row, "input_length": 600, "output_length": 9, "hash_ids": [1, row]} for row in range(50)
    ]
    Path("mooncake.jsonl").write_text("\n".join(map(json.dumps, asked)), encoding="utf-8")


def fitted(prefix: str, rate_rps: float = 0.5) -> None:
    windows = [f"0,{600 * window},{rate_rps},Gamma,0.5" for window in range(7)]
    Path(f"{prefix}_clients.csv").write_text(
        "\n".join(("client,ts,rate_rps,pattern,shape", *windows)), encoding="utf-8"
    )
    lengths = {"0": {"w": 1.0, "pdf": {"input_tokens": {"80": 1.0}, "output_tokens": {"12": 1.0}}}}
    Path(f"{prefix}_lengths.json").write_text(json.dumps(lengths), encoding="utf-8")


def run(*words: str) -> int:
    return main(["simulate", "--family", "family.yaml", *words])


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """What `--json` says."""

    def of(*words: str) -> dict[str, Any]:
        assert run(*words, "--json") == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return of


Told = Callable[..., dict[str, Any]]


def test_json_is_one_object_with_these_keys(told: Told) -> None:
    found = told("--trace", "azure:azure.csv")
    assert set(found) == KEYS
    assert found["requests"] == ROWS == found["completed"] + sum(found["rejected"].values())
    assert found["conditions"]["traces"] == ["pro=azure:azure.csv"]
    assert found["conditions"]["simulated"] == "simulated: no GPU was used"
    assert found["cost_usd"] == pytest.approx(2.0 * found["gpu_hours"])
    assert found["requests_per_s"] == pytest.approx(ROWS / found["wall_s"])


def test_the_same_seed_gives_the_same_report_and_another_one_another(told: Told) -> None:
    fitted("fit")

    def figures(seed: int) -> dict[str, Any]:
        found = told("--trace", "servegen:fit", "--duration-s", "600", "--seed", str(seed))
        return {key: found[key] for key in KEYS - {"wall_s", "requests_per_s", "conditions"}}

    assert figures(3) == figures(3)
    assert figures(3) != figures(4)


@pytest.mark.parametrize("policy", ["moray", "ray", "kpa", "dynamo", "static", "clairvoyant"])
def test_every_policy_runs_with_its_own_router(told: Told, policy: str) -> None:
    own = {
        "moray": "moray",
        "ray": "p2c",
        "kpa": "predicted",
        "dynamo": "kv",
        "static": "moray",
        "clairvoyant": "moray",
    }
    found = told("--trace", "azure:azure.csv", "--policy", policy)
    assert found["requests"] == ROWS
    assert (found["conditions"]["policy"], found["conditions"]["router"]) == (policy, own[policy])


@pytest.mark.parametrize("router", ["moray", "p2c", "predicted", "kv", "prefix"])
def test_every_router_runs_beside_moray(told: Told, router: str) -> None:
    found = told("--trace", "mooncake:mooncake.jsonl", "--router", router)
    assert found["requests"] == 50
    assert found["conditions"]["router"] == router
    assert found["conditions"]["prefill_chunks"].startswith("fixed") == (router != "moray")


def test_what_arrives_is_the_same_for_all_that_are_compared(told: Told) -> None:
    runs = told("--trace", "azure:azure.csv", "--compare", "moray,moray/z=1,kpa/p2c,static/k=2")["policies"]
    assert [each["requests"] for each in runs] == [ROWS] * 4
    assert runs[0]["gpu_hours_floor"] == runs[2]["gpu_hours_floor"]
    assert runs[0]["conditions"]["initial"] == runs[3]["conditions"]["initial"]
    assert runs[1]["conditions"]["settings"] == {"z": "1"}
    assert runs[2]["conditions"]["router"] == "p2c"


def test_a_setting_reaches_the_policy(told: Told) -> None:
    few = told("--trace", "azure:azure.csv", "--policy", "static", "--set", "k=1")
    many = told("--trace", "azure:azure.csv", "--policy", "static", "--set", "k=100")
    assert many["gpu_hours"] > 2 * few["gpu_hours"]


def test_hindsight_finds_the_fewest_replicas_that_keep_the_promises(told: Told) -> None:
    found = told("--trace", "azure:azure.csv", "--policy", "static", "--scale", "30")
    k = found["conditions"]["hindsight"]["k"]
    assert found["attainment"] >= found["conditions"]["hindsight"]["attainment_sought"] == 0.99
    worse = told("--trace", "azure:azure.csv", "--policy", "static", "--scale", "30", "--set", f"k={k / 2}")
    assert worse["attainment"] < 0.99


def test_scale_and_window_choose_how_much_is_replayed(told: Told) -> None:
    assert told("--trace", "azure:azure.csv", "--scale", "3")["requests"] == 3 * ROWS
    assert told("--trace", "azure:azure.csv", "--start-s", "30", "--duration-s", "30")["requests"] == 10


def test_of_a_fitted_trace_one_hour_is_taken_unless_told(told: Told) -> None:
    fitted("fit", rate_rps=0.1)
    assert told("--trace", "servegen:fit")["requests"] == 360
    assert told("--trace", "servegen:fit", "--start-s", "3600")["requests"] == 60


def test_traces_may_ask_for_different_tiers(told: Told, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--trace", "small=azure:azure.csv", "--trace", "mooncake:mooncake.jsonl", "--tier", "auto")
    found = told(*words)
    assert found["requests"] == ROWS + 50
    assert found["conditions"]["traces"] == ["small=azure:azure.csv", "any-of-them=mooncake:mooncake.jsonl"]
    assert found["conditions"]["initial"]["pro"] == 0  # nothing is longer than 1,000 tokens


def test_the_same_file_twice_is_not_the_same_arrivals_twice(told: Told) -> None:
    fitted("fit", rate_rps=0.2)
    alone = told("--trace", "servegen:fit", "--duration-s", "600")
    both = told("--trace", "servegen:fit", "--trace", "mini=servegen:fit", "--duration-s", "600")
    assert both["requests"] == 2 * alone["requests"]
    assert both["gpu_hours_floor"] != 2 * alone["gpu_hours_floor"]


def test_videos_are_rehearsed_beside_requests(told: Told) -> None:
    found = told("--trace", "azure:azure.csv", "--video", "60")
    assert found["jobs"] > 0
    assert found["jobs_in_time"] == found["jobs"]


def test_videos_may_be_rehearsed_alone(told: Told) -> None:
    found = told("--video", "60", "--duration-s", "900", "--plot", "videos.png")
    assert (found["requests"], found["attainment"]) == (0, None)
    assert found["jobs_in_time"] > 0


def test_the_gpu_budget_is_the_family_files_a_number_or_none(told: Told) -> None:
    def conditions(*words: str) -> dict[str, Any]:
        found: dict[str, Any] = told("--trace", "azure:azure.csv", "--scale", "100", *words)["conditions"]
        return found

    free, four, own = conditions(), conditions("--gpus", "4"), conditions("--gpus", "family")
    assert (free["gpus"], four["gpus"], own["gpus"]) == ("as many as are asked for", 4, 8)
    assert free["initial"]["pro"] > four["initial"]["pro"] == 2  # two GPUs each
    assert own["initial"]["pro"] == 2
    assert own["replica_maxima"] == "of the family file" != free["replica_maxima"]


def test_initial_replicas_may_be_given(told: Told) -> None:
    assert told("--trace", "azure:azure.csv", "--initial", "3")["conditions"]["initial"] == {"pro": 3, "video": 0}


def test_tiers_that_nobody_asks_for_are_left_out_unless_the_name_leaves_the_tier_open(told: Told) -> None:
    assert set(told("--trace", "azure:azure.csv", "--tier", "mini")["conditions"]["initial"]) == {"mini", "video"}
    assert set(told("--trace", "azure:azure.csv", "--tier", "auto")["conditions"]["initial"]) > {"mini", "pro"}
    assert set(told("--trace", "azure:azure.csv", "--gpus", "family")["conditions"]["initial"]) > {"mini", "pro"}


def test_a_longer_cold_start_is_felt(told: Told) -> None:
    words = ("--trace", "azure:azure.csv", "--scale", "50", "--initial", "0")
    slow, fast = (told(*words, "--cold-start-s", cold) for cold in ("200", "2"))
    assert slow["conditions"]["cold_start_p50_s"] == {"pro": 200.0}
    assert slow["attainment"] < fast["attainment"]


def test_a_figure_of_nothing_is_null(told: Told) -> None:
    with patch.object(simulate, "rehearse") as rehearse:
        nothing = dict.fromkeys(Figures.__slots__, float("nan")) | {"requests": 0, "rejected": {}, "failed": {}}
        rehearse.return_value.figures = Figures(**nothing)  # type: ignore[arg-type]
        rehearse.return_value.tiers = {}
        found = told("--trace", "azure:azure.csv")
    assert found["attainment"] is None
    assert found["rejected"] == {}


def test_the_report_says_its_conditions_figures_and_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--trace", "azure:azure.csv", "--trace", "mini=mooncake:mooncake.jsonl", "--seed", "7") == 0
    shown = capsys.readouterr().out
    for words in ("simulated: no GPU was used", "pro=azure:azure.csv", "TTFT p99, s", "GPU-hours", "fluid floor"):
        assert words in shown
    (seed,) = [line.split() for line in shown.splitlines() if line.startswith("seed")]
    assert seed == ["seed", "7"]
    (header,) = [line.split() for line in shown.splitlines() if line.split()[:1] == ["all"]]
    assert header == ["all", "mini", "pro"]


def test_policies_stand_beside_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--trace", "azure:azure.csv", "--compare", "moray,ray", "--plot", "both.png") == 0
    shown = capsys.readouterr().out
    (header,) = [line.split() for line in shown.splitlines() if line.split()[:1] == ["moray"]]
    assert header == ["moray", "ray"]
    assert Path("both.png").read_bytes().startswith(b"\x89PNG")


def test_a_log_replays_to_the_same_decisions(told: Told) -> None:
    told("--trace", "azure:azure.csv", "--log", "log.jsonl")
    assert sorted(json.loads(Path("log.jsonl").read_text("utf-8").splitlines()[0]))[:2] == ["after", "decision"]
    found = told("--replay", "log.jsonl")
    assert found["decisions"] > 100
    assert found["differ_in_lines"] == []


def test_a_log_that_was_tampered_with_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--trace", "azure:azure.csv", "--log", "log.jsonl") == 0
    first, second, *rest = Path("log.jsonl").read_text("utf-8").splitlines()
    changed = json.loads(second)
    changed["decision"]["tiers"]["pro"]["replicas"] += 1
    Path("log.jsonl").write_text("\n".join((first, json.dumps(changed), *rest)), encoding="utf-8")
    capsys.readouterr()
    assert run("--replay", "log.jsonl") == 1
    assert "differ in lines 2" in capsys.readouterr().out
    assert run("--replay", "azure.csv") == 1
    assert "moray: azure.csv: line 1: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "moray: --trace: none given"),
        (("--trace", "azure:missing.csv"), "moray: missing.csv: No such file"),
        (("--trace", "csv:azure.csv"), "moray: --trace: 'csv:azure.csv'; [TIER=]FORMAT:PATH"),
        (("--trace", "=azure:azure.csv"), "moray: --trace: '=azure:azure.csv'; [TIER=]"),
        (("--trace", "azure:"), "moray: --trace: 'azure:'; [TIER=]"),
        (("--trace", "ultra=azure:azure.csv"), "moray: --trace: 'ultra'; mini, pro, auto are allowed"),
        (("--trace", "azure:azure.csv", "--tier", "ultra"), "moray: --tier: 'ultra'; mini, pro, auto"),
        (("--trace", "servegen:fit"), "moray: fit_clients.csv: missing"),
        (("--trace", "azure:azure.csv", "--start-s", "9999"), "moray: --start-s: 9999; azure.csv ends at 597 s"),
        (("--trace", "azure:azure.csv", "--start-s", "1", "--duration-s", "1"), "moray: azure.csv: no request in the"),
        (
            ("--trace", "azure:azure.csv", "--set", "zz=1"),
            "moray: moray: there is no parameter 'zz'; its parameters: tick",
        ),
        (("--trace", "azure:azure.csv", "--set", "rho=high"), "moray: moray: rho=high; a number is allowed"),
        (("--trace", "azure:azure.csv", "--set", "rho=2"), "moray: moray: rho is 2; 0 < rho <= 1"),
        (("--trace", "azure:azure.csv", "--set", "rho"), "moray: --set: 'rho'; name=value is allowed"),
        (
            ("--trace", "azure:azure.csv", "--policy", "static", "--set", "k=0"),
            "moray: static: k is 0; numbers above 0",
        ),
        (("--trace", "azure:azure.csv", "--compare", "moray,best"), "moray: --compare: policy 'best'; moray, ray, kpa"),
        (("--trace", "azure:azure.csv", "--compare", "kpa", "--set", "z=1"), "moray: --set: given with --compare"),
        (
            ("--trace", "azure:azure.csv", "--compare", "kpa,ray", "--log", "l.jsonl"),
            "moray: --log: given with --compare",
        ),
        (("--trace", "azure:azure.csv", "--policy", "ray", "--log", "l.jsonl"), "moray: --log: decisions of other"),
        (("--trace", "azure:azure.csv", "--plot", "no/where.png"), "moray: --plot: no/where.png; a file in a folder"),
        (
            ("--trace", "azure:azure.csv", "--plot", "picture.svg"),
            "moray: --plot: picture.svg; a file name that ends in",
        ),
        (("--trace", "azure:azure.csv", "--plot", "folder.png"), "moray: --plot: folder.png is a folder"),
        (
            ("--trace", "azure:azure.csv", "--trace", "mini=azure:azure.csv", "--gpus", "2", "--initial", "1"),
            "moray: --initial: 1; ",
        ),
        (("--replay", "missing.jsonl"), "moray: missing.jsonl: No such file"),
        (("--replay", "azure.csv", "--trace", "azure:azure.csv"), "moray: --replay: given with --trace"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line_and_leaves_no_file(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("folder.png").mkdir()
    before = sorted(Path().iterdir())
    assert run(*words) == 1
    told = capsys.readouterr()
    assert told.err.startswith(message), told.err
    assert len(told.err.splitlines()) == 1
    assert told.out == ""
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize("gpus", ["3", "family"])
def test_minima_beyond_the_budget_are_refused(gpus: str, capsys: pytest.CaptureFixture[str]) -> None:
    raw = yaml.safe_load(Path("family.yaml").read_text("utf-8"))
    raw["tiers"]["pro"]["replicas"] = {"min": 2, "max": 2, "initial": 2}
    Path("family.yaml").write_text(yaml.safe_dump(raw | {"gpu_budget_gpus": 3}), encoding="utf-8")
    assert run("--trace", "azure:azure.csv", "--gpus", gpus) == 1
    assert "--gpus: 3; the replica minima of family tested hold 4" in capsys.readouterr().err


def test_first_replicas_share_a_budget_too_small_for_all(told: Told) -> None:
    words = ("--trace", "azure:azure.csv", "--trace", "mini=azure:azure.csv", "--scale", "100")
    first = told(*words, "--gpus", "7")["conditions"]["initial"]
    free = told(*words)["conditions"]["initial"]
    assert 2 * first["pro"] + first["mini"] in (6, 7)
    assert 0 < first["pro"] < free["pro"]
    assert 0 < first["mini"] < free["mini"]


def test_a_family_without_videos_or_automatic_names_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    raw = yaml.safe_load(Path("family.yaml").read_text("utf-8"))
    raw["video"] = raw["auto"] = None
    Path("family.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    assert run("--trace", "azure:azure.csv", "--video", "5") == 1
    assert "--video: tested has no video model" in capsys.readouterr().err
    assert run("--trace", "azure:azure.csv", "--tier", "auto") == 1
    assert "'auto'; mini, pro are allowed" in capsys.readouterr().err
    assert run("--trace", "azure:azure.csv", "--cold-start-s", "5") == 0


@pytest.mark.parametrize(
    "words",
    [
        ("--scale", "0"),
        ("--scale", "nan"),
        ("--scale", "much"),
        ("--video", "-1"),
        ("--seed", "1.5"),
        ("--initial", "-1"),
        ("--gpus", "0"),
        ("--cold-start-s", "0"),
        ("--policy", "best"),
        ("--policy", "ray", "--compare", "kpa"),
    ],
)
def test_a_word_that_is_no_value_is_refused_by_the_parser(words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("--trace", "azure:azure.csv", *words)


def test_a_file_that_cannot_be_written_leaves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with patch.object(simulate, "rehearse", side_effect=OSError(28, "No space left on device")):
        assert run("--trace", "azure:azure.csv", "--log", "log.jsonl") == 1
    assert "log.jsonl: No space left on device" in capsys.readouterr().err
    assert list(Path().glob("log*")) == []


def test_a_long_run_shows_its_progress_on_a_terminal_alone() -> None:
    def shown(*, terminal: bool) -> str:
        screen = io.StringIO()
        made = Console(file=screen, force_terminal=terminal, width=100)
        with patch.object(simulate, "QUIET_S", -1.0), patch.object(simulate, "Console", return_value=made):
            assert run("--trace", "azure:azure.csv", "--json") == 0
        return screen.getvalue()

    assert "rehearsing moray" in shown(terminal=True)
    assert "rehearsing" not in shown(terminal=False)


def test_a_trace_is_named_with_what_it_asks() -> None:
    trace = Trace(format="azure", path="a/folder/file.csv")
    assert trace.name("pro") == "pro=azure:a/folder/file.csv"
    assert trace.name("pro", short=True) == "pro=azure:file.csv"


def test_other_commands_import_neither_numpy_nor_matplotlib_and_a_rehearsal_no_ray() -> None:
    program = (
        "import sys\nfrom deployments.cli import main\nprint('numpy' in sys.modules)\n"
        "main(['simulate', '--family', 'family.yaml', '--trace', 'azure:azure.csv', '--json'])\n"
        "print(sorted({'matplotlib', 'ray', 'torch', 'fastapi'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[0] == "False"
    assert ran.stdout.splitlines()[-1] == "[]"
