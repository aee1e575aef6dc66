"""Two runs side by side: ratios of medians, ranges where there are runs enough, and what makes them no pair."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.cli import main
from deployments.load.answer import Answer
from deployments.load.compare import confidence, differing, doubts, ratios
from deployments.load.report import report


def run(ttft_s: float, **conditions: Any) -> dict[str, Any]:
    answers = [
        Answer(
            model="good",
            tenant=f"t{number % 2}",
            due_s=float(number),
            sent_s=float(number),
            first_s=number + ttft_s,
            last_s=number + ttft_s + 1,
            ended_s=number + ttft_s + 1,
            output_tokens=11,
        )
        for number in range(20)
    ]
    return report(answers, {}, 30.0) | {"conditions": {"seed": 0} | conditions, "interrupted": False, "actions": []}


def ttft(before: list[float], after: list[float]) -> Any:
    found = ratios([run(value) for value in before], [run(value) for value in after])
    return next(one for one in found if (one.part, one.figure) == ("all", "ttft_s p50"))


times = st.lists(st.floats(0.1, 10), min_size=2, max_size=4)


@given(times, times)
def test_the_range_holds_the_ratio_of_the_medians(before: list[float], after: list[float]) -> None:
    one = ttft(before, after)
    assert one.low <= one.ratio * (1 + 1e-9)
    assert one.ratio <= one.high * (1 + 1e-9)
    assert one.low == pytest.approx(min(after) / max(before))


def test_one_run_on_a_side_gives_a_ratio_without_a_range() -> None:
    one = ttft([1.0], [2.0, 3.0])
    assert (one.ratio, one.low, one.high) == (pytest.approx(2.5), None, None)
    assert confidence(1, 5) is None


def test_more_runs_are_surer() -> None:
    assert confidence(2, 2) == 0.25
    assert confidence(6, 6) == pytest.approx(0.9385, abs=1e-4)


def test_tenants_are_compared_where_all_runs_have_them() -> None:
    assert {one.part for one in ratios([run(1.0)], [run(2.0)])} == {"all", "tenant t0", "tenant t1"}


def test_conditions_that_differ_and_runs_that_prove_little_are_told() -> None:
    assert differing([run(1.0), run(1.0, seed=7, url="other")]) == {"seed": [0, 7], "url": [None, "other"]}
    assert differing([run(1.0), run(2.0)]) == {}
    assert doubts([run(1.0), run(1.0) | {"interrupted": True, "planned": 50}]) == [
        "run 2 was stopped: 20 of 50 requests were sent"
    ]


def test_the_command_tells_people_and_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, found in (("a", run(1.0)), ("b", run(2.0)), ("c", run(2.2, seed=7))):
        (tmp_path / name).write_text(json.dumps(found), encoding="utf-8")
    one, several = str(tmp_path / "a"), f"{tmp_path / 'b'},{tmp_path / 'c'}"
    assert main(["load", "compare", one, several]) == 0
    told = capsys.readouterr().out
    assert "conditions differ: seed: 0 / 0 / 7" in told
    assert "without confidence" in told
    assert main(["load", "compare", one, several, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == [1, 2]


def test_a_file_of_another_version_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old").write_text(json.dumps(run(1.0) | {"schema_version": 0}), encoding="utf-8")
    assert main(["load", "compare", str(tmp_path / "old"), str(tmp_path / "old")]) == 1
    assert "schema_version: 0; 1 is allowed" in capsys.readouterr().err
