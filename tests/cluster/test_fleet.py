from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.family import load
from cluster.fleet import (
    CELL_LABEL,
    CellState,
    Node,
    ReplicaReport,
    declared_cells,
    observed_cells,
    report_from_stats,
    report_to_stats,
)

REPORT = ReplicaReport(
    replica_id="turbo#a",
    tier="turbo",
    at_s=12.345,
    running=3,
    waiting=1,
    waiting_prefill_tokens=120,
    kv_used_tokens=900,
    kv_capacity_tokens=32768,
    step_ms=7.1234,
    prefill_us_per_token=301.987,
)


def read(stats: object) -> ReplicaReport | None:
    return report_from_stats(stats, replica_id="turbo#a", tier="turbo", received_s=50.0)


def test_a_report_travels_rounded_and_is_dated_by_its_receiver() -> None:
    assert read(report_to_stats(REPORT)) == replace(REPORT, at_s=50.0, step_ms=7.12, prefill_us_per_token=301.99)


def test_an_idle_replica_still_makes_news() -> None:
    assert report_to_stats(REPORT) != report_to_stats(replace(REPORT, at_s=REPORT.at_s + 1))


@pytest.mark.parametrize("field", sorted(set(report_to_stats(REPORT)) - {"beat_s"}))
@pytest.mark.parametrize("garbage", [None, "3", True, -1, float("nan"), float("inf"), 10**400, [1]])
def test_a_field_that_is_no_count_makes_no_report(field: str, garbage: object) -> None:
    assert read({**report_to_stats(REPORT), field: garbage}) is None


@pytest.mark.parametrize("field", sorted(set(report_to_stats(REPORT)) - {"beat_s"}))
def test_a_missing_field_makes_no_report(field: str) -> None:
    assert read({key: value for key, value in report_to_stats(REPORT).items() if key != field}) is None


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(anything | st.fixed_dictionaries({key: st.integers() | st.floats() for key in report_to_stats(REPORT)}))
def test_reading_stats_never_raises(stats: object) -> None:
    assert isinstance(read(stats), ReplicaReport | None)


def test_the_cells_of_a_family_are_numbered_where_there_are_several() -> None:
    laptop = load("laptop")
    many = laptop.model_copy(update={"cells": (laptop.cells[0].model_copy(update={"count": 2}),)})
    assert [cell.name for cell in declared_cells(laptop)] == ["laptop"]
    assert declared_cells(many)[1] == CellState(name="laptop-1", gpus=8, free_gpus=8, labels={CELL_LABEL: "laptop-1"})


def test_nodes_of_one_cell_label_are_one_cell_and_others_stand_alone() -> None:
    nodes = [
        Node(name="n0", gpus=4, free_gpus=4, labels={CELL_LABEL: "rack"}),
        Node(name="n1", gpus=8, free_gpus=8),
        Node(name="n2", gpus=4, free_gpus=1, labels={CELL_LABEL: "rack"}),
    ]
    assert [(cell.name, cell.gpus, cell.free_gpus) for cell in observed_cells(nodes)] == [("rack", 8, 5), ("n1", 8, 8)]
