"""What users see when parts of a cluster of three simulated nodes die, hang, or are asked for too much.

Texts of simulated engines follow from seed and position alone: a token lost, doubled or out of order would show.
"""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from integration.conftest import Stage
from integration.families import QUICK, READY_SOON, spread
from integration.server import QUIET_S, Server, eventually
from integration.talk import RESTART_S, idle, running, serves, simulated, whole
from integration.told import Told

pytestmark = pytest.mark.slow

NODES, GPUS = 3, 8
REPLICAS = {"pro": 2, "turbo": 3, "narrow": 1}
STEPS, JOBS = 40, 20  # five work at once even where the last worker starts late
BACK_S = 120.0  # for what was lost to be there again, on a busy machine


def breakable(folder: Path, port: int) -> dict[str, Any]:
    """A group of pro is on each of two nodes, the third one is free for ultra and lent to videos."""
    raw = spread(folder, port)
    tier = raw["tiers"]["turbo"] | {"cost": QUICK | {"a_ms": 10}, **READY_SOON}
    dear = {"input_usd_per_mtok": 100, "output_usd_per_mtok": 200}
    raw["tiers"] = {
        "ultra": tier | _named("ultra", 0, 1) | {"ranks": 8, "quality": 3, "price": dear},
        "pro": tier | _named("pro", 2, 2) | {"ranks": 5, "quality": 2},
        "turbo": tier | _named("turbo", 3, 3) | {"max_running": 16},
        "narrow": tier | _named("narrow", 1, 1) | {"max_running": 2, "max_waiting": 4, "patience_s": 20},
    }
    steps = {"base_s": 0.25, "linear_s_per_mtok": 0, "quadratic_s_per_mtok2": 0, "source": "none: a test's"}
    replicas = {"min": 0, "max": 5, "initial": 0, "idle_s": 5}
    video = {"gpus": 2, "concurrent": 1, "beside": "pro", "steps": STEPS, "cost": steps, "slo": {"deadline_s": 900}}
    raw["video"] |= video | {"replicas": replicas}
    raw["plans"] = {"gold": {"tiers": ["narrow"], "priority": 1}, "free": {"tiers": ["narrow"], "priority": 0}}
    return raw | {"name": "breakable", "cells": [{"name": "node", "count": NODES, "gpus": GPUS}]}


def _named(name: str, least: int, most: int) -> dict[str, Any]:
    return {"names": [name], "replicas": {"min": least, "max": most, "initial": least, "idle_s": 5}}


@pytest.fixture
def server(stage: Stage) -> Server:
    return stage.serve("breakable", breakable, NODES)


def several(server: Server, tier: str, tokens: int, seeds: Sequence[int]) -> list[Told]:
    return [told.begun() for told in [Told(server, tier, tokens, seed) for seed in seeds]]


def process_of(server: Server, tier: str, replica: str) -> psutil.Process:
    """The replica's log is open in it."""

    def named(process: psutil.Process) -> bool:
        return any(file.path.endswith(f"_{replica}.log") for file in process.open_files())

    (found,) = filter(named, server.replicas(tier))
    return found


def complete(server: Server, tier: str) -> bool:
    return server.metric("moray_replicas_running", tier=tier) == len(server.replicas(tier)) == REPLICAS[tier]


def assert_resumed_once(told: Sequence[Told], lost: str) -> None:
    """Those that began on the lost replica, and only those."""
    for each in told:
        each.unbroken()
        assert each.resumed == (each.replica == lost), f"seed {each.seed} on {each.replica}, lost {lost}"
        assert each.last_replica != lost


def render(server: Server, jobs: int) -> Callable[[], list[str]]:
    """Asks for some videos. Returns a look at their states."""
    http = server.http()
    job = {"model": "sora-2", "prompt": "a wave", "seconds": "1", "size": "64x64"}
    made = [http.post("/v1/videos", json=job).raise_for_status().json()["id"] for _ in range(jobs)]
    return lambda: [http.get(f"/v1/videos/{one}").raise_for_status().json()["status"] for one in made]


