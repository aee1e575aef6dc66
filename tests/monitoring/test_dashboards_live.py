"""Every query of every dashboard in the real Prometheus, which scrapes a page where each metric of the catalogue moves.

What is tried is that queries find what the metrics' live form shows; under real load the integration tests move some.
"""

import math
from collections.abc import Iterator
from itertools import product

import pytest
import yaml
from integration.server import eventually
from prometheus import prometheus, query
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from deployments.grafana_sync import SOURCE, groups
from deployments.observe import Meters
from monitoring.alerts import rules
from monitoring.dashboards import BOARDS
from monitoring.metrics import CATALOGUE, Metric

pytestmark = pytest.mark.slow
WAIT_S = 60.0
VALUES = {
    "tier": ("turbo", "video"),
    "code": ("ok", "overloaded"),
    "outcome": ("kept", "missed"),
    "state": ("ready", "starting"),
    "layer": ("0",),
    "domain": ("general",),
}
FILLED = {
    "$__rate_interval": "5s",
    "$__range": "30s",
    "$usd_per_gpu_hour": "2.5",
    "$usd_per_mtok_in": "10",
    "$usd_per_mtok_out": "30",
    "$tier": "turbo",
    "$layer": "0",
    "$domain": "general",
}


class Mover(Collector):
    """Moves all that the registry shows, just before it is shown."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._meters: Meters | None = None
        registry.register(self)  # ahead of the metrics: it is asked first
        self._meters = Meters(registry)

    def collect(self) -> Iterator[Family]:
        for metric in CATALOGUE if self._meters is not None else ():
            for values in product(*(VALUES.get(label, ("0", "1")) for label in metric.labels)):
                self._move(metric, values)
        return iter(())

    def _move(self, metric: Metric, values: tuple[str, ...]) -> None:
        assert self._meters is not None
        match metric.kind:
            case "counter":
                counter = self._meters.counter(metric.name)
                (counter.labels(*values) if values else counter).inc(3)
            case "gauge":
                gauge = self._meters.gauge(metric.name)
                (gauge.labels(*values) if values else gauge).inc()
            case "histogram":
                histogram = self._meters.histogram(metric.name)
                (histogram.labels(*values) if values else histogram).observe(0.07)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a Prometheus that has scraped a few times."""
    folder = tmp_path_factory.mktemp("dashboards")
    (folder / "moray.yml").write_text(yaml.safe_dump(rules(scale=0.1)))
    registry = CollectorRegistry()
    Mover(registry)
    server, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        targets = [{"targets": [f"127.0.0.1:{server.server_port}"]}]
        with prometheus(folder / "prometheus", targets, rules=[folder / "moray.yml"]) as url:
            eventually(lambda: query(url, "count_over_time(moray_gpus[1m]) > 4"), WAIT_S)
            eventually(lambda: query(url, "tier:moray_promises_allowed:ratio"), WAIT_S)
            yield url
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


QUERIES = [
    pytest.param(asked.expr, id=f"{board.uid}: {panel.title}: {asked.legend}")
    for board in BOARDS
    for row in board.rows
    for panel in row.panels
    for asked in panel.queries
]


@pytest.mark.parametrize("expr", QUERIES)
def test_a_query_finds_figures(url: str, expr: str) -> None:
    for name, value in FILLED.items():
        expr = expr.replace(name, value)
    assert "$" not in expr
    eventually(lambda: any(math.isfinite(float(found["value"][1])) for found in query(url, expr)), WAIT_S, expr)


RULES = [
    pytest.param(part["model"]["expr"], id=f"{rule['title']}: {part['refId']}")
    for item in groups()
    for rule in item.body["rules"]
    for part in rule["data"]
    if part["datasourceUid"] == SOURCE
]


@pytest.mark.parametrize("expr", RULES)
def test_what_rules_in_grafana_ask_is_taken(url: str, expr: str) -> None:
    assert all(sample["value"][1] == "1" for sample in query(url, expr)) or "bool -Inf" not in expr
