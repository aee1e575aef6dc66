"""What clients send beside words, made into plain files of the clip's own size: PNG, FFV1 in Matroska, WAV.

Nobody after this reads a client's bytes, and they are decoded in processes of their own: see apart.py. All but `fetch`
block.
"""

from pathlib import Path

from deployments.video import apart
from deployments.video.fetch import fetch as fetch
from deployments.video.fit import Clip as Clip
from deployments.video.fit import refused


def image(data: bytes, clip: Clip, out: Path, *, param: str, limit_bytes: int) -> None:
    """A PNG, RGB of 8 bits, of the clip's size in `out`. Raises InvalidRequest; OSError where the disk says no."""
    _bound(data, param, limit_bytes)
    apart.run("image", data, clip, out, param)


def mask(data: bytes, clip: Clip, out: Path, *, param: str, limit_bytes: int) -> None:
    """A PNG, grey, of the clip's size in `out`: 255 where an edit may change, 0 elsewhere. Raises as `image` does."""
    _bound(data, param, limit_bytes)
    apart.run("mask", data, clip, out, param)


def video(data: bytes, clip: Clip, out: Path, *, param: str, limit_bytes: int) -> int:
    """A master of the clip's size and rate in `out`, without sound; returns how many frames, at most the clip's.

    Frame i is what is shown i / fps seconds after the first. Raises InvalidRequest; OSError where the disk says no.
    """
    _bound(data, param, limit_bytes)
    return apart.run("video", data, clip, out, param)


def audio(data: bytes, clip: Clip, out: Path, *, param: str, limit_bytes: int) -> int:
    """A WAV of 16 bits, 48 kHz, stereo in `out`, no longer than the clip; returns how many samples of each channel.

    The sound of a video is taken, too. Raises InvalidRequest; OSError where the disk says no.
    """
    _bound(data, param, limit_bytes)
    return apart.run("sound", data, clip, out, param)


def _bound(data: bytes, param: str, limit_bytes: int) -> None:
    if len(data) > limit_bytes:
        raise refused(param, f"{len(data)} bytes", f"at most {limit_bytes} are allowed", "send a smaller file")
    if not data:
        raise refused(param, "is empty", "a file with content is allowed", "check what was uploaded")
