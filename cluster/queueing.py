"""When a video job begins and ends, as far as the cost model and the replicas that there are can tell. Pure.

The queue is one line: the higher priority first, of those the one that is due sooner, of those the one that came first.
A replica has up to `concurrent` jobs under way and steps the one with the shortest time left, of those of the highest
priority (see steps.py). A job goes to the replica with the fewest.

Ignored: what a shared step saves, jobs that are pressed or starved, jobs that come later, replicas that come or leave,
encoding and storing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cluster.cost import video_step_s
from cluster.video import Video

_Left = tuple[int, float, str]  # rank of its priority, seconds, job: the least is at work


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
    shares: list[list[_Left]] = [[_left(job) for job in running if job.replica == name] for name in names]
    ends: dict[str, float] = {}
    for position, job in enumerate(waiting, start=1):
        while min(map(len, shares)) >= concurrent:
            now_s = _next_end(shares, ends, now_s)
        min(shares, key=lambda share: (len(share), sum(left for _, left, _ in share))).append(_left(job))
        found[job.job_id] = position, now_s
    while any(shares):
        now_s = _next_end(shares, ends, now_s)
    return {
        job_id: Outlook(position=position, begins_s=begins_s, ends_s=ends[job_id])
        for job_id, (position, begins_s) in found.items()
    }


def _left(job: JobAhead) -> _Left:
    return -job.priority, job.left_s, job.job_id


def _next_end(shares: list[list[_Left]], ends: dict[str, float], now_s: float) -> float:
    """Goes to the time when the next job ends, which is told in `ends`. Each replica is at the least of its share."""
    passed_s = min(min(share)[1] for share in shares if share)
    for share in filter(None, shares):
        rank, left, job_id = min(share)
        share.remove((rank, left, job_id))
        if left > passed_s:
            share.append((rank, left - passed_s, job_id))
        else:
            ends[job_id] = now_s + passed_s
    return now_s + passed_s
