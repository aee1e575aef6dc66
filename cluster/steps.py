"""Which jobs of a video replica take the next denoising step: one forward, which jobs of one key may share.

The lead is, of all jobs under way, the first there is of:

1. starved: no step for PATIENCE times the time of its own step; of those, who has waited longest
   then only jobs of the highest priority count:
2. pressed: it makes its deadline, but not after the job with the shortest time left; of those, the earliest deadline
3. the job with the shortest time left

Shortest remaining time first gives the least mean completion time on one machine (Schrage, 1968), earliest deadline
first meets every deadline that can be met (Liu and Layland, 1973); who is late already counts as 3. Pre-emption costs
nothing here: all jobs stay in memory, and a step is never cut off. Others of the lead's key join it, in the order of
priority, deadline and time left, as long as all their tokens fit.

So a job waits no longer than PATIENCE of its own steps and one step for each job under way, and a job that is served
only because it starved takes no more than 1 / (PATIENCE + 1) of the time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

PATIENCE = 16

Reason = Literal["starved", "pressed", "shortest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Underway:
    """A job between two steps. Jobs of equal `key` may share one.

    `tokens` and `step_s`: of one step of it alone. `left_gpu_s`: of all that are left. `since_s`: when its last step
    ended, or when it came; `deadline_s`: both on the caller's clock. The higher `priority` goes first.
    """

    job_id: str
    key: tuple[object, ...]
    tokens: int
    step_s: float
    left_gpu_s: float
    deadline_s: float
    since_s: float
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The lead is the first of `job_ids`; `reason` is why it leads."""

    job_ids: tuple[str, ...]
    reason: Reason


def choose(jobs: Sequence[Underway], now_s: float, *, max_tokens: int, gpus: int = 1) -> Choice:
    """`jobs`: at least one. A job that alone has more than `max_tokens` steps alone. `gpus` of the replica."""
    lead, reason = _lead(jobs, now_s, gpus)
    together, tokens = [lead], lead.tokens
    for job in sorted(jobs, key=lambda job: (-job.priority, *_urgency(job))):
        if job.key == lead.key and job is not lead and tokens + job.tokens <= max_tokens:
            together.append(job)
            tokens += job.tokens
    return Choice(job_ids=tuple(job.job_id for job in together), reason=reason)


def _lead(jobs: Sequence[Underway], now_s: float, gpus: int) -> tuple[Underway, Reason]:
    starved = [job for job in jobs if now_s - job.since_s >= PATIENCE * job.step_s]
    if starved and len(jobs) > 1:
        return min(starved, key=lambda job: (job.since_s, job.job_id)), "starved"
    highest = max(job.priority for job in jobs)
    urgent = [job for job in jobs if job.priority == highest]
    shortest = min(urgent, key=lambda job: (job.left_gpu_s, *_urgency(job)))
    pressed = [
        job
        for job in urgent
        if job is not shortest
        and 0 <= job.deadline_s - now_s - job.left_gpu_s / gpus < shortest.left_gpu_s / gpus
    ]  # fmt: skip
    if pressed and (first := min(pressed, key=_urgency)).deadline_s < shortest.deadline_s:
        return first, "pressed"
    return shortest, "shortest"


def _urgency(job: Underway) -> tuple[float, float, str]:
    return job.deadline_s, job.left_gpu_s, job.job_id
