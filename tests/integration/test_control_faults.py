"""What users see when the control loop, its signals or its record fail: targets hold, requests go on, it comes back.

In the order of one run, whose record is replayed at the end.
"""

import asyncio
import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from flaky import NOISE, PAGE, Flaky
from integration.conftest import Stage
from integration.families import watched
from integration.server import QUIET_S, Server, eventually, free_port
from integration.talk import ASK, LONG, RESTART_S, Stream, simulated, whole
from prometheus import alerts, prometheus, query

from autoscaling.record import Scaling, Tick, follow, parse
from monitoring.alerts import rules

pytestmark = pytest.mark.slow

CROWD = 200
TICKS = "moray_control_tick_timestamp_seconds"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """`flaky` stands before Prometheus, which scrapes the server's page each second."""

    server: Server
    flaky: Flaky
    prometheus: str

    @property
    def record(self) -> Path:
        return self.server.scratch / "state" / "decisions.jsonl"

    def asleep(self, tier: str) -> None:
        eventually(lambda: not self.server.replicas(tier), RESTART_S, f"{tier} is asleep")

    def ticks(self, seconds: float) -> None:
        """The loop goes on deciding for so long."""
        begun_s = eventually(lambda: self.server.metric(TICKS), RESTART_S)
        eventually(lambda: self.server.metric(TICKS) >= begun_s + seconds, RESTART_S, "the loop ticks")

    def targets(self) -> dict[str, float]:
        return {sample.labels["tier"]: sample.value for sample in self.server.samples("moray_target_replicas")}

    def pids(self) -> set[int]:
        return {replica.pid for tier in ("steady", "sleepy") for replica in self.server.replicas(tier)}

    def faults(self, tier: str, fault: str) -> float:
        return self.server.metric("moray_signal_faults_total", tier=tier, fault=fault)

    def scalings(self) -> list[Scaling]:
        """All that was decided, as the record tells it."""
        found: list[Scaling] = []
        for number, text in enumerate(self.record.read_text().splitlines(), 1):
            record = parse(text, number)
            if isinstance(record, Tick):
                found.append(follow(found[-1], record))
            elif isinstance(record, Scaling):
                found.append(record)
        return found

    def log(self) -> str:
        """Of the control loop's processes."""
        logs = self.server.scratch.glob("**/logs/worker-*.err")
        return "".join(text for log in logs if "control: " in (text := log.read_text(errors="replace")))


@pytest.fixture(scope="module")
def scene(stages: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    rule_file = folder / "rules.yml"
    rule_file.write_text(yaml.safe_dump(rules(scale=0.1)))
    server = stages.start(watched)
    page = {"targets": [f"127.0.0.1:{server.port}"]}
    try:
        with prometheus(folder, [page], rules=[rule_file], port=port) as url, Flaky("127.0.0.1", port) as flaky:
            yield Scene(server=server.ready(), flaky=flaky, prometheus=url)
            server.stop()
    finally:
        server.destroy()
        shutil.rmtree(server.scratch)


def crowd(server: Server, tier: str) -> list[str]:
    """What so many requests at once are told, every second one as a stream. All must be answered."""

    async def told(client: httpx.AsyncClient, seed: int) -> str:
        body = {"model": tier, "messages": ASK, "max_tokens": 10, "seed": seed, "stream": seed % 2 == 1}
        answer = await client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        if not body["stream"]:
            return str(answer.json()["choices"][0]["message"]["content"])
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        return "".join(event["choices"][0]["delta"].get("content") or "" for event in events)

    async def all_told() -> list[str]:
        headers, limits = {"Authorization": f"Bearer {server.key}"}, httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=server.url, headers=headers, limits=limits, timeout=QUIET_S, trust_env=False
        ) as client:
            return await asyncio.gather(*(told(client, seed) for seed in range(CROWD)))

    return asyncio.run(all_told())


def test_a_tier_that_begins_asleep_is_not_woken_by_gateways(scene: Scene) -> None:
    scene.ticks(8)
    assert scene.targets() == {"steady": 1, "sleepy": 0, "dozy": 0}
    assert scene.server.replicas("sleepy") == []


def test_a_crowd_wakes_one_replica_which_sleeps_again(scene: Scene) -> None:
    assert crowd(scene.server, "sleepy") == [simulated(seed, 10) for seed in range(CROWD)]
    scene.asleep("sleepy")
    assert max(scaling.decision.tiers["sleepy"].replicas for scaling in scene.scalings()) == 1


def test_a_killed_loop_comes_back_and_goes_on_from_its_record(scene: Scene) -> None:
    stream, before, pids = Stream(scene.server, "steady", LONG).begun(), scene.targets(), scene.pids()
    (loop,) = scene.server.control()
    loop.kill()
    left = len(scene.record.read_bytes())
    assert whole(scene.server, "steady", 5) == simulated(1, 5)
    assert stream.ended().text == simulated(1, LONG)

    def returned() -> list[psutil.Process]:
        return [process for process in scene.server.control() if process != loop]

    eventually(returned, RESTART_S, "a new loop")
    eventually(lambda: len(scene.record.read_bytes()) > left, RESTART_S, "it decides")
    known = len(scene.record.read_bytes()[:left].splitlines())
    scalings = scene.scalings()
    assert scalings[known].memory == scalings[known - 1].after
    scene.ticks(4)
    assert (scene.targets(), scene.pids()) == (before, pids)


