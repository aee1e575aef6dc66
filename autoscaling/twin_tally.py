"""What became of every request, and the figures of a run from it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from autoscaling.report import Course, Figures
from cluster.family import Tier
from cluster.workload import Floats, Jobs, Workload

BAD_SHARE = 0.05  # misses in a minute that make it a bad one
Bools = NDArray[np.bool_]


@dataclass(slots=True)
class Tally:
    """By request: `asked`, `served` are indices into `tiers`, -1 where none; `end` is empty until it has ended.

    A request is paid for by the price of the tier that served it, or of the one asked where that is lower, and only
    where the promise of the one asked was kept.
    """

    workload: Workload
    tiers: Mapping[str, Tier]
    promised: list[tuple[float, float]] = field(init=False)  # ttft_s and tpot_ms, by tier
    ttft_s: list[float] = field(init=False)
    tpot_ms: list[float] = field(init=False)
    asked: list[int] = field(init=False)
    served: list[int] = field(init=False)
    end: list[str] = field(init=False)

    def __post_init__(self) -> None:
        requests = len(self.workload)
        self.promised = [(tier.slo.ttft_s, tier.slo.tpot_ms) for tier in self.tiers.values()]
        self.ttft_s, self.tpot_ms = [np.nan] * requests, [np.nan] * requests
        self.asked, self.served = [-1] * requests, [-1] * requests
        self.end = [""] * requests

    def kept(self, index: int) -> bool:
        """Of one that is complete."""
        ttft_s, tpot_ms = self.promised[self.asked[index]]
        return self.ttft_s[index] <= ttft_s and self.tpot_ms[index] <= tpot_ms

    def ended(self) -> "Ended":
        """Those that nobody has served by now never will be."""
        end = [end or "failed:never_served" for end in self.end]
        completed = np.array([name == "completed" for name in end], dtype=bool)
        asked, served = np.array(self.asked, dtype=int), np.array(self.served, dtype=int)
        ttft_s, tpot_ms = np.array(self.ttft_s), np.array(self.tpot_ms)
        promised = np.array(self.promised)[asked]
        prices = [(tier.price.input_usd_per_mtok, tier.price.output_usd_per_mtok) for tier in self.tiers.values()]
        usd = np.minimum(np.array(prices)[asked], np.array(prices)[served]) / 1e6
        kept = completed & (ttft_s <= promised[:, 0]) & (tpot_ms <= promised[:, 1])
        paid = usd[:, 0] * self.workload.prompt_tokens + usd[:, 1] * self.workload.output_tokens
        return Ended(
            arrival_s=self.workload.arrival_s,
            asked=asked,
            end=end,
            completed=completed,
            kept=kept,
            spilled=completed & (served != asked),
            ttft_s=ttft_s,
            tpot_ms=tpot_ms,
            value_usd=np.where(kept, paid, 0.0),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ended:
    """The tally as columns, by request."""

    arrival_s: Floats
    asked: NDArray[np.int_]
    end: Sequence[str]
    completed: Bools
    kept: Bools
    spilled: Bools
    ttft_s: Floats
    tpot_ms: Floats
    value_usd: Floats

    def figures(self, mine: Bools, gpu_hours: float, gpu_hours_floor: float, usd_per_gpu_hour: float) -> Figures:
        """Of some of the requests, and of the GPUs that they are charged with. See `with_video` for the jobs."""
        end = Counter(self.end[index] for index in np.flatnonzero(mine).tolist())
        completed, kept = self.completed & mine, self.kept[mine]
        return Figures(
            requests=len(kept),
            completed=int(completed.sum()),
            rejected=_reasons(end, "rejected:"),
            failed=_reasons(end, "failed:"),
            attainment=float(kept.mean()) if len(kept) else float("nan"),
            ttft_p50_s=_percentile(self.ttft_s[completed], 50),
            ttft_p99_s=_percentile(self.ttft_s[completed], 99),
            tpot_p50_ms=_percentile(self.tpot_ms[completed], 50),
            tpot_p99_ms=_percentile(self.tpot_ms[completed], 99),
            bad_minutes=_bad_minutes(self.arrival_s[mine], kept),
            gpu_hours=gpu_hours,
            gpu_hours_floor=gpu_hours_floor,
            spilled=int((self.spilled & mine).sum()),
            jobs=0,
            jobs_in_time=0,
            cost_usd=gpu_hours * usd_per_gpu_hour,
            value_usd=float(self.value_usd[mine].sum()),
        )


def with_video(figures: Figures, jobs: Jobs, finished_s: Mapping[int, float]) -> Figures:
    """The same with the video jobs in."""
    in_time = [job for job, at_s in finished_s.items() if at_s <= jobs.deadline_s[job]]
    value_usd = figures.value_usd + float(sum(jobs.value_usd[job] for job in in_time))
    return replace(figures, jobs=len(jobs), jobs_in_time=len(in_time), value_usd=value_usd)


@dataclass(frozen=True, slots=True)
class Sample:
    """At one tick, by tier: arrivals per second since the last, ready replicas, held requests; and GPUs held by all."""

    now_s: float
    arrivals_per_s: dict[str, float]
    ready: dict[str, float]
    held: dict[str, float]
    gpus: float


def course(samples: Sequence[Sample], ended: Ended) -> Course:
    """There is a sample at time 0 at least."""
    first = samples[0]
    minute_s, missed_share = _by_minute(ended.arrival_s, ended.kept)
    return Course(
        now_s=np.array([sample.now_s for sample in samples]),
        arrivals_per_s={
            name: np.array([sample.arrivals_per_s[name] for sample in samples]) for name in first.arrivals_per_s
        },
        replicas={name: np.array([sample.ready[name] for sample in samples]) for name in first.ready},
        held={name: np.array([sample.held[name] for sample in samples]) for name in first.held},
        gpus=np.array([sample.gpus for sample in samples]),
        minute_s=minute_s,
        missed_share=missed_share,
    )


def _reasons(end: Mapping[str, int], prefix: str) -> dict[str, int]:
    return {name.removeprefix(prefix): end[name] for name in sorted(end) if name.startswith(prefix)}


def _percentile(values: Floats, share: float) -> float:
    return float(np.percentile(values, share)) if len(values) else float("nan")


def _by_minute(arrival_s: Floats, kept: Bools) -> tuple[Floats, Floats]:
    """The start of each minute with arrivals, and the share of misses among them."""
    minute = (arrival_s // 60).astype(int)
    requests = np.bincount(minute)
    some = np.flatnonzero(requests)
    missed = np.bincount(minute, weights=~kept)
    return (some * 60.0).astype(np.float64), (missed[some] / requests[some]).astype(np.float64)


def _bad_minutes(arrival_s: Floats, kept: Bools) -> float:
    return float((_by_minute(arrival_s, kept)[1] > BAD_SHARE).mean()) if len(kept) else 0.0
