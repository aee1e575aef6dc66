"""Pictures are judged by what was drawn: the axes that the renderer is handed, and a PNG that is not blank."""

import io
from unittest.mock import patch

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from rehearsals import rehearsal

from deployments.report_plot import draw
from deployments.report_table import Rehearsal


def drawn(*rehearsals: Rehearsal) -> Figure:
    """The figure as it is when it is saved."""
    found: list[Figure] = []
    with patch.object(Figure, "savefig", lambda figure, *_, **__: found.append(figure)):
        draw(rehearsals, "a title", io.BytesIO())
    return found[0]


def labels(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def test_it_is_a_png_with_something_in_it() -> None:
    file = io.BytesIO()
    draw([rehearsal()], "a title", file)
    file.seek(0)
    pixels = imread(file)
    assert pixels.shape[:2] == (935, 1210)
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 20


def test_one_policy_shows_demand_replicas_with_gpus_and_misses() -> None:
    figure = drawn(rehearsal())
    demand, replicas, misses, gpus = figure.axes
    assert "requests/s" in demand.get_ylabel()
    assert labels(demand) == ["pro"]  # nobody asked mini
    assert replicas.get_ylabel() == "ready replicas"
    assert labels(replicas)[:2] == ["pro", "video"]
    assert gpus.get_ylabel() == "GPUs held"
    assert "missed" in misses.get_ylabel()
    assert misses.get_xlabel() == "time (minutes)"
    assert figure.get_suptitle() == "a title"


def test_ready_replicas_are_steps() -> None:
    line = drawn(rehearsal()).axes[1].lines[0]
    assert line.get_drawstyle() == "steps-post"
    assert np.asarray(line.get_ydata()).tolist()[:11] == [1] * 10 + [2]


def test_several_policies_show_the_gpus_of_each() -> None:
    _, gpus, misses = drawn(rehearsal("moray"), rehearsal("ray/a=1")).axes
    assert gpus.get_ylabel().startswith("GPUs held")
    assert labels(gpus) == ["moray", "ray/a=1"]
    assert labels(misses) == ["moray", "ray/a=1", "above: a bad minute"]
    looks = [(line.get_color(), line.get_linestyle()) for line in gpus.lines]
    assert len(set(looks)) == 2


def test_more_policies_than_colours_still_look_different() -> None:
    _, gpus, _ = drawn(*(rehearsal(f"static/k={index}") for index in range(14))).axes
    assert len({(line.get_color(), line.get_linestyle()) for line in gpus.lines}) == 14


def test_a_long_run_is_told_in_hours_and_its_demand_is_thinned() -> None:
    figure = drawn(rehearsal(minutes=300))
    demand, _, misses, _ = figure.axes
    assert misses.get_xlabel() == "time (hours)"
    assert 300 <= len(np.asarray(demand.lines[0].get_xdata())) < 600
    assert "means of 60 s" in demand.get_ylabel()
    assert misses.get_xlim()[1] == pytest.approx(5.0, rel=0.1)


def test_a_minute_without_requests_is_a_gap() -> None:
    line = drawn(rehearsal(missing=4)).axes[2].lines[0]
    shares = np.asarray(line.get_ydata(), dtype=float)
    assert np.isnan(shares[4])
    assert np.isfinite(np.delete(shares, 4)).all()
    assert len(shares) == 11  # the last minute has a width, too


def test_a_run_of_nothing_is_drawn_all_the_same() -> None:
    misses = drawn(rehearsal(minutes=0)).axes[2]
    assert [len(np.asarray(line.get_xdata())) for line in misses.lines[:1]] == [0]
    assert misses.get_ylim() == (0, 0.1)
