"""A clip as its model sees it: frames and pixels, latents, tokens, and which of them an edit computes anew. Pure.

Wan-like models decode 1 + 4n frames of 1 + n latent frames; a latent covers 8 x 8 pixels, a token 2 x 2 latents or one.
A Grid says it for any model: nothing here knows a family of models.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A part of a clip's time, seconds from its start, the end not in it."""

    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A rectangle of the frame, in pixels from the left and the top."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """`every_frames`: frames per latent frame but the first. `cell_px`: pixels per token, across and down alike."""

    width: int
    height: int
    frames: int
    every_frames: int = 4
    cell_px: int = 16

    @property
    def shape(self) -> tuple[int, int, int]:
        """Tokens [frames, down, across]."""
        return 1 + -(-(self.frames - 1) // self.every_frames), self.height // self.cell_px, self.width // self.cell_px

    @property
    def tokens(self) -> int:
        frames, down, across = self.shape
        return frames * down * across


def marked(grid: Grid, fps: int, span: Span | None, region: Region | None) -> NDArray[np.bool_]:
    """Tokens [frames, down, across] that a mark touches: every token of which any pixel or frame is in it.

    Without a span all of the time is meant, without a region all of the frame. Frame 0 is latent frame 0; frames
    1 + n * every_frames and the following are latent frame 1 + n.
    """
    frames, down, across = grid.shape
    mask = np.ones((frames, down, across), np.bool_)
    if span is not None:
        first, last = _frames(span.start_s, fps, np.floor), _frames(span.end_s, fps, np.ceil) - 1
        mask[: _latent(grid, first)] = False
        mask[_latent(grid, last) + 1 :] = False
    if region is not None:
        cell = grid.cell_px
        mask[:, : region.y // cell] = False
        mask[:, -(-(region.y + region.height) // cell) :] = False
        mask[:, :, : region.x // cell] = False
        mask[:, :, -(-(region.x + region.width) // cell) :] = False
    return mask


def pixels(grid: Grid, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of a mask of tokens, the pixels [frames, height, width] that it covers: what an edit may change."""
    frames = np.minimum((np.arange(grid.frames) + grid.every_frames - 1) // grid.every_frames, mask.shape[0] - 1)
    tall: NDArray[np.bool_] = np.repeat(np.repeat(mask[frames], grid.cell_px, axis=1), grid.cell_px, axis=2)
    return tall


def _frames(at_s: float, fps: int, to_whole: Callable[[float], float]) -> int:
    """To a millionth of a frame: 0.3 s at 10 frames a second are 3, whatever floating point makes of them."""
    return int(to_whole(round(at_s * fps, 6)))


def _latent(grid: Grid, frame: int) -> int:
    return (max(0, frame) + grid.every_frames - 1) // grid.every_frames
