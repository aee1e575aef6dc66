"""From a running server to somebody's pager: what `moray render prometheus` writes, in the real programs.

Two gateways answer behind one address. Windows are a hundredth of the real ones.
"""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from integration.conftest import Stage
from integration.families import watched
from integration.server import Server, eventually, free_port
from integration.talk import whole
from prometheus import alertmanager_of, program, prometheus_of, query

from monitoring.alerts import ALERTS

pytestmark = pytest.mark.slow

SCALE = 0.01
ALERT = Path(__file__).parents[1] / "load/alert.yaml"
ASKED = 8
CROWD_S = 10  # of it: the crowd, not the calm behind it
TOLD_S = 60.0


class Pager:
    """A webhook that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        told = self.told

        class Answer(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                told.extend(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["alerts"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self._server.server_port}/alerts"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def heard(self, name: str, tier: str, status: str) -> dict[str, Any]:
        """What it was told last of such an alert; empty where nothing was."""
        wanted = {"alertname": name, "tier": tier}
        of_it = (a for a in reversed(self.told) if a["status"] == status and wanted.items() <= a["labels"].items())
        return next(of_it, {})

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def impatient(folder: Path, port: int) -> dict[str, Any]:
    """Whoever wakes its sleeping tier cannot be answered as promised."""
    raw = watched(folder, port)
    raw["gateway"]["replicas"] = 2
    raw["tiers"]["dozy"]["slo"] = {"ttft_s": 0.1, "tpot_ms": 50}
    return raw


@pytest.fixture
def server(stage: Stage) -> Server:
    for name in ("prometheus", "prometheus-alertmanager"):
        program(name)
    return stage.serve("impatient", impatient)


@pytest.fixture
def pager() -> Iterator[Pager]:
    pager = Pager()
    yield pager
    pager.close()


@pytest.fixture
def url(server: Server, pager: Pager, tmp_path: Path) -> Iterator[str]:
    """Of a Prometheus that watches the server and tells an Alertmanager, which tells the pager."""
    port = free_port()
    words = {
        "--out": tmp_path,
        "--gateway": server.url,
        "--every": 1,
        "--scale": SCALE,
        "--alertmanager": f"127.0.0.1:{port}",
        "--webhook": pager.url,
    }
    rendered = server.moray("render", "prometheus", *(str(word) for pair in words.items() for word in pair))
    assert rendered.returncode == 0, rendered.stderr
    with (
        alertmanager_of(tmp_path / "alertmanager.yml", tmp_path / "told", port),
        prometheus_of(tmp_path / "prometheus.yml", tmp_path / "series") as prometheus,
    ):
        eventually(
            lambda: value(prometheus, "count(moray_links) + count(moray_gpus) + count(moray_steps_total)") == 4, TOLD_S
        )
        yield prometheus


def value(url: str, expression: str) -> float | None:
    """Of an expression without labels; None where there is nothing."""
    found = query(url, expression)
    return float(found[0]["value"][1]) if found else None


def test_each_page_of_two_gateways_is_scraped_and_each_request_counted_once(server: Server, url: str) -> None:
    before = value(url, "sum(moray_finished_total)") or 0
    for seed in range(ASKED):
        whole(server, "steady", 4, seed)
    eventually(lambda: value(url, "sum(moray_finished_total)") == before + ASKED, TOLD_S, "counted")
    (steps,) = query(url, "moray_steps_total")
    assert steps["metric"]["replica"] in {sample.labels["replica"] for sample in server.samples("moray_steps_total")}
    assert value(url, "min(up)") == 1


def test_a_broken_promise_reaches_the_pager_and_so_does_its_end(
    server: Server, pager: Pager, url: str, tmp_path: Path
) -> None:
    assert pager.heard("PromisesBroken", "dozy", "firing") == {}
    (tmp_path / "key").write_text(server.key, encoding="utf-8")
    words = ("--key", str(tmp_path / "key"), "--map", "pro=dozy", "--duration-s", str(CROWD_S))
    ran = server.moray("load", "--url", server.url, "--scenario", str(ALERT), *words)
    assert ran.returncode == 0, ran.stderr
    fired = eventually(lambda: pager.heard("PromisesBroken", "dozy", "firing"), TOLD_S, "the page")
    (known,) = (alert for alert in ALERTS if alert.name == "PromisesBroken")
    assert fired["labels"]["severity"] == known.severity
    assert fired["annotations"]["summary"].endswith("% of the requests for dozy miss its promises")
    assert known.mend in fired["annotations"]["runbook"]
    ended = eventually(lambda: pager.heard("PromisesBroken", "dozy", "resolved"), TOLD_S, "its end")
    assert ended["fingerprint"] == fired["fingerprint"]
    assert pager.heard("PromisesBroken", "steady", "firing") == {}
