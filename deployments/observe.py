"""The metric catalogue, or a part of it, as live Prometheus metrics on a registry that the caller owns."""

from collections.abc import Iterable
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from monitoring.metrics import CATALOGUE, Metric

disable_created_metrics()  # type: ignore[no-untyped-call]  # a series per counter that nobody reads
Live = TypeVar("Live", Counter, Gauge, Histogram)


class Meters:
    """The metrics given. A name that is not among them, or asked for as another kind, fails at once."""

    def __init__(self, registry: CollectorRegistry, metrics: Iterable[Metric] = CATALOGUE) -> None:
        self.registry = registry
        self._metrics = {metric.name: _live(metric, registry) for metric in metrics}

    def counter(self, name: str) -> Counter:
        return self._of(Counter, name)

    def gauge(self, name: str) -> Gauge:
        return self._of(Gauge, name)

    def histogram(self, name: str) -> Histogram:
        return self._of(Histogram, name)

    def _of(self, kind: type[Live], name: str) -> Live:
        metric = self._metrics.get(name)
        if not isinstance(metric, kind):
            known = ", ".join(key for key, live in self._metrics.items() if isinstance(live, kind))
            raise KeyError(f"{name} is no {kind.__name__.lower()} of monitoring.metrics; those are {known}")
        return metric


def _live(metric: Metric, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    match metric.kind:
        case "counter":
            return Counter(metric.name, metric.help, metric.labels, registry=registry)
        case "gauge":
            return Gauge(metric.name, metric.help, metric.labels, registry=registry)
        case "histogram":
            return Histogram(metric.name, metric.help, metric.labels, registry=registry, buckets=metric.buckets)
