"""From the rows of the `twin` benchmark to its figures: means with 95 % confidence intervals over seeds, and ratios.

A ratio to a peer is taken seed by seed, then summarised like any other figure.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

GOAL = 0.99
T_95 = (math.nan, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # two-sided, by degrees of freedom
AIMS = {
    "gpu_hours_to_best_peer": "<= 0.85 on every trace, moray at >= 99 %",
    "gpu_hours_to_clairvoyant": "<= 1.15",
    "bad_minutes": "<= 0.01",
    "ttft_p99_to_p2c": "<= 0.6",
    "ttft_p99_to_kv": "<= 0.9 on mooncake",
    "requests_per_s": ">= 10000",
}

Row = dict[str, Any]


def interval(values: Sequence[float]) -> list[float | None]:
    """Mean, and half the width of the interval, which one value has not; of more than ten by the normal quantile."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return [_short(mean), None]
    t = T_95[len(values) - 1] if len(values) <= len(T_95) else 1.96
    return [_short(mean), _short(t * statistics.stdev(values) / math.sqrt(len(values)))]


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _grouped(rows: Iterable[Row], *names: str) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[
            "/".join(
                f"{row[name]:g}" if isinstance(row[name], float) else str(row[name]) for name in names if name in row
            )
        ].append(row)
    return groups


def _means(rows: Sequence[Row]) -> Row:
    ordered = sorted(rows, key=lambda row: row["seed"])
    names = ("gpu_hours", "attainment", "bad_minutes", "ttft_p99_s", "tpot_p99_ms", "floor", "rejected")
    means: Row = {name: interval([row[name] for row in ordered]) for name in names}
    settings = [row["setting"] for row in ordered if "setting" in row]
    return means | ({"setting": settings[0] if settings[0] == settings[-1] else settings} if settings else {})


def _ratio(ours: Sequence[Row], theirs: Sequence[Row], name: str) -> list[float | None]:
    by_seed = {row["seed"]: row[name] for row in theirs}
    return interval([row[name] / by_seed[row["seed"]] for row in ours if row["seed"] in by_seed])


def _attains(rows: Sequence[Row]) -> bool:
    return bool(statistics.mean(row["attainment"] for row in rows) >= GOAL)


def bill(rows: Sequence[Row]) -> Row:
    """By trace and cold start. The best constant size does not depend on the cold start."""
    static = _grouped((row for row in rows if row["of"] == "static"), "trace")
    found: Row = {}
    for cell, here in _grouped((row for row in rows if row["of"] != "static"), "trace", "cold_start_s").items():
        groups = _grouped([*here, *static.get(here[0]["trace"], [])], "of", "form", "tuned")
        found[cell] = {name: _means(group) for name, group in groups.items()} | {"ratios": _ratios(groups)}
    return found


def _ratios(groups: dict[str, list[Row]]) -> Row:
    """Moray's GPU-hours over others'; the best tuned peers are those that attain 99 % with the fewest."""
    ours = groups.get("moray")
    if ours is None:
        return {}
    ratios: Row = {"floor": interval([row["gpu_hours"] / row["floor"] for row in ours])}
    for name in ("clairvoyant", "static"):
        if name in groups:
            ratios[name] = _ratio(ours, groups[name], "gpu_hours")
    for form in ("ours", "own"):
        tuned = {name: group for name, group in groups.items() if f"/{form}/to" in name and _attains(group)}
        if tuned:
            best = min(tuned, key=lambda name: statistics.mean(row["gpu_hours"] for row in tuned[name]))
            ratios[f"best peer, {form}"] = [best, *_ratio(ours, tuned[best], "gpu_hours")]
    return ratios


def routing(rows: Sequence[Row]) -> Row:
    found: Row = {}
    for cell, here in _grouped(rows, "trace", "against", "goal").items():
        groups = _grouped(here, "of")
        found[cell] = {name: _means(group) for name, group in groups.items()} | {
            "replicas": here[0]["replicas"],
            "ttft_p99_ratio": _ratio(groups["moray"], groups[here[0]["against"]], "ttft_p99_s"),
        }
    return found


def ablation(rows: Sequence[Row]) -> Row:
    return {
        trace: {name: _means(group) for name, group in _grouped(here, "of").items()}
        for trace, here in _grouped(rows, "trace").items()
    }


def speed(rows: Sequence[Row]) -> Row:
    return {
        trace: {"requests": here[0]["requests"], "requests_per_s": interval([row["requests_per_s"] for row in here])}
        for trace, here in _grouped(rows, "trace").items()
    }


def verdict(figures: Row) -> Row:
    """Which aims are met, over all cells; an aim without figures is left out."""
    met: dict[str, bool] = {}
    cells = list(figures.get("bill", {}).values())
    if cells:
        best = [cell["ratios"]["best peer, ours"][1] for cell in cells if "best peer, ours" in cell["ratios"]]
        met["gpu_hours_to_best_peer"] = bool(best) and max(best) <= 0.85 and all(_kept(cell) for cell in cells)
        planned = [cell["ratios"]["clairvoyant"][0] for cell in cells if "clairvoyant" in cell["ratios"]]
        met["gpu_hours_to_clairvoyant"] = bool(planned) and max(planned) <= 1.15
        met["bad_minutes"] = all(cell["moray"]["bad_minutes"][0] <= 0.01 for cell in cells if "moray" in cell)
    for router, most in (("p2c", 0.6), ("kv", 0.9)):
        ratios = [
            cell["ttft_p99_ratio"][0]
            for name, cell in figures.get("routing", {}).items()
            if name.split("/")[1] == router
        ]
        if ratios:
            met[f"ttft_p99_to_{router}"] = max(ratios) <= most
    speeds = [cell["requests_per_s"][0] for cell in figures.get("speed", {}).values()]
    if speeds:
        met["requests_per_s"] = min(speeds) >= 10_000
    return {"aim": {name: AIMS[name] for name in met}, "met": met}


def _kept(cell: Row) -> bool:
    return "moray" in cell and bool(cell["moray"]["attainment"][0] >= GOAL)


SUMMARIES: dict[str, Callable[[Sequence[Row]], Row]] = {
    "bill": bill,
    "routing": routing,
    "ablation": ablation,
    "speed": speed,
}
