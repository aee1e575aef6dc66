"""Live servers of the benchmarks: a small simulated family, `moray up` on it, `moray load` against it, and a watch.

Engines compute nothing, they keep time; the processes, the network, the router and the control loop are real.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from integration.server import Server, free_port
from prometheus_client.parser import text_string_to_metric_families

from cluster.family import Family, load

WATCH_S = 1.0
STARTING, READY = "starting", "ready"  # samples of moray_replicas go by their state
LIMIT_S = 1800
COST = {
    "a_ms": 30,
    "b_ms_per_seq": 1,
    "c_ms_per_ktok": 0.1,
    "prefill_us_per_token": {64: 80},
    "source": "none: a benchmark's",
}


def tier(name: str, **changes: Any) -> dict[str, Any]:
    """A replica sustains about 3 requests per second of 2,000 prompt and 28 output tokens."""
    return {
        "names": [name],
        "checkpoint": "none",
        "engine": "simulated",
        "context_tokens": 16_384,
        "kv_tokens": 400_000,
        "max_running": 64,
        "max_waiting": 256,
        "slo": {"ttft_s": 3, "tpot_ms": 120},
        "patience_s": 10,
        "price": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2},
        "replicas": {"min": 1, "max": 6, "initial": 2, "idle_s": 600},
        "cost": COST,
        **changes,
    }


def fixed(replicas: int) -> dict[str, int]:
    return {"min": replicas, "max": replicas, "initial": replicas}


@contextlib.contextmanager
def served(
    tiers: Mapping[str, dict[str, Any]],
    nodes: int,
    gpus_per_node: int,
    video: dict[str, Any] | None = None,
    plans: Mapping[str, dict[str, Any]] | None = None,
) -> Iterator[tuple[Server, Family]]:
    """A family of these tiers, ready on so many nodes of this machine."""
    with tempfile.TemporaryDirectory(prefix="b-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        port, file = free_port(), Path(folder) / "family.yaml"
        cell = {"name": "here", "gpus": gpus_per_node}
        raw = {
            "name": "bench",
            "accelerator": "cpu",
            "gpu_budget_gpus": nodes * gpus_per_node,
            "state_folder": str(Path(folder) / "state"),
            "gateway": {"port": port},
            "cells": [cell if nodes == 1 else cell | {"count": nodes}],
            "tiers": dict(tiers),
            "video": video,
            "plans": dict(plans or {}),
        }
        file.write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
        server = Server(file, port, Path(folder), *(("--nodes", str(nodes)) if nodes > 1 else ()))
        try:
            yield server.ready(), load(file)
            server.interrupt()
            server.wait(60)
        finally:
            server.destroy()


def sent(server: Server, *words: str) -> dict[str, Any]:
    """What `moray load --json` says, and its records as "answers"."""
    records, key = server.scratch / "records.jsonl", server.scratch / "key.txt"
    key.write_text(server.key, encoding="utf-8")
    command = [sys.executable, "-m", "deployments.cli", "load", "--url", server.url, "--key", str(key)]
    done = subprocess.run(
        [*command, *words, "--json", "--records", str(records)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=LIMIT_S,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    found["answers"] = [json.loads(line) for line in records.read_text("utf-8").splitlines()]
    print(json.dumps({key: found[key] for key in ("all", "send_late_s", "warning")}), file=sys.stderr, flush=True)
    return found


def plain(found: Mapping[str, Any]) -> dict[str, Any]:
    """What of a load's report a benchmark prints."""
    keys = ("requests", "completed", "refused", "failed", "attainment", "ttft_s", "tpot_ms", "pause_s", "resumed")
    shown = {key: found["all"][key] for key in (*keys, "spilled")}
    return shown | {"send_late_s": found["send_late_s"], "warning": found["warning"]}


def goodput_rps(found: Mapping[str, Any]) -> float:
    """Requests per second that kept their promises, over the time in which they came."""
    return float(found["all"]["attainment"] * found["all"]["requests"] / found["span_s"])


def tree(server: Server) -> list[psutil.Process]:
    """All processes of the server, once each."""
    return list({process.pid: process for process in server.processes()}.values())


def memory_mb(server: Server) -> dict[str, float]:
    """Proportional and resident set size of the whole tree."""
    found = {"pss": 0.0, "rss": 0.0}
    for process in tree(server):
        with contextlib.suppress(psutil.Error):
            info = process.memory_full_info()
            found["pss"] += info.pss / 1e6
            found["rss"] += info.rss / 1e6
    return {name: round(value, 1) for name, value in found.items()}


def cpu_s(server: Server) -> float:
    """Of live processes; what ended before is not in it."""
    total = 0.0
    for process in tree(server):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One scrape. Gauges and counters are summed over what their samples differ in beside the tier."""

    unix_s: float
    values: Mapping[tuple[str, str], float]
    start_s: tuple[float, ...]

    def total(self, name: str) -> float | None:
        found = [value for (metric, _), value in self.values.items() if metric == name]
        return sum(found) if found else None


WATCHED = ("moray_gpu_seconds_total", "moray_gpus_held", "moray_replicas_running", "moray_replicas")


@dataclass(slots=True)
class Watch:
    """Scrapes the server every second in a thread."""

    server: Server
    looks: list[Look] = field(default_factory=list)
    missed: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Watch":
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with httpx.Client(base_url=self.server.url, timeout=10) as client:
            while not self._stop.wait(WATCH_S):
                try:
                    self.looks.append(look(client.get("/metrics").raise_for_status().text, time.time()))
                except httpx.HTTPError:
                    self.missed += 1

    _thread: threading.Thread = field(init=False)

    def at(self, name: str, unix_s: float) -> float:
        """The counter at that time, between two looks in proportion. Raises RuntimeError where it was never seen."""
        known = [(one.unix_s, value) for one in self.looks if (value := one.total(name)) is not None]
        if not known:
            raise RuntimeError(f"{name}: never seen in {len(self.looks)} looks at {self.server.url}/metrics")
        before = [point for point in known if point[0] <= unix_s] or known[:1]
        after = [point for point in known if point[0] > unix_s] or known[-1:]
        (from_s, low), (to_s, high) = before[-1], after[0]
        return low if to_s <= from_s else low + (high - low) * (unix_s - from_s) / (to_s - from_s)

    def start_s(self) -> list[float]:
        """Distinct start times that replicas told of themselves: from their construction on."""
        return sorted({value for one in self.looks for value in one.start_s})

    def cold_start_s(self, begun_unix_s: float) -> float | None:
        """Mean time from the wish for a replica until it was ready, by Little's law: replica-seconds of starting ones

        over the starts that were seen. None where there was none.
        """
        known = [look for look in self.looks if look.unix_s >= begun_unix_s]
        waited_s, starts = 0.0, 0.0
        for one, other in pairwise(known):
            waited_s += (one.total(STARTING) or 0.0) * (other.unix_s - one.unix_s)
            starts += max(0.0, (other.total(READY) or 0.0) - (one.total(READY) or 0.0))
        return waited_s / starts if starts and waited_s else None


def look(page: str, unix_s: float) -> Look:
    values: dict[tuple[str, str], float] = {}
    start_s: list[float] = []
    for metric in text_string_to_metric_families(page):
        for sample in metric.samples:
            if sample.name in WATCHED:
                key = (sample.labels.get("state", sample.name), sample.labels.get("tier", ""))
                values[key] = values.get(key, 0.0) + sample.value
            elif sample.name == "moray_start_seconds" and sample.value > 0:
                start_s.append(round(sample.value, 3))
    return Look(unix_s=unix_s, values=values, start_s=tuple(start_s))
