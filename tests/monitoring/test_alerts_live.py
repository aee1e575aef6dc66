"""The rules in the real Prometheus, which scrapes what the parts would show. Durations are a tenth of the real ones."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from integration.server import eventually
from prometheus import alerts, prometheus, query
from prometheus_client import CollectorRegistry, start_http_server

from deployments.observe import Meters
from monitoring.alerts import rules
from monitoring.metrics import CONTROL, GATEWAY, LINK, Metric

pytestmark = pytest.mark.slow
SCALE = 0.1
WAIT_S = 60.0


class Exposition:
    """The page of one part."""

    def __init__(self, metrics: tuple[Metric, ...]) -> None:
        self.meters = Meters(CollectorRegistry(), metrics)
        self._server, self._thread = start_http_server(0, "127.0.0.1", self.meters.registry)
        self.address = f"127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()


@pytest.fixture
def gateway() -> Iterator[Exposition]:
    exposition = Exposition((*GATEWAY, *LINK))
    exposition.meters.counter("moray_promises_total").labels(tier="mini", outcome="kept")
    yield exposition
    exposition.stop()


@pytest.fixture
def control() -> Iterator[Exposition]:
    """It ticks whenever it is scraped."""
    exposition = Exposition(CONTROL)
    exposition.meters.gauge("moray_control_tick_timestamp_seconds").set_function(time.time)
    yield exposition
    exposition.stop()


def firing(url: str) -> set[str]:
    return {alert["labels"]["alertname"] for alert in alerts(url)}


@pytest.fixture
def url(gateway: Exposition, control: Exposition, tmp_path: Path) -> Iterator[str]:
    """Of a Prometheus that has seen both parts."""
    file = tmp_path / "moray.yml"
    file.write_text(yaml.safe_dump(rules(scale=SCALE)))
    targets = [{"targets": [gateway.address, control.address]}]
    with prometheus(tmp_path / "prometheus", targets, rules=[file]) as url:
        eventually(lambda: query(url, "sum(up) == 2 and on() moray_control_tick_timestamp_seconds"), WAIT_S)
        yield url


def test_a_control_loop_that_goes_away_is_missed(url: str, control: Exposition) -> None:
    assert firing(url) == set()
    control.stop()
    eventually(lambda: firing(url) == {"ControlLoopSilent"}, WAIT_S)


def test_a_control_loop_that_hangs_is_missed_until_it_ticks_again(url: str, control: Exposition) -> None:
    tick = control.meters.gauge("moray_control_tick_timestamp_seconds")
    last_s = time.time() - 60
    tick.set_function(lambda: last_s)
    eventually(lambda: firing(url) == {"ControlLoopSilent"}, WAIT_S)
    tick.set_function(time.time)
    eventually(lambda: firing(url) == set(), WAIT_S)
