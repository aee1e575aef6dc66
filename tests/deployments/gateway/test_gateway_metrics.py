from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import httpx
import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from cluster.request import Usage
from deployments import seen
from deployments.gateway.metrics import GatewayMetrics
from deployments.link import LinkCounts
from deployments.observe import Meters
from monitoring.metrics import CONTROL, REPLICA

TIER = (("tier", "mini"),)


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> GatewayMetrics:
    monkeypatch.setattr(seen, "_replicas", {})
    monkeypatch.setattr(seen, "routing_decisions", Counter())
    monkeypatch.setattr(seen, "routing_errors", Counter())
    return GatewayMetrics(LinkCounts())


def page_of_a_replica(running: int) -> str:
    meters = Meters(CollectorRegistry(), REPLICA)
    meters.gauge("moray_running_requests").labels(tier="mini").set(running)
    meters.counter("moray_steps_total").labels(tier="mini").inc(7)
    meters.histogram("moray_queue_wait_seconds").labels(tier="mini").observe(0.2)
    return generate_latest(meters.registry).decode()


def answering(pages: dict[str, Callable[[], httpx.Response]], metrics: GatewayMetrics) -> None:
    """Replicas by address, one tier of them."""

    def scrape(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/metrics"
        return pages[request.url.host]()

    metrics._client = httpx.AsyncClient(transport=httpx.MockTransport(scrape))
    replicas = [seen.SeenReplica(replica_id=f"id-{host}", metrics_address=f"{host}:1") for host in pages]
    seen.publish("mini", tuple(replicas))


def page(running: int) -> Callable[[], httpx.Response]:
    return lambda: httpx.Response(200, text=page_of_a_replica(running))


def dead() -> httpx.Response:
    raise httpx.ConnectError("refused")


def samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    parsed = (sample for family in text_string_to_metric_families(text.decode()) for sample in family.samples)
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in parsed}


async def test_replicas_of_a_tier_are_told_apart_by_a_label(metrics: GatewayMetrics) -> None:
    answering({"a": page(1), "b": page(2)}, metrics)
    shown = samples(await metrics.page(only_gateway=False))
    for host, running in (("a", 1), ("b", 2)):
        labels = (("replica", f"id-{host}"), ("tier", "mini"))
        assert shown["moray_running_requests", labels] == running
        assert shown["moray_steps_total", labels] == 7
        assert shown["moray_queue_wait_seconds_count", labels] == 1


async def test_each_family_has_one_help_however_many_pages_it_came_from(metrics: GatewayMetrics) -> None:
    answering({"a": page(1), "b": page(2), "c": page(3)}, metrics)
    metrics.request("mini", "ok", 0.1)
    text = (await metrics.page(only_gateway=False)).decode()
    for mark in ("# HELP ", "# TYPE "):
        named = Counter(line.split()[2] for line in text.splitlines() if line.startswith(mark))
        assert "moray_running_requests" in named
        assert {name: count for name, count in named.items() if count > 1} == {}


