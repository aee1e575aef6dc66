"""All processes of one node killed under full load: what clients see, and how long until the replicas are back."""

import contextlib
import json
import sys
import threading
import time
from typing import Any

import psutil
from bench.live_world import WATCH_S, Watch, fixed, plain, sent, served, tier
from integration.server import Server

from cluster.cost import fluid_rps

NODES, GPUS_PER_NODE = 3, 4
REPLICAS = 6
PROMPT, OUTPUT = 200, 200  # streams of some seconds: many are under way
LOAD = 0.7  # of the fluid bound of all replicas: nearly all that promises allow
SECONDS, LOST_AT_S = 60.0, 20.0
BACK_LIMIT_S = 120.0
AIM = {"broken": 0, "pause_s": 10.0, "back_s": 60.0}


def run(quick: bool = False) -> dict[str, Any]:
    seconds = 30.0 if quick else SECONDS
    with served({"turbo": tier("turbo", replicas=fixed(REPLICAS))}, NODES, GPUS_PER_NODE) as (server, family):
        rate_rps = LOAD * fluid_rps(family.tiers["turbo"], PROMPT, OUTPUT) * REPLICAS
        words = ("--synthetic", f"{rate_rps:.3f}:{PROMPT}:{OUTPUT}", "--duration-s", f"{seconds:g}")
        killed: dict[str, Any] = {}
        timer = threading.Timer(LOST_AT_S, lambda: killed.update(_kill(server)))
        with Watch(server) as watch:
            timer.start()
            found = sent(server, *words)
            timer.join()
            while (back_s := _back_s(watch, killed["unix_s"])) is None and time.time() < killed[
                "unix_s"
            ] + BACK_LIMIT_S:
                time.sleep(WATCH_S)
    figures = {
        "broken": sum(found["all"]["failed"].values()),
        "pause_s": round(found["all"]["pause_s"]["max"], 3),
        "back_s": back_s,
    }
    met = all((value := figures[name]) is not None and value <= aim for name, aim in AIM.items())
    running = [
        (round(look.unix_s - killed["unix_s"], 1), look.total("moray_replicas_running"))
        for look in watch.looks
        if look.unix_s > killed["unix_s"]
    ]
    table = {
        "running": running,
        "killed": killed,
        "load": plain(found),
        "rate_rps": round(rate_rps, 2),
        "looks_missed": watch.missed,
    }
    print(json.dumps(table), file=sys.stderr, flush=True)
    return {"figures": figures, "aim": AIM, "met": met, "runs": 1, "table": table}


def _kill(server: Server) -> dict[str, Any]:
    """The node that holds the most replicas and is not the head: its raylet and all that descends from it."""
    nodes = [each for each in server.processes() if _raylet(each)]
    if not nodes:
        raise RuntimeError("no node beside the head: `moray up --nodes` did not start any")
    victim = max(nodes, key=lambda node: len(_replicas(node)))
    doomed = [victim, *victim.children(recursive=True)]
    found = {"unix_s": time.time(), "processes": len(doomed), "replicas": len(_replicas(victim))}
    for process in doomed:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return found


def _raylet(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.name() == "raylet" and "--head" not in process.cmdline()
    return False


def _replicas(node: psutil.Process) -> list[psutil.Process]:
    return [each for each in node.children(recursive=True) if " ".join(each.cmdline()).startswith("ray::ServeReplica")]


def _back_s(watch: Watch, killed_unix_s: float) -> float | None:
    """From the loss until the gateway may send to as many replicas as before; None where that was not seen.

    Looks come each second, so neither end is sharper.
    """
    after = [look for look in watch.looks if look.unix_s > killed_unix_s]
    count = [look.total("moray_replicas_running") or 0.0 for look in after]
    fell = next((number for number, running in enumerate(count) if running < REPLICAS), None)
    if fell is None:
        return None
    return next(
        (
            round(look.unix_s - killed_unix_s, 1)
            for look, running in zip(after[fell:], count[fell:], strict=True)
            if running >= REPLICAS
        ),
        None,
    )
