"""Short jobs beside long ones, in a whole replica: up to its own number of jobs together, against one after the other.

Both get the same jobs at the same times, from one line in the order of arrival; only `concurrent` differs. Times are
from arrival to the stored, signed file; encoding is in both, and so is what a step shares. Arrivals are Poisson, so
dense that one after the other could serve them in LOAD of the time.
"""

import asyncio
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from video_replica import asked, replica, video

from cluster.cost import video_step_s
from deployments.video.messages import Asked, Rendered

SHORT: dict[str, Any] = {"width": 64, "height": 64, "frames": 8, "steps": 12}
LONG: dict[str, Any] = {"width": 96, "height": 64, "frames": 16, "steps": 80}
LONG_SHARE, LOAD, JOBS, SEED = 0.25, 0.9, 24, 7
COST = {"base_s": 0.016, "linear_s_per_mtok": 100.0, "quadratic_s_per_mtok2": 0.0, "source": "the benchmark's own"}
AIM = 1.5


def run(quick: bool) -> dict[str, Any]:
    jobs = _jobs(JOBS // 2 if quick else JOBS)
    one = asyncio.run(_served(jobs, 1))
    together = asyncio.run(_served(jobs, video().concurrent))
    return {
        "one_after_the_other_mean_s": round(statistics.fmean(one), 3),
        "together_mean_s": round(statistics.fmean(together), 3),
        "times_better": round(statistics.fmean(one) / statistics.fmean(together), 2),
        "longest_s": [round(max(one), 3), round(max(together), 3)],
        "load": f"{len(jobs)} jobs, a quarter of {LONG['steps']} steps, others of {SHORT['steps']}, simulated steps of "
        f"{1e3 * min(map(_step_s, jobs)):.0f} and {1e3 * max(map(_step_s, jobs)):.0f} ms, {LOAD:.0%} busy",
    }


def _jobs(count: int) -> list[tuple[float, Asked]]:
    """When they come, seconds from the start."""
    draw = random.Random(SEED)
    given = [asked(f"video_{at}", **(LONG if draw.random() < LONG_SHARE else SHORT)) for at in range(count)]
    work_s = statistics.fmean(each.spec.steps * _step_s((0, each)) for each in given)
    at_s, jobs = 0.0, []
    for each in given:
        jobs.append((at_s, each))
        at_s += draw.expovariate(LOAD / work_s)
    return jobs


def _step_s(job: tuple[float, Asked]) -> float:
    spec = job[1].spec
    return video_step_s(video(cost=COST), f"{spec.width}x{spec.height}", spec.frames / spec.fps)


async def _served(jobs: list[tuple[float, Asked]], concurrent: int) -> list[float]:
    """Seconds of each from arrival to its end."""
    with tempfile.TemporaryDirectory() as folder:
        worker = replica(Path(folder), cost=COST, concurrent=concurrent)
        await worker.load()
        line = asyncio.Semaphore(concurrent)  # wakes in the order in which they came

        async def one(at_s: float, job: Asked) -> float:
            await asyncio.sleep(at_s)
            start_s = time.perf_counter()
            async with line:
                *_, last = [news async for news in worker.render(job)]
            assert last == Rendered(signed=True, simulated=True)
            return time.perf_counter() - start_s

        return list(await asyncio.gather(*(one(*job) for job in jobs)))
