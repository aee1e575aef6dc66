"""When a video job begins and ends, as far as the cost model and the replicas that there are can tell. Pure.

The queue is one line: the higher priority first, of those the one that is due sooner, of those the one that came first.
A replica has up to `concurrent` jobs under way, and k of them share it: each goes on at 1/k of its pace alone, which is
exact where a step's time is linear in its tokens (processor sharing). A job goes to the replica with the fewest.

Ignored: what a shared step saves, jobs that come later, replicas that come or leave, encoding and storing.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cluster.cost import video_step_s
from cluster.video import Video


@dataclass(frozen=True, slots=True, kw_only=True)
class JobAhead:
    """`left_s`: what a replica of its own would still need. `replica`: the one that it runs on, None while it waits."""

    job_id: str
    left_s: float
    due_s: float
    priority: int = 0
    replica: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """`position`: 1 for the job that begins next, 0 for one that runs. Seconds from now."""

    position: int
    begins_s: float
    ends_s: float


def urgency(priority: int, due_s: float) -> tuple[int, float]:
    """Sorts jobs as they are to begin, where the sort is stable and they lie as they came."""
    return -priority, due_s


def left_s(video: Video, size: str, frames: int, steps: int) -> float:
    """Seconds of so many denoising steps on one replica that does nothing else."""
    return steps * video_step_s(video, size, frames / video.fps)


def outlooks(
    jobs: Iterable[JobAhead], replicas: Sequence[str], concurrent: int, start_s: float = 0.0
) -> dict[str, Outlook]:
    """By job. Where there is no replica, one begins in `start_s` seconds and takes all."""
    line = sorted(jobs, key=lambda job: urgency(job.priority, job.due_s))
    running = [job for job in line if job.replica in replicas]
    waiting = [job for job in line if job.replica not in replicas]
    names, now_s = (list(replicas), 0.0) if replicas else ([""], start_s)
    found = {job.job_id: (0, 0.0) for job in running}
    shares = {name: {job.job_id: job.left_s for job in running if job.replica == name} for name in names}
    ends: dict[str, float] = {}
    for position, job in enumerate(waiting, start=1):
        while min(map(len, shares.values())) >= concurrent:
            now_s = _next_end(shares, ends, now_s)
        fewest = min(shares.values(), key=lambda share: (len(share), sum(share.values())))
        fewest[job.job_id] = job.left_s
        found[job.job_id] = position, now_s
    while any(shares.values()):
        now_s = _next_end(shares, ends, now_s)
    return {
        job_id: Outlook(position=position, begins_s=begins_s, ends_s=ends[job_id])
        for job_id, (position, begins_s) in found.items()
    }


def _next_end(shares: dict[str, dict[str, float]], ends: dict[str, float], now_s: float) -> float:
    """Goes to the time when the next job ends, which is told in `ends`, and with it those that end with it."""
    passed_s = min((min(share.values()) * len(share) for share in shares.values() if share), default=math.inf)
    for share in shares.values():
        for job_id in list(share):
            share[job_id] -= passed_s / len(share)
        for job_id in [job_id for job_id, left in share.items() if left <= 1e-9 * max(1.0, passed_s)]:
            del share[job_id]
            ends[job_id] = now_s + passed_s
    return now_s + passed_s
