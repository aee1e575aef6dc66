"""Marks on a clip: which tokens an edit computes anew, and which pixels it may change."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.clip import Grid, Region, Span, marked, pixels

GRID = Grid(width=64, height=48, frames=17, every_frames=4, cell_px=16)


@st.composite
def marks(draw: st.DrawFn) -> tuple[Grid, int, Span, Region]:
    cell = draw(st.sampled_from([8, 16]))
    across, down = draw(st.integers(1, 6)) * cell, draw(st.integers(1, 6)) * cell
    frames, fps = draw(st.integers(1, 40)), draw(st.integers(1, 24))
    grid = Grid(width=across, height=down, frames=frames, cell_px=cell)
    first = draw(st.integers(0, frames - 1))
    last = draw(st.integers(first, frames - 1))
    x, y = draw(st.integers(0, across - 1)), draw(st.integers(0, down - 1))
    region = Region(x=x, y=y, width=draw(st.integers(1, across - x)), height=draw(st.integers(1, down - y)))
    return grid, fps, Span(start_s=first / fps, end_s=(last + 1) / fps), region


def test_a_clip_of_17_frames_has_5_latent_frames_of_tokens() -> None:
    assert GRID.shape == (5, 3, 4)
    assert GRID.tokens == 60


def test_no_mark_is_the_whole_clip() -> None:
    assert marked(GRID, 8, None, None).all()


@pytest.mark.parametrize(
    ("span", "latents"),
    [((0, 1 / 8), [0]), ((1 / 8, 5 / 8), [1]), ((0.5, 1), [1, 2]), ((2, 17 / 8), [4]), ((0, 9), [0, 1, 2, 3, 4])],
)
def test_a_span_marks_the_latent_frames_that_it_touches(span: tuple[float, float], latents: list[int]) -> None:
    mask = marked(GRID, 8, Span(start_s=span[0], end_s=span[1]), None)
    assert np.flatnonzero(mask.any(axis=(1, 2))).tolist() == latents


def test_a_region_is_grown_to_whole_tokens() -> None:
    mask = marked(GRID, 8, None, Region(x=17, y=0, width=16, height=1))
    assert mask[0].tolist() == [[False, True, True, False], [False] * 4, [False] * 4]


@given(marks())
def test_every_marked_pixel_may_change_and_whole_tokens_alone(given: tuple[Grid, int, Span, Region]) -> None:
    grid, fps, span, region = given
    mask = marked(grid, fps, span, region)
    changed = pixels(grid, mask)
    assert changed.shape == (grid.frames, grid.height, grid.width)
    first, end = round(span.start_s * fps), round(span.end_s * fps)
    assert changed[first:end, region.y : region.y + region.height, region.x : region.x + region.width].all()
    assert changed.any(axis=(1, 2)).sum() <= end - first + 2 * (grid.every_frames - 1)
    assert mask.any()
