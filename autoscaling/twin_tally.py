"""What became of every request, and the figures of a run from it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from autoscaling.report import Course, Figures
from cluster.workload import Jobs, Workload

BAD_SHARE = 0.05  # misses in a minute that make it a bad one


@dataclass(frozen=True, slots=True)
class Promise:
    """Of the tier that was asked for; prices of the tier that served, or of the one asked where that is lower."""

    ttft_s: float
    tpot_ms: float
    input_usd: float
    output_usd: float


@dataclass(slots=True)
class Tally:
    """Columns by request; `asked` and `served` are indices into `tiers`, -1: none."""

    workload: Workload
    tiers: tuple[str, ...]
    promises: tuple[Promise, ...]
    ttft_s: list[float] = field(init=False)
    tpot_ms: list[float] = field(init=False)
    asked: list[int] = field(init=False)
    served: list[int] = field(init=False)
    end: list[str] = field(init=False)
    gpu_s: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        requests = len(self.workload)
        self.ttft_s, self.tpot_ms = [np.nan] * requests, [np.nan] * requests
        self.asked, self.served = [-1] * requests, [-1] * requests
        self.end = [""] * requests
        self.gpu_s = dict.fromkeys((*self.tiers, "video"), 0.0)

    def kept(self, index: int) -> bool:
        promise = self.promises[self.asked[index]]
        return self.ttft_s[index] <= promise.ttft_s and self.tpot_ms[index] <= promise.tpot_ms

    def figures(self, gpu_hours_floor: float, usd_per_gpu_hour: float, tier: int | None = None) -> Figures:
        """Of all requests, or of those that asked for one tier. Video counts in the whole alone, see `with_video`."""
        asked, served = np.array(self.asked), np.array(self.served)
        mine = np.ones(len(asked), dtype=bool) if tier is None else asked == tier
        end = [self.end[index] for index in np.flatnonzero(mine)]
        completed = np.array([name == "completed" for name in end], dtype=bool)
        ttft, tpot = np.array(self.ttft_s)[mine], np.array(self.tpot_ms)[mine]
        kept = self._kept(mine) & completed
        gpu_s = self.gpu_s[self.tiers[tier]] if tier is not None else sum(self.gpu_s.values())
        return Figures(
            requests=int(mine.sum()),
            completed=int(completed.sum()),
            rejected=_reasons(end, "rejected:"),
            failed=_reasons(end, "failed:"),
            attainment=float(kept.mean()) if len(kept) else float("nan"),
            ttft_p50_s=_percentile(ttft[completed], 50),
            ttft_p99_s=_percentile(ttft[completed], 99),
            tpot_p50_ms=_percentile(tpot[completed], 50),
            tpot_p99_ms=_percentile(tpot[completed], 99),
            bad_minutes=_bad_minutes(self.workload.arrival_s[mine], kept),
            gpu_hours=gpu_s / 3600,
            gpu_hours_floor=gpu_hours_floor,
            spilled=int((completed & (served[mine] != asked[mine])).sum()),
            jobs=0,
            jobs_in_time=0,
            cost_usd=gpu_s / 3600 * usd_per_gpu_hour,
            value_usd=float(self._value(mine)[kept].sum()),
        )

    def _kept(self, mine: NDArray[np.bool_]) -> NDArray[np.bool_]:
        asked = np.array(self.asked)[mine]
        ttft_s = np.array([promise.ttft_s for promise in self.promises])[asked]
        tpot_ms = np.array([promise.tpot_ms for promise in self.promises])[asked]
        kept: NDArray[np.bool_] = (np.array(self.ttft_s)[mine] <= ttft_s) & (np.array(self.tpot_ms)[mine] <= tpot_ms)
        return kept

    def _value(self, mine: NDArray[np.bool_]) -> NDArray[np.float64]:
        usd = np.array([(promise.input_usd, promise.output_usd) for promise in self.promises])
        asked, served = usd[np.array(self.asked)[mine]], usd[np.array(self.served)[mine]]
        paid = np.minimum(asked, served)
        prompt, output = self.workload.prompt_tokens[mine], self.workload.output_tokens[mine]
        value: NDArray[np.float64] = paid[:, 0] * prompt + paid[:, 1] * output
        return value

    def minutes(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The start of each minute with arrivals, and the share of misses among them."""
        kept = self._kept(np.ones(len(self.asked), dtype=bool)) & np.array([end == "completed" for end in self.end])
        return _by_minute(self.workload.arrival_s, kept)


def with_video(figures: Figures, jobs: Jobs, finished_s: Mapping[int, float]) -> Figures:
    """The same with the video jobs in."""
    in_time = [job for job, at_s in finished_s.items() if at_s <= jobs.deadline_s[job]]
    value = figures.value_usd + float(sum(jobs.value_usd[job] for job in in_time))
    changed = {"jobs": len(jobs), "jobs_in_time": len(in_time), "value_usd": value}
    return Figures(**{name: changed.get(name, getattr(figures, name)) for name in Figures.__slots__})


@dataclass(frozen=True, slots=True)
class Sample:
    """At one tick, by tier: arrivals per second since the last, ready replicas, held requests; and GPUs held by all."""

    now_s: float
    arrivals_per_s: dict[str, float]
    ready: dict[str, float]
    held: dict[str, float]
    gpus: float


def course(samples: list[Sample], tally: Tally) -> Course:
    minute_s, missed = tally.minutes()
    names = samples[-1].ready if samples else {}
    return Course(
        now_s=np.array([sample.now_s for sample in samples]),
        arrivals_per_s={name: np.array([sample.arrivals_per_s[name] for sample in samples]) for name in tally.tiers},
        replicas={name: np.array([sample.ready[name] for sample in samples]) for name in names},
        held={name: np.array([sample.held[name] for sample in samples]) for name in names},
        gpus=np.array([sample.gpus for sample in samples]),
        minute_s=minute_s,
        missed_share=missed,
    )


def _reasons(end: list[str], prefix: str) -> dict[str, int]:
    return dict(sorted(Counter(name.removeprefix(prefix) for name in end if name.startswith(prefix)).items()))


def _percentile(values: NDArray[np.float64], share: float) -> float:
    return float(np.percentile(values, share)) if len(values) else float("nan")


def _by_minute(
    arrival_s: NDArray[np.float64], kept: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    minute = (arrival_s // 60).astype(int)
    requests = np.bincount(minute)
    missed = np.bincount(minute, weights=~kept)
    some = np.flatnonzero(requests)
    return (some * 60.0).astype(np.float64), (missed[some] / requests[some]).astype(np.float64)


def _bad_minutes(arrival_s: NDArray[np.float64], kept: NDArray[np.bool_]) -> float:
    if not len(arrival_s):
        return 0.0
    return float((_by_minute(arrival_s, kept)[1] > BAD_SHARE).mean())
