from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import Mock, patch

import httpx
import numpy as np
import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.request import Piece
from deployments.engines.engine import EngineReport, ExpertReport
from deployments.measure import ReplicaMetrics
from monitoring.metrics import REPLICA

ROWS = np.array([[[[10]]]])  # of one domain, layer, expert and rank
EXPERTS = ExpertReport(domains=("math",), tokens=ROWS, window=ROWS[0], slots=((0,),), imbalance=(1.0,))
REPORT = EngineReport(
    running=2,
    waiting=3,
    waiting_prefill_tokens=40,
    kv_used_tokens=500,
    kv_capacity_tokens=6000,
    steps=7,
    step_ms=8.0,
    prefill_us_per_token=9.0,
    cached_tokens=100,
    experts=EXPERTS,
)


class Engine:
    """As much of an engine as is measured."""

    now = REPORT

    def report(self) -> EngineReport:
        return self.now


@pytest.fixture(autouse=True)
def servers() -> Iterator[None]:
    """A replica's server lives as long as its process; here it ends with the test."""
    started: list[Any] = []

    def start(*arguments: Any, **named: Any) -> Any:
        started.append(prometheus_client.start_http_server(*arguments, **named))
        return started[-1]

    with patch("deployments.measure.start_http_server", start):
        yield
    for server, thread in started:
        server.shutdown()
        server.server_close()
        thread.join()


def measured(engine: Engine) -> ReplicaMetrics:
    ours: Any = engine
    return ReplicaMetrics("mini", ours, "127.0.0.1", 12.5)


def scrape(metrics: ReplicaMetrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    page = httpx.get(f"http://{metrics.address}/metrics").text
    samples = (sample for family in text_string_to_metric_families(page) for sample in family.samples)
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}


TIER = (("tier", "mini"),)


def test_a_scrape_shows_the_engine_as_it_is_now() -> None:
    engine = Engine()
    metrics = measured(engine)
    first = scrape(metrics)
    assert first["moray_running_requests", TIER] == 2
    assert first["moray_waiting_prefill_tokens", TIER] == 40
    assert first["moray_step_seconds", TIER] == 0.008
    assert first["moray_prefill_seconds_per_token", TIER] == pytest.approx(9e-6)
    assert first["moray_steps_total", TIER] == 7
    assert first["moray_start_seconds", TIER] == 12.5
    assert first["moray_cached_prompt_tokens_total", TIER] == 100
    engine.now = replace(REPORT, running=0, steps=11, cached_tokens=150)
    second = scrape(metrics)
    assert second["moray_running_requests", TIER] == 0
    assert second["moray_steps_total", TIER] == 11
    assert second["moray_cached_prompt_tokens_total", TIER] == 150


def test_an_engine_that_tells_nothing_of_experts_shows_nothing_of_them() -> None:
    engine = Engine()
    engine.now = replace(REPORT, experts=None)
    assert not [name for name, _ in scrape(measured(engine)) if name.startswith("moray_expert")]


def test_the_queue_wait_is_observed_once_on_the_way_of_the_first_piece() -> None:
    metrics = measured(Engine())
    emit = Mock()
    watched = metrics.watch(emit)
    pieces = [Piece(tokens=1, queued_s=0.3), Piece(tokens=1), Piece(tokens=1)]
    for piece in pieces:
        watched(piece)
    assert [call.args[0] for call in emit.call_args_list] == pieces
    page = scrape(metrics)
    assert page["moray_queue_wait_seconds_count", TIER] == 1
    assert page["moray_queue_wait_seconds_sum", TIER] == 0.3


def test_everything_that_the_catalogue_promises_of_a_replica_is_on_its_page() -> None:
    metrics = measured(Engine())
    metrics.watch(Mock())(Piece(queued_s=0.1))
    shown = {name for name, _ in scrape(metrics)}
    missing = [m.name for m in REPLICA if m.name not in shown and f"{m.name}_count" not in shown]
    assert missing == []
