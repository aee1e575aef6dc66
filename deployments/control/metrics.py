"""What the control loop exports, on an HTTP port of its own."""

from collections import defaultdict
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, start_http_server

from autoscaling.controller import Shown
from deployments.observe import Meters
from monitoring.metrics import CONTROL

GAUGES = {
    "moray_target_replicas": "targets",
    "moray_wanted_replicas": "wanted",
    "moray_gpus_held": "gpus_held",
    "moray_signal_age_seconds": "ages_s",
}
COUNTERS = {
    "moray_gpu_seconds_total": "gpu_s",
    "moray_control_errors_total": "errors",
    "moray_decisions_total": "decisions",
    "moray_signal_faults_total": "faults",
}


class ControlMetrics:
    def __init__(self, host: str) -> None:
        registry = CollectorRegistry()
        self._meters = Meters(registry, CONTROL)
        self._counted: defaultdict[tuple[str, ...], float] = defaultdict(float)
        self._server, self._thread = start_http_server(0, addr=host, registry=registry)
        self.address = f"{host}:{self._server.server_port}"

    def show(self, shown: Shown) -> None:
        """After every tick. A tier that the family has lost, and an age where nothing is seen, show no more."""
        for name, figure in GAUGES.items():
            gauge = self._meters.gauge(name)
            gauge.clear()
            for tier, value in getattr(shown, figure).items():
                gauge.labels(tier).set(value)
        replicas = self._meters.gauge("moray_replicas")
        replicas.clear()
        for tier, count in shown.counts.items():
            for state in ("ready", "starting", "draining"):
                replicas.labels(tier, state).set(getattr(count, state))
        for name, figure in COUNTERS.items():
            self._raise(name, getattr(shown, figure))
        self._meters.gauge("moray_gpus").set(shown.gpus)
        if shown.ticked_at_s:
            self._meters.gauge("moray_control_tick_timestamp_seconds").set(shown.ticked_at_s)
        self._meters.histogram("moray_control_tick_seconds").observe(shown.tick_s)

    def _raise(self, name: str, totals: Mapping[str | tuple[str, str], float]) -> None:
        for key, total in totals.items():
            labels = (key,) if isinstance(key, str) else key
            grown = total - self._counted[name, *labels]
            self._meters.counter(name).labels(*labels).inc(grown)
            self._counted[name, *labels] = total

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
