"""A rehearsal as one picture: demand, replicas with the GPUs they hold, and misses, over the same time.

Of one policy the replicas of each tier are drawn; of several, the GPUs that each policy holds. Colours are Okabe and
Ito's, which colour-blind readers tell apart; line styles repeat the difference. Import this only where a picture is
wanted: matplotlib is slow to import.
"""

from collections.abc import Mapping, Sequence
from typing import BinaryIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from autoscaling.report import Course
from cluster.workload import Floats
from deployments.report_table import Rehearsal

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
GREY = "#777777"
GPUS = "GPUs held\n(starting and\ndraining too)"
BAD_SHARE = 0.05  # of misses: above it a minute is bad
MINUTE_S = 60.0
MOST_POINTS = 300  # of demand: each tick of a long day would be a smear


def draw(rehearsals: Sequence[Rehearsal], title: str, file: BinaryIO) -> None:
    """A PNG of what ran on the same arrivals."""
    first = rehearsals[0].report.course
    courses = {one.name: one.report.course for one in rehearsals}
    unit, unit_s = ("hours", 3600.0) if _span_s(first) > 7200 else ("minutes", 60.0)
    figure = Figure(figsize=(11, 8.5), layout="constrained")
    demand, replicas, misses = figure.subplots(3, 1, sharex=True)
    _demand(demand, first, unit_s)
    if len(courses) == 1:
        _replicas(replicas, first, unit_s)
    else:
        _gpus(replicas, courses, unit_s)
    _misses(misses, courses, unit_s)
    misses.set_xlabel(f"time ({unit})")
    for axes in (demand, replicas, misses):
        axes.grid(alpha=0.3)
        axes.spines["top"].set_visible(False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(file, format="png", dpi=110)


def _span_s(course: Course) -> float:
    return float(course.now_s[-1] - course.now_s[0]) if len(course.now_s) else 0.0


def _demand(axes: Axes, course: Course, unit_s: float) -> None:
    each = max(1, len(course.now_s) // MOST_POINTS)
    tick_s = _span_s(course) / max(1, len(course.now_s) - 1)
    for index, (tier, rate) in enumerate(_busy(course.arrivals_per_s).items()):
        _line(axes, _thinned(course.now_s, each) / unit_s, _thinned(rate, each), index, tier)
    axes.set_ylabel(f"demand (requests/s,\nmeans of {each * tick_s:.3g} s)")
    axes.set_ylim(bottom=0)
    _legend(axes, "tier asked")


def _replicas(axes: Axes, course: Course, unit_s: float) -> None:
    """Two scales: replicas on the left, and behind them the GPUs on the right."""
    now = course.now_s / unit_s
    behind = axes.twinx()
    behind.fill_between(now, course.gpus, step="post", color=GREY, alpha=0.2, linewidth=0)
    behind.set_ylabel("GPUs held", color=GREY)
    behind.set_ylim(bottom=0)
    behind.spines["top"].set_visible(False)
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)
    for index, (tier, count) in enumerate(_busy(course.replicas).items()):
        _line(axes, now, count, index, tier, stepped=True)
    axes.fill_between([], [], color=GREY, alpha=0.2, label=f"right: {GPUS}")
    axes.set_ylabel("ready replicas")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    _legend(axes, "tier")


def _gpus(axes: Axes, courses: Mapping[str, Course], unit_s: float) -> None:
    for index, (name, course) in enumerate(courses.items()):
        _line(axes, course.now_s / unit_s, course.gpus, index, name, stepped=True)
    axes.set_ylabel(GPUS.replace("\n", " ", 1))
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    _legend(axes, "policy")


def _misses(axes: Axes, courses: Mapping[str, Course], unit_s: float) -> None:
    for index, (name, course) in enumerate(courses.items()):
        start_s, share = _by_minute(course)
        _line(axes, start_s / unit_s, share, index, name, stepped=True)
    axes.axhline(BAD_SHARE, color="black", linewidth=0.8, linestyle=":", label="above: a bad minute")
    axes.set_ylabel("TTFT or TPOT missed\n(share of the requests of\na minute; gap: there were none)")
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0))
    top = max(float(np.max(course.missed_share, initial=0.0)) for course in courses.values())
    axes.set_ylim(0, max(2 * BAD_SHARE, 1.08 * top))
    _legend(axes, None if len(courses) == 1 else "policy")


def _by_minute(course: Course) -> tuple[Floats, Floats]:
    """Every minute to the end of the last, gaps where nothing arrived."""
    minute = np.rint(course.minute_s / MINUTE_S).astype(np.int64)
    share = np.full(int(minute[-1]) + 2 if len(minute) else 0, np.nan)
    share[minute] = course.missed_share
    share[-1:] = share[-2:-1]  # the last step has a width, too
    return np.arange(float(len(share))) * MINUTE_S, share


def _busy(lines: Mapping[str, Floats]) -> dict[str, Floats]:
    """Those that are ever above zero."""
    return {name: values for name, values in lines.items() if np.any(values > 0)}


def _thinned(values: Floats, each: int) -> Floats:
    """Means of `each` neighbours, the rest at the end left out."""
    whole = len(values) // each * each
    return np.asarray(values[:whole].reshape(-1, each).mean(axis=1))


def _line(axes: Axes, x: Floats, y: Floats, index: int, label: str, *, stepped: bool = False) -> None:
    axes.plot(
        x,
        y,
        drawstyle="steps-post" if stepped else "default",
        color=COLOURS[index % len(COLOURS)],
        linestyle=STYLES[index % len(STYLES)],
        linewidth=1.4,
        label=label,
    )


def _legend(axes: Axes, title: str | None) -> None:
    """Beside the axes, where it hides no line."""
    if not axes.get_legend_handles_labels()[0]:
        axes.annotate("none of language", (0.5, 0.5), xycoords="axes fraction", ha="center", color=GREY)
        return
    axes.legend(title=title, loc="upper left", bbox_to_anchor=(1.08, 1.0), fontsize=9, frameon=False)
