"""The accounting: nothing is counted twice or left out, and what is said over time sums to what is said at all."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.load.answer import Answer
from deployments.load.options import Promise
from deployments.load.report import LATE_S, report

PROMISES = {"a": Promise(ttft_s=1.0, tpot_ms=50.0)}


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    due_s = draw(st.floats(0, 500))
    sent_s = due_s + draw(st.sampled_from((0.0, 0.05, 0.2, 3.0)))
    one = Answer(
        model=draw(st.sampled_from("ab")), tenant=draw(st.sampled_from(("x", "y"))), due_s=due_s, sent_s=sent_s
    )
    what = draw(st.sampled_from(("completed", "refused", "failed", "under way", "connection")))
    if what in ("completed", "failed"):
        one.first_s = sent_s + draw(st.floats(0.01, 5))
        one.last_s = one.first_s + draw(st.floats(0, 9))
        one.output_tokens = draw(st.integers(0, 9))
    one.failure = {"failed": "cut off", "connection": "connection"}.get(what)  # type: ignore[assignment]
    one.refused = draw(st.sampled_from(("overloaded", "not_in_plan"))) if what == "refused" else None
    one.ended_s = None if what == "under way" else (one.last_s or sent_s) + 0.01
    return one


def ended(figures: dict[str, Any]) -> int:
    return int(
        figures["completed"] + figures["under_way"] + sum(figures["refused"].values()) + sum(figures["failed"].values())
    )


many = st.lists(answers(), max_size=40)


@given(many, st.floats(0, 400), st.integers(0, 5))
def test_each_planned_request_has_exactly_one_outcome(sent: list[Answer], warm_up_s: float, unsent: int) -> None:
    found = report(sent, PROMISES, 600.0, warm_up_s=warm_up_s, planned=len(sent) + unsent)
    assert found["planned"] - found["sent"] == unsent
    assert found["sent"] == found["warm_up"]["requests"] + found["all"]["requests"]
    for parts in ({"all": found["all"]}, found["models"], found["tenants"]):
        assert sum(part["requests"] for part in parts.values()) == found["all"]["requests"]
        assert all(ended(part) == part["requests"] for part in parts.values())


@given(many, st.floats(0, 400))
def test_the_warm_up_changes_no_figure(sent: list[Answer], warm_up_s: float) -> None:
    judged = [one for one in sent if one.due_s >= warm_up_s]
    found, alone = report(sent, PROMISES, 600.0, warm_up_s=warm_up_s), report(judged, PROMISES, 600.0)
    for name in ("all", "models", "tenants", "send_late_s", "warning"):
        assert found[name] == alone[name]


@given(many)
def test_percentiles_are_those_of_numpy(sent: list[Answer]) -> None:
    found = report(sent, PROMISES, 600.0)["all"]
    for name in ("ttft_s", "tpot_ms", "total_s"):
        known = [value for one in sent if (value := getattr(one, name)) is not None]
        for quantile, q in (("p50", 50), ("p90", 90), ("p99", 99), ("max", 100)):
            assert found[name][quantile] == (pytest.approx(np.percentile(known, q)) if known else None)


@given(many)
def test_late_sends_are_counted_and_count_against_the_server(sent: list[Answer]) -> None:
    found = report(sent, PROMISES, 600.0)
    late = [one for one in sent if one.sent_s - one.due_s > LATE_S]
    assert found["send_late_s"]["count"] == found["all"]["sent_late"] == len(late)
    assert (found["warning"] is not None) == (len(late) > 0.01 * len(sent))
    assert all(one.ttft_s > one.late_s for one in sent if one.ttft_s is not None)


@given(many)
def test_what_is_told_over_time_sums_to_what_is_told_at_all(sent: list[Answer]) -> None:
    found = report(sent, PROMISES, 600.0)
    time, whole = found["over_time"], found["all"]
    group = time["groups"]["all"]

    def total(line: list[float]) -> float:
        return float(sum(line) * time["bin_s"])

    assert len(time["begin_s"]) == len(group["due_per_s"]) == len(group["ttft_s"]["p50"])
    assert total(group["due_per_s"]) == pytest.approx(whole["requests"])
    assert total(group["completed_per_s"]) == pytest.approx(whole["completed"])
    for name in ("refused", "failed"):
        assert {code: total(line) for code, line in group[f"{name}_per_s"].items()} == pytest.approx(whole[name])
    if whole["kept"] is not None:
        assert total(group["goodput_per_s"]) == pytest.approx(whole["kept"])
