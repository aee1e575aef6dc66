"""Both sources know the same; whatever answers, a look comes back."""

import asyncio
import json
import math
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from integration.server import eventually
from prometheus import prometheus
from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from autoscaling.controller import Source
from autoscaling.readings import Count, Fleet, Reading, read
from autoscaling.series import NAMES, STALE_S, Look
from autoscaling.signals import Spec, spec_of
from autoscaling.sources import Prometheus, Scrape
from cluster.family import load
from deployments.gateway.metrics import Merged
from deployments.observe import Meters
from monitoring.metrics import CONTROL, GATEWAY, REPLICA

SPEC = Spec(tiers={"mini": spec_of(load("laptop")).tiers["mini"]})
FLEET = Fleet(counts={"mini": Count(ready=1)}, gpus=8)
Answer = Callable[[BaseHTTPRequestHandler], tuple[int, bytes]]


@pytest.fixture
def registry() -> CollectorRegistry:
    """A gateway that also shows what must not be read."""
    found = CollectorRegistry()
    meters = Meters(found, (*GATEWAY, *CONTROL))
    for name in ("moray_arrivals_total", "moray_arrived_prompt_tokens_total", "moray_finished_total"):
        meters.counter(name).labels("mini").inc(7)
    for name in ("moray_ongoing_requests", "moray_held_requests", "moray_held_prompt_tokens"):
        meters.gauge(name).labels("mini").set(3)
    meters.counter("moray_promises_total").labels("mini", "kept").inc(6)
    meters.histogram("moray_ttft_seconds").labels("mini").observe(0.3)
    meters.gauge("moray_target_replicas").labels("mini").set(99)
    return found


@pytest.fixture
def engine() -> CollectorRegistry:
    found = CollectorRegistry()
    meters = Meters(found, REPLICA)
    meters.gauge("moray_waiting_prefill_tokens").labels("mini").set(40)
    meters.gauge("moray_running_requests").labels("mini").set(2)
    return found


