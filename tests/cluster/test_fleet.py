from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.fleet import DEAD, ReplicaReport, report_from_stats, report_to_stats

REPORT = ReplicaReport(
    replica_id="turbo#a",
    at_s=12.345,
    running=3,
    waiting=1,
    waiting_prefill_tokens=120,
    kv_used_tokens=900,
    kv_capacity_tokens=32768,
    step_ms=7.1234,
    prefill_us_per_token=301.987,
)
STATS = report_to_stats(REPORT, beat_s=12.34)


def read(stats: object) -> ReplicaReport | None:
    return report_from_stats(stats, replica_id="turbo#a", received_s=50.0)


def test_a_report_travels_rounded_and_is_dated_by_its_receiver() -> None:
    assert read(STATS) == replace(REPORT, at_s=50.0, step_ms=7.12, prefill_us_per_token=301.99)


def test_an_idle_replica_still_makes_news() -> None:
    assert report_to_stats(REPORT, beat_s=13.3) != STATS


@pytest.mark.parametrize("field", sorted(STATS.keys() - {"beat_s"}))
@pytest.mark.parametrize("garbage", [None, "3", True, -1, float("nan"), float("inf"), 10**400, [1]])
def test_a_field_that_is_no_count_makes_no_report(field: str, garbage: object) -> None:
    assert read({**STATS, field: garbage}) is None


@pytest.mark.parametrize("field", sorted(STATS.keys() - {"beat_s"}))
def test_a_missing_field_makes_no_report(field: str) -> None:
    assert read({key: value for key, value in STATS.items() if key != field}) is None


def test_a_dead_replica_makes_no_report() -> None:
    assert read(DEAD) is None


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(anything | st.fixed_dictionaries({key: st.integers() | st.floats() for key in STATS}))
def test_reading_stats_never_raises(stats: object) -> None:
    assert isinstance(read(stats), ReplicaReport | None)
