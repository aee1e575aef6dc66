"""The doctor's look at a gateway, on pages that the real metrics code makes, and at what answers otherwise."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version

import pytest
from integration.server import free_port

from autoscaling.controller import Shown
from autoscaling.readings import Count
from cluster.doctor import Finding, Observed, findings
from cluster.doctor_gateway import Gateway, Look
from cluster.family import load
from cluster.placement import VIDEO
from deployments import doctor_gateway, seen
from deployments.cli import main
from deployments.control.metrics import ControlMetrics
from deployments.doctor_gateway import look_twice, read
from deployments.gateway.metrics import GatewayMetrics
from deployments.link import LinkCounts

FAMILY = load("laptop", serving=False)
RUNNING = {key: tier.replicas.initial for key, tier in FAMILY.tiers.items()}
NOW_S = 1_000.0
VERSION = version("moray")
CONTROL = {"version": VERSION, "heard_age_s": 0.5, "picture_age_s": 2.5}
HEALTH = json.dumps({"status": "ok", "version": VERSION, "family": "laptop", "replicas": RUNNING, "control": CONTROL})


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> GatewayMetrics:
    monkeypatch.setattr(seen, "_replicas", {})
    metrics = GatewayMetrics(LinkCounts(), lambda: {"queued": 2, "completed": 5})
    metrics.follow(FAMILY.tiers)
    return metrics


@pytest.fixture
def control() -> Iterator[ControlMetrics]:
    metrics = ControlMetrics("127.0.0.1")
    yield metrics
    metrics.close()


def shown(faults: int = 0, ticked_at_s: float = NOW_S - 2) -> Shown:
    """A loop that sees the initial replicas of the family."""
    counts = {key: Count(ready=count) for key, count in RUNNING.items()} | {VIDEO: Count(ready=1)}
    return Shown(
        ticked_at_s=ticked_at_s,
        targets=RUNNING | {VIDEO: 1},
        counts=counts,
        gpus=9,
        gpus_held={"mini": 1, VIDEO: 1},
        ages_s={"mini": 1.5},
        faults=Counter({("mini", "stale"): faults}),
        errors=Counter({"look": faults}),
    )


async def looked(gateway: GatewayMetrics, now_s: float = NOW_S) -> Look:
    page = await gateway.page(only_gateway=False)
    return replace(read(page.decode(), family="laptop", running=RUNNING, now_s=now_s), version="1")


async def test_a_page_of_what_the_family_says_has_no_findings(gateway: GatewayMetrics, control: ControlMetrics) -> None:
    gateway.control_address = control.address
    control.show(shown())
    look = await looked(gateway)
    assert findings(FAMILY, Observed(gateway=Gateway(url="", client="1", earlier=look, later=look))) == ()


async def test_what_the_page_says_is_what_is_looked_at(gateway: GatewayMetrics, control: ControlMetrics) -> None:
    gateway.control_address = control.address
    control.show(shown(faults=3))
    look = await looked(gateway)
    assert look.ticked_s == 2.0
    assert look.gpus == 9
    assert look.queued_jobs == 2
    assert look.faults["mini", "stale"] == 3
    assert look.errors["look"] == 3
    assert look.signals_s == {"mini": 1.5}
    mini = look.parts["mini"]
    assert (mini.running, mini.target, mini.ready, mini.gpus_held) == (1, 1, 1, 1)
    assert (look.parts[VIDEO].target, look.parts[VIDEO].ready) == (1, 1)


@pytest.mark.parametrize("ticked_at_s", [None, 0.0], ids=["does not answer", "has not ticked yet"])
async def test_a_loop_that_is_not_there_is_none(
    gateway: GatewayMetrics, control: ControlMetrics, ticked_at_s: float | None
) -> None:
    if ticked_at_s is not None:
        gateway.control_address = control.address
        control.show(Shown(ticked_at_s=ticked_at_s))
    look = await looked(gateway)
    assert look.ticked_s is None
    (found,) = findings(FAMILY, Observed(gateway=Gateway(url="", client="1", earlier=look, later=look)))
    assert found.where == "control loop"


def test_states_and_tiers_of_a_later_version_are_passed_over() -> None:
    page = 'moray_replicas{tier="mini",state="parked"} 1\nmoray_replicas{tier="new",state="ready"} 1\n'
    look = read(page, family="laptop", running=RUNNING, now_s=NOW_S)
    assert look.tiers == tuple(FAMILY.tiers)
    assert look.parts["mini"].existing == 0


Answers = dict[str, tuple[int, str]]


@pytest.fixture
def site() -> Iterator[Callable[[Answers], str]]:
    """Serves texts by path; returns its URL."""
    servers: list[ThreadingHTTPServer] = []

    def serve(answers: Answers) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                code, text = answers[self.path]
                self.send_response(code)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: object) -> None: ...

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.02,)).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


async def test_it_looks_twice_and_waits_in_between(
    site: Callable[[Answers], str], gateway: GatewayMetrics, control: ControlMetrics
) -> None:
    gateway.control_address = control.address
    control.show(shown(faults=3))
    first = (await gateway.page(only_gateway=False)).decode()
    control.show(shown(faults=4))
    second = (await gateway.page(only_gateway=False)).decode()
    answers = {"/health": (200, HEALTH), "/metrics": (200, first)}
    seen = look_twice(site(answers), wait=lambda _: answers.update({"/metrics": (200, second)}))
    assert isinstance(seen, Gateway)
    assert (seen.earlier.faults["mini", "stale"], seen.later.faults["mini", "stale"]) == (3, 4)
    assert seen.client == seen.later.version == seen.later.loop_version == VERSION
    assert (seen.later.heard_s, seen.later.pictured_s) == (0.5, 2.5)


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"/health": (503, "")}, "/health answers 503"),
        ({"/health": (200, "hello")}, "not as a gateway does"),
        ({"/health": (200, '{"status": "ok"}')}, "not as a gateway does"),
        ({"/health": (200, HEALTH), "/metrics": (200, "{no metrics")}, "not as a gateway does"),
        ({"/health": (200, HEALTH), "/metrics": (200, 'moray_gpus_held{tier="mini"} +Inf')}, "not as a gateway does"),
        ({"/health": (200, HEALTH), "/metrics": (500, "")}, "/metrics answers 500"),
    ],
)
def test_what_is_no_gateway_is_told_in_one_line(site: Callable[[Answers], str], answers: Answers, words: str) -> None:
    found = look_twice(site(answers), wait=lambda _: None)
    assert isinstance(found, Finding)
    assert words in str(found)
    assert "\n" not in str(found)


def test_the_command_says_that_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert main(["doctor", "--url", url]) == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"gateway {url}: ")
    assert "start one with `moray up`" in out
    assert (out.count("\n"), err) == (1, "")


async def test_the_command_tells_findings_as_lines_and_as_json(
    site: Callable[[Answers], str],
    gateway: GatewayMetrics,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor_gateway, "BETWEEN_S", 0.0)
    page = (await gateway.page(only_gateway=False)).decode()
    url = site({"/health": (200, HEALTH), "/metrics": (200, page)})
    assert main(["doctor", "--url", url]) == 1
    assert capsys.readouterr().out.startswith("control loop: does not answer; expected ")
    assert main(["doctor", "--url", url, "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)
    assert found["where"] == "control loop"
    assert sorted(found) == ["expected", "found", "mend", "where"]
