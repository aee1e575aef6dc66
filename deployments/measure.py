"""What a language replica exports: its engine's report, read when somebody scrapes, on an HTTP port of its own."""

import threading
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.registry import Collector

from cluster.request import Piece
from deployments.engines.engine import Emit, Engine, EngineReport
from deployments.measure_experts import expert_families
from deployments.observe import Meters
from monitoring.metrics import EXPERTS, REPLICA


class ReplicaMetrics(Collector):
    """Registered ahead of the metrics it refreshes, so that each scrape shows the engine as it is now.

    Made when the engine is ready. `start_s`: from the replica's construction until then.
    """

    def __init__(self, tier: str, engine: Engine, host: str, start_s: float) -> None:
        self._tier = tier
        self._engine = engine
        self._counted: dict[str, int] = {}  # as of the last scrape
        self._lock = threading.Lock()
        registry = CollectorRegistry()
        registry.register(self)
        self._meters = Meters(registry, [metric for metric in REPLICA if metric not in EXPERTS])
        self._meters.gauge("moray_start_seconds").labels(tier=tier).set(start_s)
        server, _ = start_http_server(0, addr=host, registry=registry)
        self.address = f"{host}:{server.server_port}"

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        with self._lock:  # several may scrape at once, each on a thread of its own
            report = self._engine.report()
            self._refresh(report)
        if report.experts is not None:
            yield from expert_families(self._tier, report.experts)

    def _refresh(self, report: EngineReport) -> None:
        gauges = {
            "moray_running_requests": report.running,
            "moray_waiting_requests": report.waiting,
            "moray_waiting_prefill_tokens": report.waiting_prefill_tokens,
            "moray_kv_used_tokens": report.kv_used_tokens,
            "moray_kv_capacity_tokens": report.kv_capacity_tokens,
            "moray_step_seconds": report.step_ms / 1e3,
            "moray_prefill_seconds_per_token": report.prefill_us_per_token / 1e6,
        }
        for name, value in gauges.items():
            self._meters.gauge(name).labels(tier=self._tier).set(value)
        counts = {"moray_steps_total": report.steps, "moray_cached_prompt_tokens_total": report.cached_tokens}
        for name, count in counts.items():
            self._meters.counter(name).labels(tier=self._tier).inc(count - self._counted.get(name, 0))
        self._counted = counts

    def watch(self, emit: Emit) -> Emit:
        """`emit`, with the queue wait of the first piece observed on the way."""
        histogram = self._meters.histogram("moray_queue_wait_seconds").labels(tier=self._tier)

        def watched(piece: Piece) -> None:
            if piece.queued_s is not None:
                histogram.observe(piece.queued_s)
            emit(piece)

        return watched