@pytest.fixture
def expose() -> Iterator[Callable[[CollectorRegistry], str]]:
    stops = []

    def served(registry: CollectorRegistry) -> str:
        server, thread = start_http_server(0, "127.0.0.1", registry)
        stops.append((server, thread))
        return f"127.0.0.1:{server.server_port}"

    yield served
    for server, thread in stops:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def answering() -> Iterator[Callable[[Answer], str]]:
    """The address of an HTTP server that answers so."""
    servers = []

    def served(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = answer(self)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.do_GET()

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        servers.append((server, thread))
        return f"127.0.0.1:{server.server_port}"

    yield served
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


async def looked(source: Source) -> Look:
    try:
        return await source.look()
    finally:
        await source.close()


def reading(look: Look) -> Reading:
    return read(look, FLEET, None, None, SPEC, look.now_s)


async def test_a_scrape_reads_gateways_and_replicas(
    registry: CollectorRegistry, engine: CollectorRegistry, expose: Callable[[CollectorRegistry], str]
) -> None:
    gateway, replica = expose(registry), expose(engine)
    look = await looked(Scrape(lambda: {gateway: None, replica: "x"}, lambda: 50.0))
    assert (look.now_s, look.fault) == (50.0, None)
    assert {sample.name for sample in look.samples} <= set(NAMES)
    assert {sample.labels.get("replica") for sample in look.samples if sample.instance == replica} == {"x"}
    seen = reading(look).seen.tiers["mini"]
    assert seen is not None
    assert (seen.arrived_requests, seen.kept, seen.ongoing_requests) == (7, 6, 3)
    assert (seen.waiting_prefill_tokens, seen.ttft_s_sum) == (43, 0.3)


async def test_one_lost_page_leaves_the_others(
    registry: CollectorRegistry, expose: Callable[[CollectorRegistry], str], answering: Callable[[Answer], str]
) -> None:
    broken, odd = answering(lambda _: (500, b"")), answering(lambda _: (200, b'moray_arrivals_total{tier="mini" 3\n'))
    gateway = expose(registry)
    look = await looked(Scrape(lambda: {broken: None, odd: None, gateway: None, "no host": "x"}, time.time))
    assert look.fault is None
    assert {sample.instance for sample in look.samples} == {gateway}


@pytest.mark.parametrize("page", [b'moray_arrivals_total{tier="mini" 3\n', b"\xff\xfe", b"moray_arrivals_total x\n"])
async def test_pages_that_cannot_be_read_are_a_fault(page: bytes, answering: Callable[[Answer], str]) -> None:
    address = answering(lambda _: (200, page))
    look = await looked(Scrape(lambda: {address: None}, time.time))
    assert look.samples == ()
    assert reading(look).seen.tiers["mini"] is None


async def test_no_gateway_is_a_fault_and_not_silence() -> None:
    assert (await looked(Scrape(dict, lambda: 5.0))).fault == "no gateway has been heard of"


GARBAGE = [
    b"",
    b"<html>",
    b"[]",
    b"null",
    b"{}",
    b"[" * 5000,
    b'{"status": "error", "data": {"resultType": "scalar", "result": [0, "1"]}}',
    b'{"status": "success", "data": {"resultType": "scalar", "result": [NaN, "1"]}}',
    b'{"status": "success", "data": {"resultType": "scalar", "result": null}}',
    b'{"status": "success", "data": "none"}',
]


@pytest.mark.parametrize("body", GARBAGE)
async def test_garbage_is_a_fault_of_prometheus(body: bytes, answering: Callable[[Answer], str]) -> None:
    look = await looked(Prometheus(f"http://{answering(lambda _: (200, body))}"))
    assert look.fault is not None
    assert look.samples == ()


SERIES: list[Any] = [
    3,
    {"metric": 3, "values": [[1, "2"]]},
    {"metric": {"__name__": "moray_arrivals_total"}, "values": []},
    {"metric": {"tier": "mini"}, "values": [[1, "2"]]},
    {"metric": {"__name__": "moray_arrivals_total", "tier": 3}, "values": [[1, "2"]]},
    {"metric": {"__name__": "moray_arrivals_total"}, "values": [[1, "x"]]},
    {"metric": {"__name__": "moray_arrivals_total"}, "value": [1, "2"]},
]


def told(series: list[Any], now_s: float = 100.0) -> Answer:
    """A Prometheus: two questions come at once, told apart by their length."""

    def answer(request: BaseHTTPRequestHandler) -> tuple[int, bytes]:
        found: dict[str, Any] = {"resultType": "matrix", "result": series}
        if int(request.headers["Content-Length"]) < 50:
            found = {"resultType": "scalar", "result": [now_s, str(now_s)]}
        return 200, json.dumps({"status": "success", "data": found}).encode()

    return answer


@pytest.mark.parametrize("series", SERIES)
async def test_a_series_of_another_shape_is_a_fault(series: Any, answering: Callable[[Answer], str]) -> None:
    look = await looked(Prometheus(f"http://{answering(told([series]))}"))
    assert look.fault is not None


async def test_the_newest_of_a_range_counts_and_foreign_labels_do_not(answering: Callable[[Answer], str]) -> None:
    labels = {"__name__": "moray_arrivals_total", "tier": "mini", "job": "moray", "pod": "p", "instance": "a:1"}
    address = answering(told([{"metric": labels, "values": [[98, "2"], [99.5, "NaN"]]}]))
    look = await looked(Prometheus(f"http://{address}/"))
    (sample,) = look.samples
    assert (look.now_s, sample.at_s, sample.instance, sample.labels) == (100.0, 99.5, "a:1", {"tier": "mini"})
    assert math.isnan(sample.value)
    assert reading(look).flaws[0].fault == "contradictory"


async def test_a_prometheus_with_another_clock_is_named_and_still_read(answering: Callable[[Answer], str]) -> None:
    names = [name for name in NAMES if name.startswith(("moray_arriv", "moray_held", "moray_ongoing"))]
    series = [{"metric": {"__name__": name, "tier": "mini"}, "values": [[99, "7"]]} for name in names]
    look = await looked(Prometheus(f"http://{answering(told(series))}"))
    ours = read(look, FLEET, None, None, SPEC, 400.0)
    assert [(flaw.tier, flaw.fault) for flaw in ours.flaws] == [("mini", "skewed")]
    seen = ours.seen.tiers["mini"]
    assert seen is not None
    assert (ours.seen.now_s, seen.arrived_requests, ours.ages_s["mini"]) == (400.0, 7, 1.0)


async def test_a_time_that_is_none_is_a_fault(answering: Callable[[Answer], str]) -> None:
    look = await looked(Prometheus(f"http://{answering(told([], math.inf))}"))
    assert look.fault is not None
    assert "the time is inf" in look.fault


async def test_an_error_status_or_nobody_is_a_fault(answering: Callable[[Answer], str]) -> None:
    for url in (f"http://{answering(lambda _: (503, b'{}'))}", "http://127.0.0.1:1", "http://no host"):
        assert (await looked(Prometheus(url))).fault is not None


@pytest.mark.slow
def test_prometheus_and_a_scrape_see_the_same(
    tmp_path: Path,
    registry: CollectorRegistry,
    engine: CollectorRegistry,
    expose: Callable[[CollectorRegistry], str],
) -> None:
    """Prometheus scrapes the gateway's page, on which the replicas' series are, too."""
    merged = CollectorRegistry(auto_describe=False)
    page = text_string_to_metric_families(generate_latest(engine).decode())
    merged.register(Merged(registry, {"x": list(page)}))
    gateway, replica = expose(merged), expose(engine)
    scraped = reading(asyncio.run(looked(Scrape(lambda: {gateway: None, replica: "x"}, lambda: 50.0))))
    with prometheus(tmp_path, [{"targets": [gateway]}]) as url:

        def found() -> Look | None:
            look = asyncio.run(looked(Prometheus(url)))
            assert look.fault is None, look.fault
            return look if look.samples else None

        look = eventually(found, 30)
        assert look is not None
        asked = reading(look)
    assert abs(look.now_s - time.time()) < 60
    assert asked.flaws == scraped.flaws == ()
    assert asked.seen.tiers == scraped.seen.tiers
    assert asked.seen.tiers["mini"] is not None
    assert 0 <= asked.ages_s["mini"] <= STALE_S
