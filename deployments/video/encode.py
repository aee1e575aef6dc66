"""RGB frames to files as they come, and back: an H.264 MP4 that browsers play, and a master that keeps every bit.

The MP4 is yuv420p, BT.709, its index at the front (faststart), a key frame every two seconds, sound as AAC. The master
is FFV1 in Matroska, each frame whole in itself. A file is written beside its place and renamed once it is whole, so a
reader never meets half of one; what fails, by a full disk too, leaves nothing. Faststart reopens the file by name,
so it cannot be written to memory. Beside what the encoders hold back, memory is bounded by one chunk of frames.
"""

import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import InvalidRequest
from deployments.video import sound
from deployments.video.sound import Sound
from deployments.video.spec import Frames

CRF = "20"
PRESET = "veryfast"
KEY_FRAME_EVERY_S = 2


def write(
    frames: Iterable[Frames],
    fps: int,
    path: Path,
    *,
    title: str = "",
    audio: Path | None = None,
    out: tuple[int, int, int] | None = None,
) -> None:
    """`frames`: chunks of one size. `out`: width, height and frames per second delivered, where not as rendered.

    Frames are scaled, and repeated or left out, never mixed. `audio`: a file with sound; what is longer than the clip
    is cut off. `title` goes into the metadata. Raises InvalidRequest; OSError untouched.
    """
    pictures = _pictures(frames)
    first = next(pictures, None)
    width, height, out_fps = out or ((first.width, first.height, fps) if first else (0, 0, fps))
    if first is None or width % 2 or height % 2:
        raise InvalidRequest(
            f"{path.name}: {'frames' if first else 'no frames'} of {width}x{height}; H.264 with yuv420p takes at least "
            "one frame and even sides; change the size",
            param="size",
        )
    with (
        beside(path) as partial,
        sound.of(audio) if audio else nullcontext() as heard,
        _Delivered(partial, (width, height), (fps, out_fps), title, heard) as delivered,
    ):
        for picture in chain([first], pictures):
            delivered.add(picture)


def write_master(frames: Iterable[Frames], fps: int, path: Path) -> int:
    """The master. Returns how many frames it has. Raises OSError."""
    with beside(path) as partial, _Master(partial, fps) as kept:
        for picture in _pictures(frames):
            kept.add(picture)
    return kept.frames


def read(path: Path, frames: int = 16) -> Iterator[Frames]:
    """A file of ours, up to so many frames at a time. Of a master they are bit for bit those that were written."""
    import av

    with av.open(str(path)) as container:
        chunk = []
        for picture in container.decode(video=0):
            chunk.append(picture.to_ndarray(format="rgb24"))
            if len(chunk) == frames:
                yield np.stack(chunk)
                chunk = []
        if chunk:
            yield np.stack(chunk)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A file to write first, which takes the place of `path` where nothing failed."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")  # two replicas may write the same video
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


class _Delivered:
    """The MP4. `fps`: of the frames that come, and of those that leave."""

    def __init__(
        self, path: Path, size: tuple[int, int], fps: tuple[int, int], title: str, sound: Sound | None
    ) -> None:
        import av
        from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation

        self._width, self._height = size
        self._fps, self._out_fps = fps
        self._seen = self._written = 0
        self._space, self._scaler = Colorspace.ITU709, Interpolation.LANCZOS
        self._container = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
        self._container.metadata.update({"title": title} if title else {})
        options = {"crf": CRF, "preset": PRESET, "g": str(KEY_FRAME_EVERY_S * self._out_fps)}
        self._stream: Any = self._container.add_stream("libx264", rate=self._out_fps, options=options)
        self._stream.width, self._stream.height = size
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.colorspace = Colorspace.ITU709
        self._stream.codec_context.color_range = ColorRange.MPEG
        self._stream.codec_context.color_primaries = ColorPrimaries.BT709
        self._stream.codec_context.color_trc = ColorTrc.BT709
        self._sound = sound.into(self._container) if sound else None

    def __enter__(self) -> "_Delivered":
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        """What the encoders held back, where nothing failed; the container is closed in any case."""
        with self._container:
            if failed is None:
                self._container.mux(self._stream.encode())
                if self._sound:
                    self._container.mux(self._sound.end())

    def add(self, picture: Any) -> None:
        """Written as often as it is shown: frame i of those that leave is frame floor(i fps / out_fps) of ours."""
        self._seen += 1
        until = -(-self._seen * self._out_fps // self._fps)
        if self._written == until:
            return
        scaled = picture.reformat(
            self._width, self._height, "yuv420p", dst_colorspace=self._space, interpolation=self._scaler
        )
        for index in range(self._written, until):
            self._container.mux(self._stream.encode(_at(scaled, index, self._out_fps)))
        self._written = until
        if self._sound:
            self._container.mux(self._sound.until(Fraction(until, self._out_fps)))


class _Master:
    """FFV1 of 8 bits RGB; its size is that of the first frame."""

    def __init__(self, path: Path, fps: int) -> None:
        import av

        self._fps, self.frames = fps, 0
        self._container = av.open(str(path), "w", format="matroska", options={"fflags": "+bitexact"})
        self._stream: Any = self._container.add_stream("ffv1", rate=fps, options={"level": "3", "g": "1"})
        self._stream.pix_fmt = "bgr0"

    def __enter__(self) -> "_Master":
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        with self._container:
            if failed is None:
                self._container.mux(self._stream.encode())

    def add(self, picture: Any) -> None:
        if not self.frames:
            self._stream.width, self._stream.height = picture.width, picture.height
        self._container.mux(self._stream.encode(_at(picture.reformat(format="bgr0"), self.frames, self._fps)))
        self.frames += 1


def _pictures(frames: Iterable[Frames]) -> Iterator[Any]:
    """Copies, frame by frame: neither a chunk nor a view of it is held while the next is made. Raises ValueError."""
    import av

    size = None
    for chunk in frames:
        size = size or chunk.shape[1:]
        if chunk.shape[1:] != size:
            raise ValueError(f"frames: {chunk.shape[1:]} after {size}; one shape is allowed; check the decoder")
        for index in range(len(chunk)):
            yield av.VideoFrame.from_ndarray(chunk[index], format="rgb24")
        del chunk


def _at(picture: Any, index: int, fps: int) -> Any:
    picture.pts, picture.time_base = index, Fraction(1, fps)
    return picture