def test_a_full_disk_stops_the_record_and_nothing_else(scene: Scene) -> None:
    """The record's file becomes a device that is always full, and is put back."""
    saved, full = scene.record.with_suffix(".saved"), scene.record.with_suffix(".full")
    os.link(scene.record, saved)
    full.symlink_to("/dev/full")
    full.replace(scene.record)
    lost = eventually(lambda: scene.server.metric("moray_control_errors_total", part="record"), RESTART_S, "counted")
    assert whole(scene.server, "sleepy", 5) == simulated(1, 5)
    scene.ticks(4)
    assert scene.server.metric("moray_control_errors_total", part="record") > lost
    saved.replace(scene.record)
    known = scene.record.stat().st_size
    eventually(lambda: scene.record.stat().st_size > known, RESTART_S, "it writes again")
    assert scene.log().count("control: the record failed") == 1
    eventually(lambda: "control: the record works again" in scene.log(), RESTART_S, "told")


def test_the_streams_of_a_tier_that_is_edited_end_as_they_began(scene: Scene) -> None:
    """The same edit lets the loop ask Prometheus from now on."""
    stream, before = Stream(scene.server, "steady", LONG).begun(), scene.pids()

    def edited(raw: dict[str, Any]) -> None:
        raw["tiers"]["steady"]["max_waiting"] = 99
        raw["control"] = {"prometheus_url": f"http://{scene.flaky.address}"}

    scene.server.edit(edited)
    eventually(lambda: "\nchanged" in scene.server.output, RESTART_S, scene.server.output)
    assert stream.ended().text == simulated(1, LONG)
    eventually(lambda: len(scene.server.replicas("steady")) == 1, RESTART_S, "the old one has gone")
    assert scene.pids().isdisjoint(before)


def sees(scene: Scene) -> None:
    """Ages are shown of what is seen."""
    ages = "moray_signal_age_seconds"
    eventually(lambda: scene.server.samples(ages, tier="steady"), RESTART_S, "the loop sees by Prometheus")


def test_prometheus_tells_when_to_wake_and_when_to_sleep(scene: Scene) -> None:
    sees(scene)
    scene.asleep("sleepy")
    assert whole(scene.server, "sleepy", 5) == simulated(1, 5)
    assert scene.server.metric("moray_target_replicas", tier="sleepy") == 1
    scene.asleep("sleepy")
    scene.asleep("dozy")


@pytest.mark.parametrize("fault", ["refuse", NOISE, PAGE], ids=["gone", "noise", "foreign"])
def test_without_prometheus_targets_hold_and_requests_go_on(scene: Scene, fault: Any) -> None:
    sees(scene)
    scene.asleep("dozy")
    stream = Stream(scene.server, "sleepy", LONG).begun()
    scene.ticks(4)
    if fault == "refuse":
        scene.flaky.be("refuse")
    else:
        scene.flaky.be("garbage", fault)
    counted = scene.faults("sleepy", "unreachable")
    before, pids = scene.targets(), scene.pids()
    assert before["sleepy"] == 1
    assert stream.ended().text == simulated(1, LONG)
    scene.ticks(10)  # sleepy would be asleep by now
    assert scene.faults("sleepy", "unreachable") >= counted + 3
    assert (scene.targets(), scene.pids()) == (before, pids)
    assert scene.scalings()[-1].decision.tiers["sleepy"].cause == "blind"
    assert whole(scene.server, "steady", 5) == simulated(1, 5)
    assert whole(scene.server, "dozy", 5) == simulated(1, 5), "nobody saw it, but it was asked for"
    scene.flaky.be("pass")
    sees(scene)
    for tier in ("sleepy", "dozy"):
        scene.asleep(tier)
    assert scene.targets()["steady"] == 1


def test_a_loop_that_hangs_raises_its_alert_until_it_goes_on(scene: Scene) -> None:
    def firing() -> bool:
        return "ControlLoopSilent" in {alert["labels"]["alertname"] for alert in alerts(scene.prometheus)}

    sees(scene)
    assert not firing()
    (loop,) = scene.server.control()
    loop.send_signal(signal.SIGSTOP)
    try:
        eventually(firing, RESTART_S, "the alert")
        assert query(scene.prometheus, "moray_links"), "the page of the others is still scraped"
        assert whole(scene.server, "steady", 5) == simulated(1, 5)
    finally:
        loop.send_signal(signal.SIGCONT)
    eventually(lambda: not firing(), RESTART_S, "the end of the alert")
    assert loop in scene.server.control()


def test_every_decision_of_this_run_comes_out_the_same_again(scene: Scene) -> None:
    replayed = scene.server.moray("simulate", "--replay", str(scene.record), "--json")
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    told = json.loads(replayed.stdout)
    assert told["differ_in_lines"] == []
    assert told["decisions"] > 30
