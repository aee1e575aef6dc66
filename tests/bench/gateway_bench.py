"""What the gateway costs: CPU per request and added TTFT, beside a two-hop Ray Serve application and a plain relay.

Same simulated engine behind all (a step each 10 ms, 64 tokens; the first comes 10 to 20 ms after the request, by the
phase of the step), one cluster at a time, in HAProxy and throughput mode. CPU is that of the server's whole process
tree, engine included, over the time of the load. Passes are interleaved; medians.
"""

import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import psutil

from deployments.local import free_ports

HERE = Path(__file__).parent
TARGETS = ("direct", "relay", "two_hop", "moray", "streamed")
OURS = ("moray", "streamed")
STREAMS = (1, 64, 256)
PASSES = 3
SECONDS = 8
TOKENS = 64
WARM_UP_S = 2
AIM = {
    "cpu_vs_two_hop_at_64": 0.65,
    "cpu_vs_two_hop_at_256": 0.5,
    "cpu_vs_relay_at_256": 1.3,
    "cpu_vs_relay_at_64": 1.3,
    "added_ttft_p50_ms_at_64": 3,
    "added_ttft_p99_ms_at_64": 12,
    "broken": 0,
}


def run() -> dict[str, Any]:
    """`met` only where every figure keeps its aim."""
    passes = [measure(target) for number in range(PASSES) for target in (TARGETS, TARGETS[::-1])[number % 2]]
    table = {f"{t}_{s}": _median([p["rows"][s] for p in passes if p["target"] == t]) for t in TARGETS for s in STREAMS}
    figures = {
        "cpu_vs_two_hop_at_64": _ratio(table, "two_hop", 64),
        "cpu_vs_two_hop_at_256": _ratio(table, "two_hop", 256),
        "cpu_vs_relay_at_64": _ratio(table, "relay", 64),
        "cpu_vs_relay_at_256": _ratio(table, "relay", 256),
        "added_ttft_p50_ms_at_64": table["moray_64"]["ttft_p50_ms"] - table["direct_64"]["ttft_p50_ms"],
        "added_ttft_p99_ms_at_64": table["moray_64"]["ttft_p99_ms"] - table["direct_64"]["ttft_p99_ms"],
        "broken": sum(row["broken"] for p in passes if p["target"] in OURS for row in p["rows"].values()),
    }
    met = all(figures[name] <= aim for name, aim in AIM.items())
    spread = {name: [row["cpu_ms_min"], row["cpu_ms_max"]] for name, row in table.items()}
    return {"figures": figures, "aim": AIM, "met": met, "runs": PASSES, "spread": {"cpu_ms": spread}, "table": table}


def measure(target: str) -> dict[str, Any]:
    """One server, started for this, under each number of streams in turn."""
    port = free_ports(1)[0]
    server = subprocess.Popen(
        [sys.executable, str(HERE / "gateway_targets.py"), target, str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        key = ready(server, target, port)
        load(port, key, 64, WARM_UP_S)
        rows = {}
        for streams in STREAMS:
            before = cpu_s(tree(server.pid))
            result = load(port, key, streams, SECONDS)
            result["cpu_ms"] = since_s(before) * 1e3 / max(1, result["finished"])
            rows[streams] = result
        print(target, json.dumps(rows), file=sys.stderr, flush=True)
        return {"target": target, "rows": rows}
    finally:
        server.terminate() if target == "direct" else server.communicate("")
        server.wait()


def ready(server: "subprocess.Popen[str]", target: str, port: int) -> str:
    """The key to use, once the server answers."""
    if target != "direct":
        assert server.stdout is not None
        for line in server.stdout:
            if line.startswith('{"ready"'):
                return str(json.loads(line)["key"])
        raise RuntimeError(f"{target} did not start")
    with httpx.Client(transport=httpx.HTTPTransport(retries=50)) as client:
        client.get(f"http://127.0.0.1:{port}/health")
    return ""


def load(port: int, key: str, streams: int, seconds: float) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "load_client.py"), f"http://127.0.0.1:{port}", key or "none"]
    done = subprocess.run(
        [*command, str(streams), str(seconds), str(TOKENS)], capture_output=True, text=True, check=True
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def tree(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def cpu_s(processes: Iterable[psutil.Process]) -> dict[psutil.Process, float]:
    """Of each that there is."""
    found = {}
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            found[process] = times.user + times.system
    return found


def since_s(before: dict[psutil.Process, float]) -> float:
    """CPU time of those that are still there."""
    return sum(now_s - before[process] for process, now_s in cpu_s(before).items())


def _median(rows: list[dict[str, Any]]) -> dict[str, float]:
    cpu = [row["cpu_ms"] for row in rows]
    return {
        "cpu_ms_per_request": round(statistics.median(cpu), 2),
        "cpu_ms_min": round(min(cpu), 2),
        "cpu_ms_max": round(max(cpu), 2),
        "ttft_p50_ms": round(statistics.median(row["ttft_ms"]["p50"] for row in rows), 2),
        "ttft_p99_ms": round(statistics.median(row["ttft_ms"]["p99"] for row in rows), 2),
        "lag_p99_ms": round(statistics.median(row["lag_ms"]["p99"] for row in rows), 2),
        "requests_per_s": round(statistics.median(row["finished"] / row["seconds"] for row in rows), 1),
    }


def _ratio(table: dict[str, dict[str, float]], other: str, streams: int) -> float:
    ours, theirs = table[f"moray_{streams}"], table[f"{other}_{streams}"]
    return round(ours["cpu_ms_per_request"] / theirs["cpu_ms_per_request"], 3)
