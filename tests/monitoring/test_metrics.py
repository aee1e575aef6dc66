import re

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from deployments.observe import Meters
from monitoring.metrics import CATALOGUE, LABELS, Metric

every = pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.name)
histograms = pytest.mark.parametrize("metric", [m for m in CATALOGUE if m.kind == "histogram"], ids=lambda m: m.name)


def test_names_are_unique() -> None:
    assert len({metric.name for metric in CATALOGUE}) == len(CATALOGUE)


@every
def test_names_follow_the_conventions(metric: Metric) -> None:
    assert re.fullmatch(r"moray(_[a-z]+)+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert not re.search(r"_(ms|millis|minutes|kb|mb)(_|$)", metric.name)
    assert not re.search(r"_(bucket|count|sum|info)$", metric.name)


@every
def test_labels_have_a_stated_bound_and_help_is_a_sentence(metric: Metric) -> None:
    assert set(metric.labels) <= set(LABELS)
    assert len(set(metric.labels)) == len(metric.labels)
    assert re.fullmatch(r"[A-Z].*\.", metric.help)


def test_every_stated_label_is_used() -> None:
    assert {label for metric in CATALOGUE for label in metric.labels} == set(LABELS)


@histograms
def test_histograms_measure_seconds_in_rising_buckets(metric: Metric) -> None:
    assert metric.name.endswith("_seconds")
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert metric.buckets


def test_only_histograms_have_buckets() -> None:
    assert not any(metric.buckets for metric in CATALOGUE if metric.kind != "histogram")


@pytest.mark.parametrize(
    ("name", "promises_s"),
    [("moray_ttft_seconds", (0.5, 1.0, 2.0, 4.0)), ("moray_tpot_seconds", (0.015, 0.025, 0.05, 0.08))],
)
def test_the_promises_of_the_tiers_are_bucket_edges(name: str, promises_s: tuple[float, ...]) -> None:
    metric = next(metric for metric in CATALOGUE if metric.name == name)
    assert set(promises_s) <= set(metric.buckets)


def record(metric: Metric, registry: CollectorRegistry) -> None:
    live = Meters(registry)
    labels = {label: "x" for label in metric.labels}
    match metric.kind:
        case "counter":
            counter = live.counter(metric.name)
            (counter.labels(**labels) if labels else counter).inc()
        case "gauge":
            gauge = live.gauge(metric.name)
            (gauge.labels(**labels) if labels else gauge).set(1)
        case "histogram":
            histogram = live.histogram(metric.name)
            (histogram.labels(**labels) if labels else histogram).observe(1)


@every
def test_every_metric_is_exposed_under_its_name_kind_and_labels(metric: Metric) -> None:
    registry = CollectorRegistry()
    record(metric, registry)
    exposed = {family.name: family for family in text_string_to_metric_families(generate_latest(registry).decode())}
    family = exposed[metric.name.removesuffix("_total")]
    assert (family.type, family.documentation) == (metric.kind, metric.help)
    sample = next(s for s in family.samples if s.name in (metric.name, f"{metric.name}_sum"))
    assert (sample.value, set(sample.labels)) == (1.0, set(metric.labels))


def test_an_unknown_name_fails_at_once() -> None:
    with pytest.raises(KeyError, match=r"moray_nothing_total is no counter of .* those are moray_requests_total, "):
        Meters(CollectorRegistry()).counter("moray_nothing_total")


def test_a_name_of_another_kind_fails_at_once() -> None:
    with pytest.raises(KeyError, match="moray_requests_total is no gauge"):
        Meters(CollectorRegistry()).gauge("moray_requests_total")


def test_two_registries_do_not_share_counts() -> None:
    one, other = Meters(CollectorRegistry()), Meters(CollectorRegistry())
    one.counter("moray_video_steps_total").inc(3)
    assert other.registry.get_sample_value("moray_video_steps_total") == 0.0
    assert one.registry.get_sample_value("moray_video_steps_total") == 3.0
