"""A request's ledger: every second is in one stage."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.ledger import STAGES, Marks, Spent, ledger, server_timing

SECONDS = st.floats(0, 1e4)


@st.composite
def marks(draw: st.DrawFn) -> Marks:
    at = sorted(draw(st.lists(SECONDS, min_size=6, max_size=6)))
    whole = draw(st.booleans())
    return Marks(
        arrived_s=at[0],
        asked_s=at[1],
        sent_s=at[2],
        last_sent_s=at[3],
        first_s=None if whole else at[4],
        ended_s=at[5],
    )


@given(marks(), SECONDS, SECONDS, SECONDS)
def test_the_stages_are_the_whole_time_whatever_a_replica_reports(
    marks: Marks, wait_s: float, first_s: float, total_s: float
) -> None:
    stages = ledger(marks, Spent(wait_s=wait_s, first_s=first_s, total_s=total_s))
    assert list(stages) == list(STAGES)
    assert min(stages.values()) >= 0
    assert math.isclose(sum(stages.values()), marks.ended_s - marks.arrived_s, abs_tol=1e-6)


def test_a_stream_is_told_apart_into_its_stages() -> None:
    stages = ledger(
        Marks(arrived_s=10, asked_s=10.01, sent_s=10.51, last_sent_s=10.51, first_s=11.5, ended_s=14.6),
        Spent(wait_s=0.25, first_s=0.95, total_s=3.95),
    )
    expected = [0.01, 0.5, 0, 0.04, 0.25, 0.7, 3, 0.1]
    assert list(stages.values()) == pytest.approx(expected)


def test_time_on_lost_replicas_is_a_stage_of_its_own() -> None:
    stages = ledger(
        Marks(arrived_s=0, asked_s=0, sent_s=1, last_sent_s=6, first_s=7, ended_s=8),
        Spent(first_s=1, total_s=2),
    )
    assert stages == pytest.approx(dict.fromkeys(STAGES, 0) | {"queue": 1, "lost": 5, "prefill": 1, "decode": 1})


def test_of_a_whole_answer_what_nobody_claims_is_the_way_there_and_back() -> None:
    stages = ledger(
        Marks(arrived_s=0, asked_s=0, sent_s=0, last_sent_s=0, first_s=None, ended_s=3),
        Spent(first_s=1, total_s=2),
    )
    assert (stages["router"], stages["stream"]) == (1, 0)


def test_server_timing_has_a_duration_in_milliseconds_per_stage() -> None:
    assert server_timing({"gateway": 0.0012, "queue": 0.5}) == "gateway;dur=1.2, queue;dur=500.0"
