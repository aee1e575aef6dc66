"""What this gateway counted of a tier over the last while, from two readings of its own metrics."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import Metric

Reading = Mapping[tuple[str, str, str], float]  # by sample, tier, and its other label: outcome, action or bound
REFUSALS = "moray_limit_refusals_total"
COUNTED = {
    "moray_arrivals_total": "",
    "moray_admissions_total": "action",
    "moray_promises_total": "outcome",
    "moray_completion_tokens_total": "",
    "moray_ttft_seconds_bucket": "le",
    "moray_tpot_seconds_bucket": "le",
    REFUSALS: "limit",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Over the last `window_s`. `ended`: requests whose promises were judged; `kept_ratio` of them, None of none.

    Percentiles are interpolated in the buckets of their histogram; None where nothing was answered.
    """

    window_s: float
    arrivals_rps: float
    refused_rps: float
    tokens_per_s: float
    ended: int
    kept_ratio: float | None
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    tpot_p50_s: float | None
    tpot_p95_s: float | None


def reading(metrics: Iterable[Metric]) -> Reading:
    """The counters that the console shows, as they are now."""
    return {
        (sample.name, sample.labels.get("tier", ""), sample.labels.get(COUNTED[sample.name], "")): sample.value
        for metric in metrics
        for sample in metric.samples
        if sample.name in COUNTED
    }


def refusals(now: Reading) -> dict[str, int]:
    """Requests that a limit of their plan refused, by the limit, since the gateway began."""
    return {limit: int(value) for (name, _, limit), value in sorted(now.items()) if name == REFUSALS}


def figures(now: Reading, before: Reading, tier: str, window_s: float) -> Figures:
    """Counters only grow, so that nothing of it is negative. `window_s` > 0 lies between the readings."""

    def grown(name: str, label: str = "") -> float:
        key = (name, tier, label)
        return max(0.0, now.get(key, 0.0) - before.get(key, 0.0))

    def percentiles(name: str) -> tuple[float | None, float | None]:
        bounds = {label for sample, of, label in now if (sample, of) == (name, tier)}
        counts = {float(label): grown(name, label) for label in bounds}
        return percentile(0.5, counts), percentile(0.95, counts)

    kept, missed = (grown("moray_promises_total", outcome) for outcome in ("kept", "missed"))
    ttft, tpot = percentiles("moray_ttft_seconds_bucket"), percentiles("moray_tpot_seconds_bucket")
    return Figures(
        window_s=window_s,
        arrivals_rps=grown("moray_arrivals_total") / window_s,
        refused_rps=grown("moray_admissions_total", "refuse") / window_s,
        tokens_per_s=grown("moray_completion_tokens_total") / window_s,
        ended=int(kept + missed),
        kept_ratio=kept / (kept + missed) if kept + missed else None,
        ttft_p50_s=ttft[0],
        ttft_p95_s=ttft[1],
        tpot_p50_s=tpot[0],
        tpot_p95_s=tpot[1],
    )


def percentile(share: float, counts: Mapping[float, float]) -> float | None:
    """As Prometheus' histogram_quantile: `counts` are cumulative by upper bound, the last bound infinite.

    Beyond the largest finite bound it is that bound.
    """
    bounds = sorted(counts)
    if not bounds or not counts[bounds[-1]]:
        return None
    rank, low_s, below = share * counts[bounds[-1]], 0.0, 0.0
    for bound in bounds:
        if counts[bound] >= rank and counts[bound] > below:
            return low_s if math.isinf(bound) else low_s + (bound - low_s) * (rank - below) / (counts[bound] - below)
        if not math.isinf(bound):
            low_s, below = bound, counts[bound]
    return low_s
