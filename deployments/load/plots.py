"""What a load has shown as inline SVG whose colours the page around it chooses. Import this only where it is wanted:
matplotlib is slow to import.

matplotlib is given colours that stand for names of the page's style, and the names are put in afterwards, so one
picture serves light and dark. Text stays text.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Drawn in these, shown in the page's; they differ from all that matplotlib draws by itself.
INK, FAINT = "#010203", "#010204"
SERIES = tuple(f"#0102{10 + index}" for index in range(8))
STYLES = ("-", "--", "-.", ":")
NAMES = {INK: "var(--ink)", FAINT: "var(--faint)"} | {
    colour: f"var(--series-{index})" for index, colour in enumerate(SERIES)
}
SETTINGS: dict[Any, Any] = {
    "text.parse_math": False,  # names may hold a dollar sign
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
}
FITTING = 60  # characters of a legend in one row
HEADROOM = 1.18  # for the names of actions
Line = Sequence[float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What all pictures of a run share: begins of the bins, their width, the end of the warm-up, and actions by name.
    All in seconds.
    """

    begin_s: Sequence[float]
    bin_s: float
    warm_up_s: float
    actions: Mapping[str, float]


def draw(lines: Mapping[str, Line], label: str, frame: Frame, name: str, *, log: bool = False) -> str:
    """An SVG of lines over time in steps; gaps where nothing is known. `name`: unique within the page. `log`: where
    values span two decades or more.
    """
    with matplotlib.rc_context(SETTINGS | {"svg.hashsalt": name}):
        figure = Figure(figsize=(6.4, 2.7), layout="constrained")
        axes = figure.subplots()
        for index, (name, values) in enumerate(lines.items()):
            _line(axes, frame, values, name, index)
        _dress(axes, frame, label)
        if log and _wide(lines):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")  # powers would be mathtext
        else:
            axes.set_ylim(0, HEADROOM * _most(lines))
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(file.getvalue())


def _line(axes: Axes, frame: Frame, values: Line, name: str, index: int) -> None:
    known = np.array([np.nan if value is None else value for value in values], dtype=float)
    edges = np.append(np.array(frame.begin_s), frame.begin_s[-1] + frame.bin_s)
    axes.plot(
        edges,
        np.append(known, known[-1]),
        drawstyle="steps-post",
        color=SERIES[index % len(SERIES)],
        linestyle=STYLES[index % len(STYLES)],
        linewidth=1.5,
        label=name,
    )


def _dress(axes: Axes, frame: Frame, label: str) -> None:
    axes.set_xlabel("seconds of the run")
    axes.set_ylabel(label)
    axes.set_xlim(0, frame.begin_s[-1] + frame.bin_s)
    axes.grid(linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    if frame.warm_up_s:
        axes.axvspan(0, frame.warm_up_s, color=FAINT, linewidth=0, label="warm-up, not counted")
    for name, at_s in frame.actions.items():
        axes.axvline(at_s, color=INK, linewidth=1, linestyle=":")
        axes.annotate(name, (at_s, 1.0), xycoords=("data", "axes fraction"), xytext=(3, -8), textcoords="offset points")
    _, labels = axes.get_legend_handles_labels()
    # A legend wider than the picture would make the axes narrower.
    abreast = 4 if sum(map(len, labels)) <= FITTING else 3
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=abreast, fontsize=8, frameon=False, borderaxespad=0.2)


def _most(lines: Mapping[str, Line]) -> float:
    return max((value for values in lines.values() for value in values if value), default=1.0)


def _wide(lines: Mapping[str, Line]) -> bool:
    known = [value for values in lines.values() for value in values if value]
    return bool(known) and min(known) > 0 and max(known) / min(known) >= 100


def _inline(svg: str) -> str:
    """Without what only files need: the prologue, sizes, and ids that nothing refers to."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )
    for drawn, name in NAMES.items():
        svg = svg.replace(drawn, name)
    return svg.replace("<svg ", '<svg aria-hidden="true" ', 1)
