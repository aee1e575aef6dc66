"""The command as an operator types it, against a server that breaks on purpose."""

import json
from pathlib import Path
from typing import Any

import pytest

from deployments.cli import main


@pytest.fixture
def load(broken: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What --json says."""
    monkeypatch.chdir(tmp_path)

    def of(*words: str) -> Any:
        made = ["--synthetic", "40:20:6", "--duration-s", "10", "--speed", "40"]
        assert main(["load", "--url", broken.url, *(made if "--trace" not in words else ()), *words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return of


def test_what_is_streamed_whole_is_counted_by_the_servers_own_figures(load: Any, broken: Any) -> None:
    found = load("--key", "sk-1")
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


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("--url", "http://127.0.0.1:1", "--synthetic", "5"), "--url: http://127.0.0.1:1:"),
        (("--url", "127.0.0.1:8000", "--synthetic", "5"), "--url: '127.0.0.1:8000'"),
        ((), "--trace: 0 given without --synthetic"),
        (("--synthetic", "fast"), "--synthetic: 'fast'"),
        (("--synthetic", "5", "--models", "a=0"), "--models: 'a=0'"),
        (("--synthetic", "5", "--models", "a,a"), "--models: 'a'"),
        (("--synthetic", "5", "--slo", "2"), "--slo: '2'"),
        (("--synthetic", "5", "--minutes", "1", "--duration-s", "60"), "--minutes: 1"),
        (("--trace", "azure:none.csv"), "none.csv: No such file"),
    ],
)
def test_what_cannot_be_is_one_line(
    words: tuple[str, ...], fault: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["load", *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"moray: {fault}")


def test_a_wrong_key_is_one_line(broken: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["load", "--url", broken.url, "--key", "wrong", "--synthetic", "5"]) == 1
    assert "answered 401" in capsys.readouterr().err