def test_a_killed_replica_costs_no_answer_a_token(server: Server) -> None:
    before = server.metric("moray_resumed_total", tier="turbo")
    wholes = [Told(server, "turbo", 300, seed, stream=False) for seed in range(6, 12)]
    streams = several(server, "turbo", 300, range(6))
    eventually(lambda: running(server, "turbo") == 12, QUIET_S, "all run")
    lost = streams[0].replica
    process_of(server, "turbo", lost).kill()
    assert_resumed_once(streams, lost)
    assert {told.unbroken().last_replica for told in wholes}.isdisjoint({lost})
    resumed = sum(told.resumed for told in (*streams, *wholes))
    assert server.metric("moray_resumed_total", tier="turbo") - before == resumed
    assert max(told.resumed for told in wholes) <= 1
    eventually(lambda: complete(server, "turbo"), BACK_S, "three again")


def test_streams_of_a_replica_that_hangs_go_on_elsewhere_and_serve_replaces_it(server: Server) -> None:
    streams = several(server, "turbo", 300, range(6))
    lost = streams[0].replica
    hung = process_of(server, "turbo", lost)
    hung.suspend()
    try:
        assert_resumed_once(streams, lost)
        eventually(lambda: not hung.is_running() or hung.status() == psutil.STATUS_ZOMBIE, BACK_S, "it is ended")
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            hung.resume()
    eventually(lambda: complete(server, "turbo"), BACK_S, "three again")


@contextlib.contextmanager
def slowed(process: psutil.Process) -> Iterator[None]:
    """It runs for a tenth of the time."""
    stop = threading.Event()

    def beat() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            while not stop.is_set():
                process.suspend()
                stop.wait(0.18)
                process.resume()
                stop.wait(0.02)

    beating = threading.Thread(target=beat, daemon=True)
    beating.start()
    try:
        yield
    finally:
        stop.set()
        beating.join()


def test_no_request_fails_while_one_replica_is_ten_times_slower_and_later_ones_go_elsewhere(server: Server) -> None:
    streams = several(server, "turbo", 300, range(6))
    slow = streams[0].replica
    with slowed(process_of(server, "turbo", slow)):
        for told in streams:
            told.unbroken()
        later = [told.unbroken() for _ in range(4) for told in several(server, "turbo", 50, range(6))]
    assert sum(told.last_replica == slow for told in later) < len(later) / REPLICAS["turbo"] / 2
    eventually(lambda: complete(server, "turbo"), BACK_S, "three")


def test_a_killed_gateway_breaks_off_its_streams_and_leaves_nothing_behind(server: Server) -> None:
    hit = [Told(server, tier, 1500).begun() for tier in ("turbo", "pro")]
    (gateway,) = server.gateways()
    gateway.kill()
    for told in hit:
        assert isinstance(told.ended().broke, httpx.RemoteProtocolError), "it ended as if the answer were whole"
        assert simulated(1, 1500).startswith(told.text)
    for tier in ("turbo", "pro"):
        eventually(partial(serves, server, tier), RESTART_S, f"{tier} serves again")
        eventually(partial(idle, server, tier), RESTART_S, f"the engines of {tier} are free")
        assert server.metric("moray_ongoing_requests", tier=tier) == 0


def test_without_serves_controller_requests_go_on_and_scaling_works_once_it_is_back(server: Server) -> None:
    streams = several(server, "turbo", 600, range(3))
    (controller,) = server.processes("ray::ServeController")
    controller.kill()
    for told in several(server, "turbo", 20, range(3, 6)):
        told.unbroken()
    assert [told.unbroken().resumed for told in streams] == [0, 0, 0]
    eventually(lambda: server.processes("ray::ServeController"), RESTART_S, "another controller")
    assert whole(server, "ultra", 5) == simulated(1, 5)
    assert complete(server, "turbo")


