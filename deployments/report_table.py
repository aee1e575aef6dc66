"""A rehearsal for people and for programs: conditions and figures with units as a table, or as plain JSON values.

Of one policy the columns are the whole and each tier that was asked; of several, one column per policy on the same
arrivals. NaN (a figure of nothing) is shown as a dash, and is null in JSON.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from autoscaling.report import Figures, Report

SIMULATED = "simulated: no GPU was used"
NOTHING = "-"
VIDEO = "video jobs"
LEAST_WIDTH = 11  # "clairvoyant"

Row = tuple[str, list[str]]  # a figure of every column


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """`name`: of the contender. `conditions`: under which it ran, in the order of telling. `wall_s`: what it took."""

    name: str
    conditions: Mapping[str, Any]
    report: Report
    wall_s: float

    @property
    def requests_per_s(self) -> float:
        return self.report.figures.requests / self.wall_s if self.wall_s else math.nan


def as_dict(rehearsal: Rehearsal) -> dict[str, Any]:
    figures = dataclasses.asdict(rehearsal.report.figures)
    pace = {"wall_s": rehearsal.wall_s, "requests_per_s": rehearsal.requests_per_s}
    return {key: _plain(value) for key, value in (figures | pace).items()} | {"conditions": rehearsal.conditions}


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def tables(rehearsals: Sequence[Rehearsal]) -> Lines:
    """`rehearsals`: on the same arrivals."""
    return Lines(*_parts(rehearsals))


def _parts(rehearsals: Sequence[Rehearsal]) -> Iterator[RenderableType]:
    first = rehearsals[0]
    yield Text(SIMULATED, style="bold")
    yield _conditions([one.conditions for one in rehearsals])
    tiers = first.report.tiers
    columns = {one.name: one.report.figures for one in rehearsals}
    if len(rehearsals) == 1:
        columns = {"all": first.report.figures}
        columns |= {name: each for name, each in tiers.items() if each.requests or each.gpu_hours}
    rows = [*_rows(list(columns.values()))]
    if len(rehearsals) > 1:
        for tier in (name for name, each in tiers.items() if each.requests):
            rows += _tier_rows(tier, [one.report.tiers[tier] for one in rehearsals])
    yield _figures(columns, rows)
    for one in rehearsals:
        pace = f"{one.wall_s:,.2f} s, {_shown(one.requests_per_s, ',.0f')} simulated requests per second"
        yield Text(f"{one.name}: rehearsed in {pace}", style="dim")


def _conditions(conditions: Sequence[Mapping[str, Any]]) -> Table:
    """Those that all share. What differs is in the names of the columns."""
    first, *others = conditions
    table = Table.grid(padding=(0, 2))
    for key, value in first.items():
        if value != SIMULATED and all(other[key] == value for other in others if key in other):
            table.add_row(Text(key.replace("_", " "), style="dim"), Text(_words(value)))
    return table


def _words(value: Any) -> str:
    match value:
        case None:
            return NOTHING
        case Mapping():
            return ", ".join(f"{key} {_words(each)}" for key, each in value.items()) or NOTHING
        case list() | tuple():
            return ", ".join(_words(each) for each in value) or NOTHING
        case float():
            return f"{value:,g}"
        case _:
            return str(value)


def _figures(columns: Iterable[str], rows: Sequence[Row]) -> Table:
    """Numbers keep their line; a long name of a column is folded above them."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for index, name in enumerate(columns):
        width = max(LEAST_WIDTH, max(len(shown[index]) for _, shown in rows))
        table.add_column(Text(name, overflow="fold"), justify="right", max_width=width, overflow="fold")
    for label, shown in rows:
        table.add_row(label, *shown)
    return table


def _rows(columns: Sequence[Figures]) -> Iterator[Row]:
    yield "requests", [f"{each.requests:,d}" for each in columns]
    yield "  completed", [f"{each.completed:,d}" for each in columns]
    yield from _counted("  rejected", [each.rejected for each in columns])
    yield from _counted("  failed", [each.failed for each in columns])
    for label, getter, form in FIGURES:
        if not label.startswith(VIDEO) or any(each.jobs for each in columns):
            yield label, [_shown(getter(each), form) for each in columns]


def _tier_rows(tier: str, columns: Sequence[Figures]) -> Iterator[Row]:
    """What tells most of one tier, beside the same of all."""
    for label, getter, form in FIGURES:
        if label in OF_A_TIER:
            yield f"{tier}: {label}", [_shown(getter(each), form) for each in columns]


def _counted(what: str, counts: Sequence[Mapping[str, int]]) -> Iterator[Row]:
    """One row per reason that any of them has."""
    for reason in dict.fromkeys(reason for each in counts for reason in each) or (None,):
        label = f"{what}: {reason.replace('_', ' ')}" if reason else what
        yield label, [f"{each.get(reason or '', 0):,d}" for each in counts]


def _over_floor(figures: Figures) -> float:
    return figures.gpu_hours / figures.gpu_hours_floor if figures.gpu_hours_floor else math.nan


FIGURES: tuple[tuple[str, Callable[[Figures], float], str], ...] = (
    ("  spilled to another tier", lambda each: each.spilled, ",d"),
    ("TTFT and TPOT kept, %", lambda each: 100 * each.attainment, ".2f"),
    ("bad minutes (>5% missed), %", lambda each: 100 * each.bad_minutes, ".2f"),
    ("TTFT p50, s", lambda each: each.ttft_p50_s, ",.3f"),
    ("TTFT p99, s", lambda each: each.ttft_p99_s, ",.3f"),
    ("TPOT p50, ms", lambda each: each.tpot_p50_ms, ",.1f"),
    ("TPOT p99, ms", lambda each: each.tpot_p99_ms, ",.1f"),
    ("GPU-hours", lambda each: each.gpu_hours, ",.2f"),
    ("  fluid floor", lambda each: each.gpu_hours_floor, ",.2f"),
    ("  times the floor", _over_floor, ",.2f"),
    ("video jobs", lambda each: each.jobs, ",d"),
    ("video jobs in time", lambda each: each.jobs_in_time, ",d"),
    ("cost of the GPUs, USD", lambda each: each.cost_usd, ",.2f"),
    ("value served in time, USD", lambda each: each.value_usd, ",.2f"),
)
OF_A_TIER = ("TTFT and TPOT kept, %", "bad minutes (>5% missed), %", "TTFT p99, s", "GPU-hours")


def _shown(value: float, form: str) -> str:
    return NOTHING if math.isnan(value) else format(value, form)
