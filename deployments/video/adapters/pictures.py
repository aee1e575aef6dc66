"""Images, masks and videos of a job's folder as pixels, and the pixels that an edit leaves alone.

They are files of our own: what clients send was checked and brought to the clip's size and rate by inputs.py.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.clip import Grid
from deployments.video.encode import read
from deployments.video.spec import Frames, RenderSpec

MASTER = "master.mkv"


def image(path: Path) -> Any:
    """A PIL image, RGB."""
    from PIL import Image

    with Image.open(path) as opened:
        return opened.convert("RGB")


def mask(path: Path, grid: Grid) -> NDArray[np.bool_]:
    """Tokens [down, across] of which any pixel is at least half white."""
    from PIL import Image

    with Image.open(path) as opened:
        white: NDArray[np.bool_] = np.asarray(opened.convert("L")) >= 128
    _, down, across = grid.shape
    cells = white.reshape(down, grid.cell_px, across, grid.cell_px)
    touched: NDArray[np.bool_] = np.logical_or.reduce(cells, axis=(1, 3))
    return touched


def frames(path: Path) -> Iterator[Frames]:
    """Frames [H, W, 3] of a video."""
    for chunk in read(path):
        yield from chunk


def parent(folder: Path, spec: RenderSpec) -> Path | None:
    """The file that has the pixels of what is edited: the parent's master, or a video that was given."""
    master = folder / MASTER
    if master.exists():
        return master
    return folder / spec.inputs.source if spec.inputs.source else None


def composited(
    decoded: Iterable[Frames], known: Iterator[Frames], grid: Grid, tokens: NDArray[np.bool_]
) -> Iterator[Frames]:
    """Outside the mask the known pixels, as long as there are any: a codec that is not block-local leaks over edges."""
    at = 0
    for chunk in decoded:
        mixed = chunk.copy()
        for offset in range(len(chunk)):
            pixels = next(known, None)
            if pixels is None:
                break
            changed = tokens[min((at + offset + grid.every_frames - 1) // grid.every_frames, len(tokens) - 1)]
            inside = np.repeat(np.repeat(changed, grid.cell_px, axis=0), grid.cell_px, axis=1)
            mixed[offset] = np.where(inside[..., None], chunk[offset], pixels)
        at += len(chunk)
        yield mixed
