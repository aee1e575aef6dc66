"""What a rehearsal shows: the figures of one run, and its course over time for plots."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.workload import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One run. Every request ends as completed, rejected or failed; attainment and bad minutes count all of them.

    `attainment`: share of requests with TTFT and TPOT both kept (NaN without requests, likewise the percentiles).
    `bad_minutes`: share of minutes (by arrival, of those with requests) with over 5 % misses. `gpu_hours` counts from
    the order of a replica, once a node has room for it, to the end of its drain, within the horizon of the twin;
    `gpu_hours_floor` is the fluid bound, which no policy can reach. `spilled`: completed by another tier than asked.
    """

    requests: int
    completed: int
    rejected: Mapping[str, int]
    failed: Mapping[str, int]
    attainment: float
    ttft_p50_s: float
    ttft_p99_s: float
    tpot_p50_ms: float
    tpot_p99_ms: float
    bad_minutes: float
    gpu_hours: float
    gpu_hours_floor: float
    spilled: int
    jobs: int
    jobs_in_time: int
    cost_usd: float
    value_usd: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Course:
    """Samples at each control tick: `replicas` ready per tier (and "video"), `gpus` held by all; misses per minute."""

    now_s: Floats
    arrivals_per_s: Mapping[str, Floats]
    replicas: Mapping[str, Floats]
    held: Mapping[str, Floats]
    gpus: Floats
    minute_s: Floats
    missed_share: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """`tiers`: the figures of each tier alone, by the tier that was asked.

    Requests that no tier may serve (an unknown model, one outside the plan, a prompt too long) and the video jobs count
    in the whole alone.
    """

    figures: Figures
    course: Course
    tiers: Mapping[str, Figures] = field(default_factory=dict)
