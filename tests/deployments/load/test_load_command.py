"""The command as an operator types it, against a server that breaks on purpose."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from integration.server import eventually

from deployments.cli import main

MADE = ("--synthetic", "40:20:6", "--duration-s", "10", "--speed", "40")


@pytest.fixture
def load(broken: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What --json says."""
    monkeypatch.chdir(tmp_path)

    def of(*words: str) -> Any:
        made = () if {"--trace", "--scenario"} & set(words) else MADE
        assert main(["load", "--url", broken.url, *made, *words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return of


def test_what_is_streamed_whole_is_counted_by_the_servers_own_figures(load: Any, broken: Any) -> None:
    Path("key.txt").write_text("sk-1\n", encoding="utf-8")
    found = load("--key", "key.txt")
    whole = found["all"]
    assert whole["requests"] == whole["completed"] == len(broken.asked) > 300
    assert whole["output_tokens"] == 6 * whole["requests"]
    assert whole["prompt_tokens"] == 5 * whole["requests"]
    assert whole["attainment"] == 1.0, "promises come from the list of models"
    assert whole["tiers"] == {"turbo": whole["requests"]}
    assert whole["replicas"] == {"r0": whole["requests"]}
    assert list(found["models"]) == ["good"], "the first language model of the list"
    assert set(broken.keys) == {"Bearer sk-1"}
    assert 0 < whole["ttft_from_send_s"]["p50"] <= whole["ttft_s"]["p50"]


def test_requests_ask_for_their_length_and_for_the_usage(load: Any, broken: Any) -> None:
    load()
    body = broken.asked[0]
    assert body["max_tokens"] == 6
    assert body["stream_options"] == {"include_usage": True}
    assert len(body["messages"][0]["content"]) == 20 * 4
    assert len({asked["messages"][0]["content"] for asked in broken.asked}) == len(broken.asked)


@pytest.mark.parametrize(
    ("model", "failure"), [("cut", "cut off"), ("torn", "cut off"), ("error", "error event"), ("silent", "silent")]
)
def test_a_stream_that_breaks_is_told_by_how_it_broke(load: Any, model: str, failure: str) -> None:
    whole = load("--models", model, "--silence-s", "0.2", "--scale", "0.1", "--slo", "60:10000")["all"]
    assert whole["failed"] == {failure: whole["requests"]}
    assert (whole["completed"], whole["refused"], whole["attainment"]) == (0, {}, 0.0)


def test_refusals_are_told_by_code_with_the_time_to_wait(load: Any, broken: Any) -> None:
    models = load("--models", "full=0.5,plain=0.5")["models"]
    assert models["full"]["refused"] == {"overloaded": models["full"]["requests"]}
    assert models["full"]["refused_with_retry_after"] == models["full"]["requests"]
    assert models["full"]["retry_after_s"]["p50"] == 7
    assert models["plain"]["refused"] == {"http_502": models["plain"]["requests"]}
    assert models["full"]["requests"] + models["plain"]["requests"] == len(broken.asked), "nothing is sent again"


def test_spilled_and_resumed_answers_are_counted(load: Any) -> None:
    whole = load("--models", "spilled")["all"]
    assert whole["spilled"] == {"saturated": whole["requests"]}
    assert whole["resumed"] == whole["requests"]
    assert whole["tiers"] == {"pro": whole["requests"]}
    assert whole["replicas"] == {"r1": whole["requests"]}


def test_a_trace_is_sent_to_the_models_of_its_tiers(load: Any, broken: Any) -> None:
    rows = [f"{row},{10 + row},3" for row in range(20)]
    Path("trace.csv").write_text("\n".join(("t_s,input_tokens,output_tokens", *rows)), encoding="utf-8")
    found = load("--trace", "turbo=azure:trace.csv", "--speed", "100", "--records", "all.jsonl")
    assert found["models"]["good"]["completed"] == 20
    assert sorted(len(body["messages"][0]["content"]) // 4 for body in broken.asked) == list(range(10, 30))
    records = [json.loads(line) for line in Path("all.jsonl").read_text("utf-8").splitlines()]
    assert [record["due_s"] for record in records] == pytest.approx([row / 100 for row in range(20)])
    assert all(record["sent_s"] <= record["first_s"] <= record["last_s"] <= record["ended_s"] for record in records)


def test_videos_are_ordered_beside_and_followed_to_their_end(load: Any, broken: Any) -> None:
    found = load("--video", "36000", "--scale", "0.1")
    videos = found["videos"]
    assert videos["ended"] == {"completed": videos["ordered"]}
    assert broken.polls >= videos["ordered"] > 0


def test_people_get_a_table(broken: Any, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--synthetic", "40:20:6", "--duration-s", "10", "--speed", "40", "--models", "good,full")
    assert main(["load", "--url", broken.url, *words]) == 0
    told = capsys.readouterr().out
    for word in ("promises kept", "overloaded", "TTFT", "sent late"):
        assert word in told


def test_tenants_ask_with_their_own_keys_by_their_shares(load: Any, broken: Any) -> None:
    for name in ("gold", "free"):
        Path(name).write_text(f"sk-{name}", encoding="utf-8")
    found = load("--key", "gold=gold", "--key", "free=free", "--tenants", "gold=1,free=3")
    asked = Counter(broken.keys)
    assert {f"Bearer sk-{name}": part["requests"] for name, part in found["tenants"].items()} == asked
    assert asked["Bearer sk-free"] > 2 * asked["Bearer sk-gold"] > 0
    assert "sk-" not in json.dumps(found)


def test_what_is_due_in_the_warm_up_is_sent_and_not_judged(load: Any, broken: Any) -> None:
    found = load("--warm-up-s", "0.1")
    assert found["warm_up"]["requests"] > 0
    assert found["warm_up"]["requests"] + found["all"]["requests"] == len(broken.asked) == found["planned"]


def test_names_of_the_work_are_mapped_and_fields_are_added(load: Any, broken: Any) -> None:
    load("--models", "mine", "--map", "mine=good", "--body", '{"ignore_eos": true}')
    assert {(body["model"], body["ignore_eos"]) for body in broken.asked} == {("good", True)}


def test_an_address_may_have_a_path(broken: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["load", "--url", f"{broken.url}/there/v1", *MADE]) == 1
    assert "/there/v1/models answered 404" in capsys.readouterr().err


SCENARIO = """
name: small
about: Two actions.
duration_s: 20
warm_up_s: 2
streams:
  - {model: turbo, rps: {0: 0, 20: 20}, prompt: {median: 9}, output: {median: 4}}
videos: {per_hour: {0: 1800}, model: clip, size: 64x64}
tenants: {gold: 1, free: 1}
actions:
  - {name: lose, at_s: 4, do: kill it}
  - {name: look, at_s: 8, do: look at it}
"""


def test_a_scenario_is_sent_as_its_file_says(load: Any, broken: Any) -> None:
    Path("s.yaml").write_text(SCENARIO, encoding="utf-8")
    found = load("--scenario", "s.yaml", "--speed", "20", "--on", "lose=echo told > done; echo aloud; exit 3")
    assert Path("done").read_text("utf-8") == "told\n", "the command ran"
    lose, look = found["actions"]
    assert (lose["ran"], lose["exit_code"], look["ran"], look["exit_code"]) == (True, 3, False, None)
    assert (lose["due_s"], look["due_s"]) == (0.2, 0.4), "at 20 times the speed"
    assert None not in (lose["began_s"], look["began_s"])
    assert set(found["tenants"]) == {"gold", "free"}
    assert {body["model"] for body in broken.asked} == {"good"}, "the tier's"
    assert broken.ordered[0] == {"prompt": "a red ball", "model": "clip", "size": "64x64"}
    due = found["over_time"]["groups"]["all"]["due_per_s"]
    assert sum(due) == found["planned"] == pytest.approx(200, rel=0.3)
    assert found["conditions"]["scenario"]["name"] == "small"


def test_the_bar_goes_to_the_terminal_and_the_json_elsewhere(broken: Any) -> None:
    ours, theirs = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "deployments.cli",
        "load",
        "--url",
        broken.url,
        *MADE[:4],
        "--speed",
        "10",
        "--json",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=os.environ | {"TERM": "xterm"}) as ran:
        os.close(theirs)
        told = b""
        with contextlib.suppress(OSError):  # a terminal without its other end
            while read := os.read(ours, 65536):
                told += read
        found = json.loads(ran.communicate(timeout=60)[0])
    os.close(ours)
    assert (ran.returncode, b" ended" in told) == (0, True)
    assert found["all"]["completed"] == found["planned"]


def test_ctrl_c_reports_what_came_until_then(broken: Any) -> None:
    words = ["--synthetic", "20:20:6", "--minutes", "5", "--models", "good=0.5,silent=0.5", "--json"]
    with subprocess.Popen(
        [sys.executable, "-m", "deployments.cli", "load", "--url", broken.url, *words], stdout=subprocess.PIPE
    ) as ran:
        eventually(lambda: len(broken.asked) > 10, 60)
        ran.send_signal(signal.SIGINT)
        found = json.loads(ran.communicate(timeout=60)[0])
    assert (ran.returncode, found["interrupted"]) == (130, True)
    assert found["planned"] > found["sent"] > 10
    models = found["models"]
    assert models["silent"]["failed"] == {"stopped": models["silent"]["requests"]}
    assert models["good"]["completed"] > 0
    assert found["all"]["under_way"] == 0


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("--url", "http://127.0.0.1:1", "--synthetic", "5"), "--url: http://127.0.0.1:1:"),
        (("--url", "127.0.0.1:8000", "--synthetic", "5"), "--url: '127.0.0.1:8000'"),
        ((), "--trace: nothing given"),
        (("--synthetic", "fast"), "--synthetic: 'fast'"),
        (("--synthetic", "5", "--models", "a=0"), "--models: 'a=0'"),
        (("--synthetic", "5", "--models", "a,a"), "--models: 'a'"),
        (("--synthetic", "5", "--slo", "2"), "--slo: '2'"),
        (("--synthetic", "5", "--minutes", "1", "--duration-s", "60"), "--minutes: 1"),
        (("--trace", "azure:none.csv"), "none.csv: No such file"),
        (("--trace", "azure:none.csv", "--synthetic", "5"), "--trace: --trace and --synthetic given"),
        (("--scenario", "none.yaml"), "--scenario: none.yaml"),
        (("--synthetic", "5", "--on", "a=true"), "--on: 'a'"),
        (("--synthetic", "5", "--map", "a"), "--map: 'a'"),
        (("--synthetic", "5", "--body", '{"model": "x"}'), "--body: "),
        (("--synthetic", "5", "--tenants", "a,a"), "--tenants: 'a'"),
        (("--synthetic", "5", "--html", "a.txt"), "--html: a.txt"),
        (("compare", "none.json", "none.json"), "none.json: "),
    ],
)
def test_what_cannot_be_is_one_line(
    words: tuple[str, ...], fault: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["load", *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"moray: {fault}")


def test_a_secret_in_place_of_a_file_is_refused_and_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["load", "--synthetic", "5", "--key", "sk-secret"]) == 1
    told = capsys.readouterr().err
    assert "--key: number 1 names no file" in told
    assert "sk-secret" not in told


def test_a_wrong_key_is_one_line(broken: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "key").write_text("wrong", encoding="utf-8")
    assert main(["load", "--url", broken.url, "--key", str(tmp_path / "key"), "--synthetic", "5"]) == 1
    assert "answered 401" in capsys.readouterr().err
