"""Images, masks and videos of a job's folder as pixels, and the pixels that an edit leaves alone."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.clip import Grid
from cluster.errors import InvalidRequest
from deployments.video.spec import Frames, RenderSpec

MASTER = "master.mkv"


def image(path: Path, spec: RenderSpec, param: str) -> Any:
    """A PIL image, RGB, as large as the frame: scaled to cover it, what is over cut off at the edges."""
    from PIL import Image, ImageOps

    with _opened(path, spec, param) as opened:
        return ImageOps.fit(opened.convert("RGB"), (spec.width, spec.height), Image.Resampling.LANCZOS)


def reference(path: Path, spec: RenderSpec) -> Any:
    """A PIL image, RGB, as it is: of what is to appear."""
    with _opened(path, spec, "image_references") as opened:
        return opened.convert("RGB")


def mask(path: Path, spec: RenderSpec, grid: Grid) -> NDArray[np.bool_]:
    """Tokens [down, across] of which any pixel is at least half white. Raises InvalidRequest for another size."""
    with _opened(path, spec, "mask") as opened:
        if opened.size != (spec.width, spec.height):
            raise InvalidRequest(
                f"{spec.job_id}: mask: {opened.width}x{opened.height}; the size of the frames, "
                f"{spec.width}x{spec.height}, is allowed; scale the mask",
                param="mask",
            )
        white: NDArray[np.bool_] = np.asarray(opened.convert("L")) >= 128
    _, down, across = grid.shape
    cells = white.reshape(down, grid.cell_px, across, grid.cell_px)
    touched: NDArray[np.bool_] = np.logical_or.reduce(cells, axis=(1, 3))
    return touched


def frames(path: Path, spec: RenderSpec) -> Iterator[Frames]:
    """Frames [H, W, 3] of a video at the job's size and rate: of each moment the frame that is shown then.

    Times in files are rounded to milliseconds; a quarter of a frame is more than that.
    """
    import av

    try:
        yield from _shown(path, spec)
    except (av.FFmpegError, IndexError) as error:
        raise InvalidRequest(
            f"{spec.job_id}: video_reference: {getattr(error, 'strerror', None) or error}; a video that FFmpeg reads "
            "is allowed; give another",
            param="video_reference",
        ) from error


def _shown(path: Path, spec: RenderSpec) -> Iterator[Frames]:
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        due = 0
        for frame in container.decode(stream):
            until_s = (frame.time or 0.0) + float(1 / (stream.average_rate or spec.fps)) - 0.25 / spec.fps
            pixels: Any = frame.to_ndarray(format="rgb24", width=spec.width, height=spec.height)
            while due / spec.fps < until_s:
                yield pixels
                due += 1


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


def _opened(path: Path, spec: RenderSpec, param: str) -> Any:
    from PIL import Image

    try:
        return Image.open(path)
    except (OSError, Image.DecompressionBombError) as error:
        raise InvalidRequest(
            f"{spec.job_id}: {param}: {error}; an image that Pillow reads is allowed; give another", param=param
        ) from error
