"""What one scrape shows of experts, as Prometheus reads it: names without the tier, sorted by labels."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from deployments.engines.engine import ExpertReport
from deployments.measure_experts import MOST_SERIES, expert_families
from monitoring.metrics import EXPERTS

TOKENS = np.zeros((2, 2, 3, 2), np.int64)  # "" and math; two layers of three experts; two ranks
TOKENS[1, 0, 0] = (30, 10)
TOKENS[0, 0, 1] = (5, 0)
TOKENS[1, 1, 2] = (0, 7)
REPORT = ExpertReport(
    domains=("", "math"),
    tokens=TOKENS,
    window=TOKENS.sum(0),
    slots=((0, 1, 2, 0), (0, 1, 0, 2)),
    imbalance=(35 / 22.5, float("nan")),
    rebalances=3,
    moved=4,
    stall_s=0.25,
)


class Page(Collector):
    def __init__(self, report: ExpertReport) -> None:
        self._report = report

    def collect(self) -> Iterator[Metric]:
        yield from expert_families("ultra", self._report)


def shown(report: ExpertReport, name: str) -> dict[str, float]:
    """The values of a metric by its labels, `layer expert rank domain` as far as it has them."""
    registry = CollectorRegistry()
    registry.register(Page(report))
    page = generate_latest(registry).decode()
    samples = [s for family in text_string_to_metric_families(page) for s in family.samples if s.name == name]
    labels = ("layer", "expert", "rank", "domain")
    return {" ".join(s.labels[label] for label in labels if label in s.labels): s.value for s in samples}


def test_every_place_of_an_expert_counts_from_zero_and_by_domain_once_there_is_something_to_count() -> None:
    assert shown(REPORT, "moray_expert_tokens_total") == {
        "0 0 0 math": 30,
        "0 0 1 math": 10,
        "1 2 1 math": 7,
        "0 0 0 unknown": 0,
        "0 0 1 unknown": 0,
        "0 1 0 unknown": 5,
        "0 2 1 unknown": 0,
        "1 0 0 unknown": 0,
        "1 0 1 unknown": 0,
        "1 1 0 unknown": 0,
        "1 2 1 unknown": 0,
    }


def test_the_window_and_the_copies_are_those_of_the_experts_places() -> None:
    window = shown(REPORT, "moray_expert_window_tokens")
    assert window == {"0 0 0": 30, "0 0 1": 10, "0 1 0": 5, "0 2 1": 0, "1 0 0": 0, "1 0 1": 0, "1 1 0": 0, "1 2 1": 7}
    copies = shown(REPORT, "moray_expert_copies")
    assert copies == {"0 0": 2, "0 1": 1, "0 2": 1, "1 0": 2, "1 1": 1, "1 2": 1}


def test_a_layer_without_rows_has_no_imbalance() -> None:
    assert shown(REPORT, "moray_expert_imbalance_ratio") == {"0": pytest.approx(35 / 22.5)}


def test_rebalances_are_told_with_what_moved_and_what_the_last_one_cost() -> None:
    names = ("rebalances_total", "moves_total", "rebalance_stall_seconds")
    assert [shown(REPORT, f"moray_expert_{name}") for name in names] == [{"": 3}, {"": 4}, {"": 0.25}]


def test_an_expert_that_moved_is_shown_where_it_lies_now_and_its_counts_where_they_were_made() -> None:
    moved = replace(REPORT, slots=((2, 1, 0, 1), (0, 1, 0, 2)))
    assert [key for key in shown(moved, "moray_expert_window_tokens") if key.startswith("0")] == [
        "0 0 1",
        "0 1 0",
        "0 1 1",
        "0 2 0",
    ]
    counted = shown(moved, "moray_expert_tokens_total")
    assert counted["0 0 0 math"] == 30
    assert "0 0 0 unknown" not in counted
    assert counted["0 2 0 unknown"] == 0


@pytest.mark.parametrize(
    ("layers", "experts", "ranks", "in_full"),
    [
        (2, 16, 2, 2),  # 2 x (16 experts x 2 ranks x 5 domains) = 320
        (40, 16, 2, 12),  # 2,000 / 160 = 12.5
        (47, 64, 4, 1),  # 2,000 / 1,280 = 1.6
        (58, 256, 8, 0),  # one layer alone would be 10,240
    ],
)
def test_a_page_stays_short_however_large_the_model_is(layers: int, experts: int, ranks: int, in_full: int) -> None:
    tokens = np.ones((5, layers, experts, ranks), np.int64)  # every expert has been on every rank
    report = ExpertReport(
        domains=("", "a", "b", "c", "d"),
        tokens=tokens,
        window=tokens.sum(0),
        slots=(tuple(range(experts)),) * layers,
        imbalance=(1.0,) * layers,
    )
    counted = shown(report, "moray_expert_tokens_total")
    assert len(counted) <= MOST_SERIES
    assert len({key.split()[0] for key in counted}) == in_full
    assert len(shown(report, "moray_expert_imbalance_ratio")) == layers


def test_its_names_are_those_of_the_catalogue() -> None:
    registry = CollectorRegistry()
    registry.register(Page(REPORT))
    families = {family.name: family for family in text_string_to_metric_families(generate_latest(registry).decode())}
    for metric in EXPERTS:
        family = families[metric.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (metric.kind, metric.help)
        assert all(set(sample.labels) == set(metric.labels) for sample in family.samples)
