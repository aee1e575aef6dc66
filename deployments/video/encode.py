"""RGB frames to an H.264 MP4 that browsers play: yuv420p, BT.709, index at the front (faststart).

It is written beside its place and renamed, so a reader never meets half a file. Faststart reopens the file by name, so
it cannot be written to memory.
"""

import secrets
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cluster.errors import InvalidRequest

CRF = "20"
PRESET = "veryfast"


def write_mp4(frames: NDArray[np.uint8], fps: int, path: Path, title: str = "") -> None:
    """`frames` are [F, H, W, 3], both sides even. `title` goes into the metadata. Raises InvalidRequest."""
    count, height, width = frames.shape[:3]
    if not count or height % 2 or width % 2:
        raise InvalidRequest(
            f"{path.name}: {count} frames of {width}x{height}; H.264 with yuv420p takes at least one frame and even "
            "sides; change the size",
            param="size",
        )
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")  # two replicas may write the same video
    try:
        _encode(frames, fps, partial, title)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _encode(frames: NDArray[np.uint8], fps: int, path: Path, title: str) -> None:
    import av
    from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        container.metadata.update({"title": title} if title else {})
        stream = container.add_stream("libx264", rate=fps, options={"crf": CRF, "preset": PRESET})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.colorspace = Colorspace.ITU709
        stream.codec_context.color_range = ColorRange.MPEG
        stream.codec_context.color_primaries = ColorPrimaries.BT709
        stream.codec_context.color_trc = ColorTrc.BT709
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)))
        container.mux(stream.encode())
