"""Video replicas killed again and again under a long queue: each accepted job has one result, few steps are lost."""

import contextlib
import json
import random
import sys
import time
from collections import Counter
from typing import Any

import httpx
import psutil
from bench.live_world import fixed, served, tier
from integration.server import Server

JOBS, KILLS = 200, 20
REPLICAS, CONCURRENT = 4, 4
STEPS, STEP_S = 40, 0.1
LIMIT_S, LOOK_S = 1500.0, 1.0
AIM = {"results": 1.0, "twice": 0, "failed": 0, "lost_steps_per_cut_job": 1.0}
VIDEO = {
    "names": ["sora-2"],
    "checkpoint": "none",
    "engine": "simulated",
    "sizes": ["64x64"],
    "seconds": [1],
    "fps": 8,
    "steps": STEPS,
    "max_waiting": 2 * JOBS,
    "concurrent": CONCURRENT,
    "slo": {"deadline_s": 3600},
    "price": {"usd_per_second": 0.1},
    "replicas": fixed(REPLICAS),
    "cost": {"base_s": STEP_S, "linear_s_per_mtok": 0, "quadratic_s_per_mtok2": 0, "source": "none: a benchmark's"},
}


def run(quick: bool = False) -> dict[str, Any]:
    jobs, kills = (JOBS // 5, KILLS // 5) if quick else (JOBS, KILLS)
    with served({"mini": tier("mini", replicas=fixed(1))}, 1, REPLICAS + 1, VIDEO) as (server, _):
        http = server.http()
        asked = {"prompt": "a red circle"}
        made = [http.post("/v1/videos", json=asked).raise_for_status().json()["id"] for _ in range(jobs)]
        begun_s = time.monotonic()
        killed = _killed(server, kills, random.Random(1))
        states = Counter(_ended(http, each) for each in made)
        found = {name: server.metric(f"moray_video_{name}_total") for name in ("steps", "lost_steps", "resumed")}
        ends = server.metric("moray_video_jobs_finished_total")
        readable = sum(http.get(f"/v1/videos/{each}/content").status_code == 200 for each in made)
    figures = {
        "results": readable / jobs,
        "twice": int(ends) - jobs,
        "failed": states["failed"],
        "lost_steps_per_cut_job": round(found["lost_steps"] / max(1.0, found["resumed"]), 2),
    }
    met = figures["results"] == 1 and not figures["twice"] and not figures["failed"]
    table = {"jobs": jobs, "kills": killed, "seconds": round(time.monotonic() - begun_s, 1), **found}
    print(json.dumps(table), file=sys.stderr, flush=True)
    aimed = figures["lost_steps_per_cut_job"] <= AIM["lost_steps_per_cut_job"]
    return {"figures": figures, "aim": AIM, "met": met and aimed, "runs": 1, "table": table}


def _killed(server: Server, kills: int, rng: random.Random) -> int:
    """How many were: one whenever half of the replicas are there, as long as jobs are unfinished."""
    killed, end_s = 0, time.monotonic() + LIMIT_S
    while killed < kills and time.monotonic() < end_s and _unfinished(server):
        time.sleep(LOOK_S)
        workers = server.workers()
        if len(workers) >= REPLICAS // 2 and server.metric("moray_video_jobs", status="in_progress"):
            with contextlib.suppress(psutil.NoSuchProcess):
                rng.choice(workers).kill()
                killed += 1
    return killed


def _unfinished(server: Server) -> bool:
    return any(server.metric("moray_video_jobs", status=status) for status in ("queued", "in_progress"))


def _ended(http: httpx.Client, video_id: str) -> str:
    end_s = time.monotonic() + LIMIT_S
    while (status := http.get(f"/v1/videos/{video_id}").raise_for_status().json()["status"]) not in (
        "completed",
        "failed",
    ):
        if time.monotonic() > end_s:
            break
        time.sleep(LOOK_S)
    return str(status)
