"""Experts as one picture: of each layer, which experts each domain uses, where their copies lie, and the ranks' loads.

Import this only where a picture is wanted: matplotlib is slow to import.
"""

from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from deployments.experts import Group, Layer, shares

COLOURS = "viridis"  # readable for the colour-blind, and in grey
BAR = "#0072B2"
EMPTY = "#eeeeee"  # where no copy lies
MOST_LAYERS = 48  # of a picture, which then takes ten seconds


def draw(groups: Sequence[Group], title: str, file: BinaryIO) -> None:
    """A PNG with a row for each layer that is shown expert by expert, at least one and at most MOST_LAYERS."""
    found = [(group, layer) for group in groups for layer in group.layers if layer.held.size]
    shown = found[:MOST_LAYERS]
    figure = Figure(figsize=(14, 1.0 + 2.6 * len(shown)), layout="constrained")
    rows = figure.subplots(len(shown), 3, squeeze=False, width_ratios=(10, 10, 5))
    for (group, layer), (domains, places, loads) in zip(shown, rows, strict=True):
        _domains(figure, domains, layer)
        domains.set_title(f"{group.tier}, replica {group.replica or '-'}, layer {layer.index}", loc="left", fontsize=9)
        _places(figure, places, layer)
        _loads(loads, layer)
    figure.suptitle(
        title if len(shown) == len(found) else f"{title}, the first {len(shown)} of {len(found)} layers", fontsize=11
    )
    figure.savefig(file, format="png", dpi=110)


def _domains(figure: Figure, axes: Axes, layer: Layer) -> None:
    names = [f"{name}\n{each.sum():,d} rows" for name, each in layer.since_start.items()] or ["none"]
    cells = np.array([shares(each) for each in layer.since_start.values()] or [np.full(len(layer.held), np.nan)])
    _heat(figure, axes, cells, "share of the domain's\nrows since start")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylabel("domain")


def _places(figure: Figure, axes: Axes, layer: Layer) -> None:
    total = max(1, int(layer.window.sum()))
    _heat(figure, axes, np.where(layer.held, layer.window / total, np.nan).T, "share of the\nwindow's rows")
    axes.set_yticks(range(layer.held.shape[1]))
    axes.set_ylabel("rank (grey: no copy)")


def _heat(figure: Figure, axes: Axes, cells: NDArray[np.float64], of: str) -> None:
    """[row, expert]"""
    axes.set_facecolor(EMPTY)
    image = axes.imshow(cells, cmap=COLOURS, vmin=0, aspect="auto", interpolation="nearest")
    axes.set_xlabel("expert")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
    ticks = MaxNLocator(nbins=5, steps=[1, 2, 5, 10])
    figure.colorbar(image, ax=axes, format=PercentFormatter(xmax=1, decimals=0), label=of, pad=0.01, ticks=ticks)


def _loads(axes: Axes, layer: Layer) -> None:
    loads = np.nan_to_num(layer.rank_shares)
    axes.barh(range(len(loads)), loads, color=BAR)
    axes.axvline(1 / len(loads), color="black", linewidth=0.8, linestyle=":")
    axes.set_ylim(len(loads) - 0.5, -0.5)  # as the ranks beside it
    axes.set_yticks(range(len(loads)))
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.set_xlim(left=0)
    axes.set_xlabel("share of the window's\nrows (dotted: the mean)")
    axes.set_ylabel("rank")
    told = "nothing was routed" if np.isnan(layer.imbalance) else f"most/mean {layer.imbalance:.2f}"
    axes.set_title(told, loc="left", fontsize=9)