def test_workers_give_their_gpus_to_a_group_that_wakes_and_their_jobs_go_on_afterwards(server: Server) -> None:
    eventually(lambda: not server.replicas("ultra"), BACK_S, "ultra sleeps")
    before = {name: server.metric(name) for name in ("moray_video_steps_total", "moray_video_preemptions_total")}
    states = render(server, JOBS)
    eventually(lambda: states().count("in_progress") == 5, BACK_S, "five workers at work")
    held: list[float] = []
    told = Told(server, "ultra", 20)

    def ended(done: Callable[[], bool]) -> bool:
        held.append(server.metric("moray_gpus_held"))
        return done()

    eventually(partial(ended, lambda: not told.is_alive()), BACK_S, "ultra answers")
    told.unbroken()
    eventually(partial(ended, lambda: set(states()) == {"completed"}), BACK_S, "all are rendered")
    assert max(held) <= NODES * GPUS
    grown = {name: server.metric(name) - was for name, was in before.items()}
    assert grown["moray_video_preemptions_total"] >= 4, "ultra has a whole node"
    assert grown["moray_video_steps_total"] == JOBS * STEPS, "steps were rendered twice"


def test_the_lower_priority_is_refused_first_and_nobody_is_cut_off(server: Server) -> None:
    keys = {
        plan: json.loads(server.moray("keys", "create", plan, "--plan", plan, "--json").stdout)[0]["key"]
        for plan in ("gold", "free")
    }
    free = [Told(server, "narrow", 200, seed, key=keys["free"]) for seed in range(20)]
    eventually(lambda: server.metric("moray_admissions_total", tier="narrow", action="refuse"), QUIET_S, "overload")
    gold = [Told(server, "narrow", 200, seed, key=keys["gold"]) for seed in range(20, 24)]
    for told in gold:
        told.unbroken()
    refused = [told for told in free if told.ended().code]
    assert refused
    for told in free:
        if told in refused:
            assert (told.code, told.text) == ("overloaded", "")
            assert int(told.retry_after) >= 1
        else:
            told.unbroken()


def test_a_replica_that_leaves_finishes_its_streams(server: Server) -> None:
    streams = several(server, "turbo", 1500, range(6))

    def fewer(raw: dict[str, Any]) -> None:
        raw["tiers"]["turbo"]["replicas"] |= {"min": 2, "max": 2, "initial": 2}

    server.edit(fewer)
    eventually(lambda: server.metric("moray_replicas", tier="turbo", state="draining"), BACK_S, "one drains")
    assert [told.unbroken().resumed for told in streams] == [0] * 6
    eventually(lambda: len(server.replicas("turbo")) == 2, BACK_S, "two are left")


def test_a_lost_node_costs_no_answer_and_no_video(server: Server) -> None:
    states = render(server, 1)
    eventually(lambda: states() == ["in_progress"], BACK_S, "a worker at work")
    (worker,) = server.workers()
    streams = {tier: several(server, tier, 600, range(6)) for tier in ("pro", "turbo")}
    raylet = psutil.Process(worker.ppid())  # a node's raylet is the parent of all that runs there
    (lost,) = [process for process in server.replicas("pro") if process.ppid() == raylet.pid]
    on_it = [told for told in streams["pro"] if process_of(server, "pro", told.replica) == lost]
    assert on_it
    for process in (raylet, *raylet.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    for told in (*streams["pro"], *streams["turbo"]):
        told.unbroken()
    assert [told.resumed for told in streams["pro"]] == [int(told in on_it) for told in streams["pro"]]
    eventually(lambda: states() == ["completed"], BACK_S, "the video is rendered")
    for tier, count in {"pro": 2, "turbo": 2, "narrow": 1}.items():
        eventually(partial(_has, server, tier, count), BACK_S, f"{tier} is back")
        assert serves(server, tier)


def _has(server: Server, tier: str, replicas: int) -> bool:
    return len(server.replicas(tier)) == replicas
