"""The same load second by second: what was due in each stretch, and what became of it. All columns, plain values."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cluster.workload import Floats, Ints
from deployments.load.answer import Answer
from deployments.load.options import Promise

WIDTHS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600)
MOST_BINS = 60
SHOWN = {"p50": 50.0, "p90": 90.0, "p99": 99.0}
MOST_GROUPS = 12  # of models, and of tenants; those with the most requests
Kept = Callable[[Answer, Promise], bool]


def over_time(answers: Sequence[Answer], promises: Mapping[str, Promise], kept: Kept) -> dict[str, Any]:
    """By group: all, `model NAME`, `tenant NAME`. A request counts where it was due, warm-up included.

    Rates are per second of a bin's width; the last bin may be cut short by the end of the run, so its rates may be low.
    """
    last_s = max((one.due_s for one in answers), default=0.0)
    width_s = next((width for width in WIDTHS_S if last_s / width < MOST_BINS), WIDTHS_S[-1])
    count = int(last_s // width_s) + 1 if answers else 0
    groups = {"all": list(answers)} | _parts(answers, "model") | _parts(answers, "tenant")
    return {
        "bin_s": width_s,
        "begin_s": [float(index * width_s) for index in range(count)],
        "groups": {name: _columns(part, promises, kept, (count, width_s)) for name, part in groups.items()},
    }


def _parts(answers: Sequence[Answer], field: str) -> dict[str, list[Answer]]:
    """None where all are of one kind."""
    parts: dict[str, list[Answer]] = {}
    for one in answers:
        parts.setdefault(getattr(one, field), []).append(one)
    if len(parts) < 2:
        return {}
    most = sorted(sorted(parts), key=lambda name: -len(parts[name]))[:MOST_GROUPS]
    return {f"{field} {name}": parts[name] for name in most}


def _columns(
    answers: Sequence[Answer], promises: Mapping[str, Promise], kept: Kept, bins: tuple[int, float]
) -> dict[str, Any]:
    count, width_s = bins
    at = np.array([int(one.due_s // width_s) for one in answers], dtype=np.int64)

    def rate(chosen: Iterable[bool]) -> list[float]:
        return [float(n) for n in np.bincount(at[np.fromiter(chosen, bool, len(answers))], minlength=count) / width_s]

    judged = [promises.get(one.model) or promises.get("") for one in answers]
    goodput = [promise is not None and kept(one, promise) for one, promise in zip(answers, judged, strict=True)]
    return {
        "due_per_s": rate(True for _ in answers),
        "completed_per_s": rate(one.completed for one in answers),
        "goodput_per_s": rate(goodput) if any(judged) else None,
        "refused_per_s": {
            code: rate(one.outcome == "refused" and one.refused == code for one in answers)
            for code in _named(one.refused for one in answers if one.outcome == "refused")
        },
        "failed_per_s": {
            failure: rate(one.failure == failure for one in answers)
            for failure in _named(one.failure for one in answers)
        },
        "ttft_s": _quantiles([one.ttft_s for one in answers], at, count),
        "tpot_ms": _quantiles([one.tpot_ms for one in answers], at, count),
        "total_s": _quantiles([one.total_s for one in answers], at, count),
        "late_s": _quantiles([one.late_s for one in answers], at, count),
    }


def _named(values: Iterable[str | None]) -> list[str]:
    return sorted({value for value in values if value is not None})


def _quantiles(values: Sequence[float | None], at: Ints, count: int) -> dict[str, list[float | None]]:
    """Per bin; None where nothing is known."""
    known = np.array([value is not None for value in values], dtype=bool)
    numbers: Floats = np.array([value for value in values if value is not None], dtype=np.float64)
    order = np.argsort(at[known], kind="stable")
    parts = np.split(numbers[order], np.searchsorted(at[known][order], np.arange(1, count)))[:count]
    return {name: [float(np.percentile(part, q)) if len(part) else None for part in parts] for name, q in SHOWN.items()}
