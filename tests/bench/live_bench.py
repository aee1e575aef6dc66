"""The live cluster and its twin on the same minutes: GPU-seconds and promises kept, measured and rehearsed.

A public trace, compressed, is sent to `moray up` on a small simulated family whose control loop scales it; then the
twin is given the same arrivals, the same parameters, and the cold start that was measured. The gaps say how far
rehearsals can be believed.
"""

import json
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from bench.live_world import Watch, plain, sent, served, tier

from autoscaling import policy
from autoscaling.parameters import Parameters
from autoscaling.signals import spec_of
from autoscaling.twin import Scenario, rehearse
from cluster import routing
from cluster.family import Family, Plan
from cluster.traces import parse_azure
from cluster.workload import Workload, merge, taken, window
from deployments.simulate_cluster import started_in
from deployments.trace_files import lines

FILE = "azure2023_code.csv.gz"
NODES, GPUS_PER_NODE = 2, 8
SPEED = 2.0  # the trace has 2.6 requests per second
MINUTES = 10.0
QUICK_MINUTES = 2.0
START_S = 600.0
SHARES = {"turbo": 0.7, "pro": 0.3}
TIERS = {"turbo": tier("turbo", quality=1), "pro": tier("pro", quality=2)}
AIM = {"gpu_s_gap": 0.1, "attainment_gap": 0.02, "broken": 0}


def run(traces: str, quick: bool = False, seeds: int = 1) -> dict[str, Any]:
    runs = [_once(Path(traces), QUICK_MINUTES if quick else MINUTES, seed) for seed in range(seeds)]
    figures = {name: statistics.median(abs(each["gaps"][name]) for each in runs) for name in ("gpu_s", "attainment")}
    found = {f"{name}_gap": round(value, 4) for name, value in figures.items()}
    found["broken"] = sum(each["broken"] for each in runs)
    met = all(found[name] <= aim for name, aim in AIM.items())
    return {"figures": found, "aim": AIM, "met": met, "runs": seeds, "table": runs}


def _once(folder: Path, minutes: float, seed: int) -> dict[str, Any]:
    parts = _parts(folder, minutes, seed)
    with tempfile.TemporaryDirectory() as scratch, served(TIERS, NODES, GPUS_PER_NODE) as (server, family):
        words = [word for name, part in parts.items() for word in ("--trace", _written(part, name, Path(scratch)))]
        with Watch(server) as watch:
            found = sent(server, *words, "--seed", str(seed))
        begun_s = found["began_unix_s"]
        gpu_s = watch.at("moray_gpu_seconds_total", begun_s + found["span_s"]) - watch.at(
            "moray_gpu_seconds_total", begun_s
        )
    cold_start_s = watch.cold_start_s(begun_s)
    twin = _twin(family, merge(*parts.values()), cold_start_s, seed)
    live = {"gpu_s": round(gpu_s, 1), "attainment": found["all"]["attainment"]}
    gaps = {
        "gpu_s": round(gpu_s / twin["gpu_s"] - 1, 4),
        "attainment": round(live["attainment"] - twin["attainment"], 4),
    }
    result = {
        "live": live | plain(found),
        "twin": twin,
        "gaps": gaps,
        "broken": sum(found["all"]["failed"].values()),
        "cold_start_s": {"mean": cold_start_s, "told_by_replicas": watch.start_s()},
        "looks_missed": watch.missed,
        "replicas_most": max((one.total("moray_replicas_running") or 0 for one in watch.looks), default=0),
    }
    print(json.dumps(result), file=sys.stderr, flush=True)
    return result


def _parts(folder: Path, minutes: float, seed: int) -> dict[str, Workload]:
    """By tier, at the times at which they are sent."""
    path = folder / FILE
    whole = window(parse_azure(lines(path), str(path)), START_S, minutes * 60 * SPEED)
    drawn = np.random.default_rng(seed).choice(len(SHARES), len(whole), p=list(SHARES.values()))
    whole = replace(whole, arrival_s=whole.arrival_s / SPEED)
    return {
        name: replace(taken(whole, np.flatnonzero(drawn == number)), models=(name,))
        for number, name in enumerate(SHARES)
    }


def _written(part: Workload, name: str, folder: Path) -> str:
    file = folder / f"{name}.csv"
    rows = zip(part.arrival_s.tolist(), part.prompt_tokens.tolist(), part.output_tokens.tolist(), strict=True)
    text = "\n".join(f"{at:.6f},{prompt},{output}" for at, prompt, output in rows)
    file.write_text(f"t_s,input_tokens,output_tokens\n{text}\n", encoding="utf-8")
    return f"{name}=azure:{file}"


def _twin(family: Family, requests: Workload, cold_start_s: float | None, seed: int) -> dict[str, Any]:
    family = family if cold_start_s is None else started_in(family, cold_start_s)
    plan = Plan(tiers=tuple(family.tiers), spill="none")  # as a key without a plan is treated
    scenario = Scenario(
        family=family,
        gpus=family.gpu_budget_gpus,
        seed=seed,
        plans=dict.fromkeys(requests.tenants, plan),
    )
    scaler = policy.scaler(spec_of(family), Parameters())
    figures = rehearse(scenario, requests, None, scaler, routing.choose).figures
    return {
        "gpu_s": round(figures.gpu_hours * 3600, 1),
        "attainment": figures.attainment,
        "completed": figures.completed,
        "rejected": dict(figures.rejected),
        "failed": dict(figures.failed),
        "spilled": figures.spilled,
        "ttft_p50_s": figures.ttft_p50_s,
        "ttft_p99_s": figures.ttft_p99_s,
        "tpot_p99_ms": figures.tpot_p99_ms,
    }
