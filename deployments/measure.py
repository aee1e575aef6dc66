"""What a language replica exports: its engine's report, read when somebody scrapes, on an HTTP port of its own."""

import threading
from collections.abc import Iterable, Iterator

import numpy as np
from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.registry import Collector

from cluster.request import Piece
from deployments.engines.engine import Emit, Engine, ExpertReport
from deployments.observe import Meters
from monitoring.metrics import REPLICA


class ReplicaMetrics(Collector):
    """Registered ahead of the metrics it refreshes, so that each scrape shows the engine as it is now.

    Made when the engine is ready. `start_s`: from the replica's construction until then.
    """

    def __init__(self, tier: str, engine: Engine, host: str, start_s: float) -> None:
        self._tier = tier
        self._engine = engine
        self._steps = 0
        self._lock = threading.Lock()
        self._expert_tokens: dict[tuple[int, ...], int] = {}
        registry = CollectorRegistry()
        registry.register(self)
        self._meters = Meters(registry, REPLICA)
        self._meters.gauge("moray_start_seconds").labels(tier=tier).set(start_s)
        server, _ = start_http_server(0, addr=host, registry=registry)
        self.address = f"{host}:{server.server_port}"

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        with self._lock:  # several may scrape at once, each on a thread of its own
            self._refresh()
        return iter(())

    def _refresh(self) -> None:
        report = self._engine.report()
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
        self._meters.counter("moray_steps_total").labels(tier=self._tier).inc(report.steps - self._steps)
        self._steps = report.steps
        self._experts(report.experts)

    def _experts(self, experts: ExpertReport | None) -> None:
        if experts is None:
            return
        counter = self._meters.counter("moray_expert_tokens_total")
        for at in np.argwhere(experts.tokens):
            domain, layer, expert, rank = key = tuple(map(int, at))
            count = int(experts.tokens[key])
            counter.labels(
                tier=self._tier, layer=layer, expert=expert, rank=rank, domain=experts.domains[domain] or "unknown"
            ).inc(count - self._expert_tokens.get(key, 0))
            self._expert_tokens[key] = count

    def watch(self, emit: Emit) -> Emit:
        """`emit`, with the queue wait of the first piece observed on the way."""
        histogram = self._meters.histogram("moray_queue_wait_seconds").labels(tier=self._tier)

        def watched(piece: Piece) -> None:
            if piece.queued_s is not None:
                histogram.observe(piece.queued_s)
            emit(piece)

        return watched