async def test_replicas_are_asked_without_the_proxy_of_the_machine(
    metrics: GatewayMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    asking = GatewayMetrics(LinkCounts())
    asking.control_address = metrics.serve("127.0.0.1")
    metrics.request("mini", "ok", 0.1)
    shown = samples(await asking.page(only_gateway=False))
    assert shown["moray_requests_total", (("code", "ok"), ("tier", "mini"))] == 1


async def test_the_page_of_a_dead_replica_is_skipped(metrics: GatewayMetrics) -> None:
    answering({"a": dead, "b": page(2), "c": lambda: httpx.Response(500, text="Traceback")}, metrics)
    shown = samples(await metrics.page(only_gateway=False))
    replicas = {value for _, labels in shown for name, value in labels if name == "replica"}
    assert replicas == {"id-b"}


async def test_a_replica_without_an_address_is_skipped(metrics: GatewayMetrics) -> None:
    seen.publish("mini", (seen.SeenReplica(replica_id="a", metrics_address=""),))
    assert samples(await metrics.page(only_gateway=False))["moray_replicas_running", TIER] == 1


async def test_the_gateways_own_page_asks_nobody(metrics: GatewayMetrics) -> None:
    answering({"a": lambda: pytest.fail("it was asked")}, metrics)
    metrics.request("mini", "ok", 0.1)
    shown = samples(await metrics.page(only_gateway=True))
    assert shown["moray_requests_total", (("code", "ok"), ("tier", "mini"))] == 1


async def test_what_others_of_the_process_count_is_shown_as_it_is_now(metrics: GatewayMetrics) -> None:
    counts = metrics._link
    counts.links, counts.frames, counts.bytes = 2, 10, 1000
    seen.routing_decisions["mini", "predicted"] = 5
    first = samples(await metrics.page(only_gateway=True))
    counts.links, counts.frames, counts.failures = 1, 15, 1
    seen.routing_decisions["mini", "predicted"] = 6
    second = samples(await metrics.page(only_gateway=True))
    predicted = (("method", "predicted"), ("tier", "mini"))
    for name, labels, before, after in (
        ("moray_links", (), 2, 1),
        ("moray_link_frames_total", (), 10, 15),
        ("moray_link_bytes_total", (), 1000, 1000),
        ("moray_link_failures_total", (), 0, 1),
        ("moray_routing_decisions_total", predicted, 5, 6),
    ):
        assert (first[name, labels], second[name, labels]) == (before, after)


async def test_a_tier_that_falls_asleep_shows_no_replica(metrics: GatewayMetrics) -> None:
    seen.publish("mini", (seen.SeenReplica(replica_id="a", metrics_address="a:1"),))
    assert samples(await metrics.page(only_gateway=True))["moray_replicas_running", TIER] == 1
    seen.publish("mini", ())
    assert samples(await metrics.page(only_gateway=True))["moray_replicas_running", TIER] == 0


async def test_video_jobs_are_counted_by_status(metrics: GatewayMetrics) -> None:
    metrics = GatewayMetrics(LinkCounts(), lambda: {"queued": 2})
    shown = samples(await metrics.page(only_gateway=True))
    assert shown["moray_video_jobs", (("status", "queued"),)] == 2
    assert shown["moray_video_jobs", (("status", "completed"),)] == 0


@pytest.mark.parametrize(("tpot_s", "paces"), [(None, 0), (0.02, 1)])
async def test_an_answer_of_one_token_has_no_pace(metrics: GatewayMetrics, tpot_s: float | None, paces: int) -> None:
    metrics.answered(
        "mini", [Usage(prompt_tokens=3, completion_tokens=4)], ttft_s=0.5, tpot_s=tpot_s, stages={"wait": 0.2}
    )
    shown = samples(await metrics.page(only_gateway=True))
    assert shown["moray_ttft_seconds_sum", TIER] == 0.5
    assert shown["moray_stage_seconds_sum", (("stage", "wait"), *TIER)] == 0.2
    assert shown.get(("moray_tpot_seconds_count", TIER), 0) == paces
    assert shown["moray_prompt_tokens_total", TIER] == 3
    assert shown["moray_context_token_steps_total", TIER] == 4 * (3 + 2)
    assert shown["moray_finished_total", TIER] == 1


async def test_series_of_a_tier_and_of_a_limit_begin_at_zero(metrics: GatewayMetrics) -> None:
    metrics.follow(["mini"], ["tokens_per_minute"])
    shown = samples(await metrics.page(only_gateway=True))
    for name in ("moray_arrivals_total", "moray_finished_total", "moray_held_requests", "moray_ttft_seconds_count"):
        assert shown[name, TIER] == 0
    assert shown["moray_promises_total", (("outcome", "missed"), ("tier", "mini"))] == 0
    assert shown["moray_limit_refusals_total", (("limit", "tokens_per_minute"),)] == 0


class Desk:
    admissions: ClassVar = Counter({("mini", "hold"): 3})

    def held(self) -> dict[str, tuple[int, int]]:
        return {"mini": (2, 300)}

    def ongoing(self) -> dict[str, int]:
        return {"mini": 5}

    def open_breakers(self) -> dict[str, int]:
        return {}


async def test_what_the_desk_holds_is_shown_as_it_is_now() -> None:
    desk: Any = Desk()
    metrics = GatewayMetrics(LinkCounts(), desk=desk)
    metrics.follow(["mini", "turbo"])
    shown = samples(await metrics.page(only_gateway=True))
    assert shown["moray_held_requests", TIER] == 2
    assert shown["moray_held_prompt_tokens", TIER] == 300
    assert shown["moray_ongoing_requests", TIER] == 5
    assert shown["moray_breakers_open", TIER] == 0
    assert shown["moray_held_requests", (("tier", "turbo"),)] == 0
    assert shown["moray_admissions_total", (("action", "hold"), ("tier", "mini"))] == 3


async def test_its_own_series_are_also_on_a_port_of_their_own() -> None:
    metrics = GatewayMetrics(LinkCounts(), lambda: {"queued": 2})
    address = metrics.serve("127.0.0.1")
    async with httpx.AsyncClient(trust_env=False) as client:
        shown = samples((await client.get(f"http://{address}/metrics")).content)
    assert shown["moray_video_jobs", (("status", "queued"),)] == 2


async def test_the_page_of_the_control_loop_is_there_without_a_replica(metrics: GatewayMetrics) -> None:
    registry = Meters(CollectorRegistry(), CONTROL)
    registry.gauge("moray_gpus").set(8)
    text = generate_latest(registry.registry)
    answering({"a": page(1), "loop": lambda: httpx.Response(200, content=text)}, metrics)
    seen.publish("mini", (seen.SeenReplica(replica_id="id-a", metrics_address="a:1"),))
    metrics.control_address = "loop:1"
    shown = samples(await metrics.page(only_gateway=False))
    assert shown["moray_gpus", ()] == 8
    assert shown["moray_running_requests", (("replica", "id-a"), ("tier", "mini"))] == 1


async def test_a_foreign_metric_of_a_replica_passes_through(metrics: GatewayMetrics) -> None:
    registry = CollectorRegistry()
    Gauge("other_things", "Not of the catalogue.", registry=registry).set(4)
    answering({"a": lambda: httpx.Response(200, content=generate_latest(registry))}, metrics)
    assert samples(await metrics.page(only_gateway=False))["other_things", (("replica", "id-a"),)] == 4
