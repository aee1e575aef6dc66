"""Two sides, of one run or several each: ratios of medians, with confidence where there are runs enough to say it.

The range of n runs holds the median of what such runs show with probability 1 - 2^(1-n), whatever their distribution
(an order-statistic interval). A ratio's range goes from the lowest over the highest to the highest over the lowest, and
holds with the product of both sides' probabilities.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.errors import ConfigurationError
from deployments.load.report import SCHEMA_VERSION

FIGURES = {
    "ttft_s": ("p50", "p90", "p99"),
    "tpot_ms": ("p50", "p90", "p99"),
    "total_s": ("p50", "p90", "p99"),
    "pause_s": ("p99",),
}
COUNTS = ("requests", "completed", "kept", "attainment", "output_tokens")
Run = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Of the medians, after over before; None where one is not known or 0. `low`, `high`: the range of what runs gave,
    None where each side has one run.
    """

    part: str
    figure: str
    before: float | None
    after: float | None
    ratio: float | None
    low: float | None
    high: float | None


def compare(arguments: argparse.Namespace, console: Console) -> int:
    """Raises ConfigurationError where a file is no report of this version."""
    before, after = ([read(Path(name)) for name in given.split(",")] for given in (arguments.before, arguments.after))
    found = ratios(before, after)
    told = {
        "runs": [len(before), len(after)],
        "confidence": confidence(len(before), len(after)),
        "differ": differing([*before, *after]),
        "doubts": doubts([*before, *after]),
        "ratios": [asdict(one) for one in found],
    }
    if arguments.json:
        sys.stdout.write(json.dumps(told, indent=2, allow_nan=False) + "\n")
    else:
        _show(told, found, console)
    return 0


def read(file: Path) -> Run:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"{file}: {error}; what `moray load --json` says is needed; give such a file"
        ) from error
    version = found.get("schema_version") if isinstance(found, dict) else None
    if version != SCHEMA_VERSION:
        raise ConfigurationError(
            f"{file}: schema_version: {version!r}; {SCHEMA_VERSION} is allowed; give what `moray load --json` says now"
        )
    return dict(found)


def confidence(before: int, after: int) -> float | None:
    """None where a side has one run, of which nothing can be said."""
    return (1 - 2.0 ** (1 - before)) * (1 - 2.0 ** (1 - after)) if min(before, after) > 1 else None


def ratios(before: Sequence[Run], after: Sequence[Run]) -> list[Ratio]:
    """Of all, and of the models and tenants that every run has."""
    parts = [part for part in _parts(before[0]) if all(part in _parts(run) for run in (*before, *after))]
    found = []
    for part in parts:
        for figure in dict.fromkeys(name for name, _ in _figures(_parts(before[0])[part])):
            sides = [[dict(_figures(_parts(run)[part])).get(figure) for run in side] for side in (before, after)]
            found.append(_ratio(part, figure, sides[0], sides[1]))
    return [one for one in found if one.before is not None or one.after is not None]


def _parts(run: Run) -> dict[str, Mapping[str, Any]]:
    parts = {"all": run["all"]}
    for kind in ("models", "tenants"):
        if len(run[kind]) > 1:
            parts |= {f"{kind[:-1]} {name}": found for name, found in run[kind].items()}
    return parts


def _figures(part: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    for name in COUNTS:
        yield name, part[name]
    for name in ("refused", "failed"):
        yield name, sum(part[name].values())
    for name, quantiles in FIGURES.items():
        for quantile in quantiles:
            yield f"{name} {quantile}", part[name][quantile]


def _ratio(part: str, figure: str, before: Sequence[float | None], after: Sequence[float | None]) -> Ratio:
    one, other = ([float(value) for value in side if value is not None] for side in (before, after))
    whole = len(one) == len(before) and len(other) == len(after)
    middle = (statistics.median(one) if one else None, statistics.median(other) if other else None)
    known = whole and bool(middle[0])
    ranged = known and min(len(one), len(other)) > 1 and min(one) > 0
    return Ratio(
        part=part,
        figure=figure,
        before=middle[0],
        after=middle[1],
        ratio=middle[1] / middle[0] if known and middle[0] and middle[1] is not None else None,
        low=min(other) / max(one) if ranged else None,
        high=max(other) / min(one) if ranged else None,
    )


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Conditions that are not the same in all runs, with what each had."""
    names = dict.fromkeys(name for run in runs for name in run["conditions"])
    values = {name: [run["conditions"].get(name) for run in runs] for name in names}
    return {name: given for name, given in values.items() if any(one != given[0] for one in given)}


def doubts(runs: Sequence[Run]) -> list[str]:
    """Why a run proves little by itself."""
    found = []
    for number, run in enumerate(runs, 1):
        if run["interrupted"]:
            found.append(f"run {number} was stopped: {run['sent']} of {run['planned']} requests were sent")
        if run["warning"]:
            found.append(f"run {number}: {run['warning']}")
    return found


def _show(told: Mapping[str, Any], found: Sequence[Ratio], console: Console) -> None:
    table = Table(box=box.SIMPLE)
    for name in ("", "", "before", "after", "after / before"):
        table.add_column(name, justify="right" if name else "left")
    part = ""
    for one in found:
        cells = ("-" if value is None else f"{value:.4g}" for value in (one.before, one.after))
        table.add_row(one.part if one.part != part else "", one.figure, *cells, _ranged(one))
        part = one.part
    console.print(table)
    for name, given in told["differ"].items():
        console.print(Text(f"conditions differ: {name}: {_short(given)}", style="bold yellow"), soft_wrap=True)
    for doubt in told["doubts"]:
        console.print(Text(doubt, style="bold yellow"), soft_wrap=True)
    sure = told["confidence"]
    console.print(
        "one run on a side: ratios without confidence; give several as A1.json,A2.json,..."
        if sure is None
        else f"{told['runs'][0]} and {told['runs'][1]} runs: medians; a range in brackets holds with {sure:.0%}",
        style="dim",
    )


def _ranged(one: Ratio) -> str:
    if one.ratio is None:
        return "-"
    return f"{one.ratio:.3f}" + ("" if one.low is None else f" [{one.low:.3f}-{one.high:.3f}]")


def _short(given: Sequence[Any]) -> str:
    shown = [json.dumps(value) for value in given]
    return " / ".join(one if len(one) <= 60 else f"{one[:57]}..." for one in shown)
