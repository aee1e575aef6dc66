"""Sound and clips for a language model, decoded and sampled. Run in a process of its own: see apart.py."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cluster.inputs import FRAMES_PER_S, HZ, MOST_CLIP_S, Media
from deployments.inputs.look import Found, Look, write
from deployments.inputs.pictures import jpeg
from deployments.video.demux import (
    SOUND_CODECS,
    SOUND_CODECS_PCM,
    VIDEO_CODECS,
    VIDEO_FORMATS,
    VIDEO_TEXT,
    opened,
    shown_of,
    stream_of,
    whole,
)
from deployments.video.fit import Clip, refused
from deployments.video.sound import resampled

MOST_SOUND_S = 300
_FRAMES = MOST_CLIP_S * FRAMES_PER_S
_SOUND_TEXT = "WAV and MP3 are allowed"


def sound(data: bytes, look: Look, out: Path, where: str) -> int:
    """One channel at HZ. `form` is all that the file may be. Raises InvalidRequest; OSError where the disk does."""
    samples = _samples(data, look.form or "wav", MOST_SOUND_S, where)
    if not samples:
        raise refused(where, "has no sound", _SOUND_TEXT, "check what was encoded")
    return write(Found(media=(Media(kind="audio", at=0, where="", sound=samples),)), out, where)


def clip(data: bytes, look: Look, out: Path, where: str) -> int:
    """Frames at FRAMES_PER_S, from the first on, and its sound where it has some. Raises as `sound` does."""
    with opened(data, VIDEO_FORMATS, VIDEO_TEXT, where, MOST_CLIP_S) as container:
        stream = stream_of(container.streams.video, VIDEO_CODECS, VIDEO_TEXT, where)
        heard = bool(container.streams.audio)
        # One more than are allowed: where there is one, the clip is too long, whatever it says of itself.
        times = Clip(width=1, height=1, frames=_FRAMES + 1, fps=FRAMES_PER_S)
        pictures = [_picture(frame, look.side_px) for frame in shown_of(whole(container, stream, where), times, where)]
    if len(pictures) > _FRAMES:
        raise _too_long(where, MOST_CLIP_S)
    samples = _samples(data, VIDEO_FORMATS, MOST_CLIP_S, where) if heard else b""
    width, height = pictures[0].size
    same = [picture if picture.size == (width, height) else picture.resize((width, height)) for picture in pictures]
    frames = tuple(map(jpeg, same))
    one = Media(kind="video", at=0, where="", pictures=frames, sound=samples, width=width, height=height)
    return write(Found(media=(one,)), out, where)


def _samples(data: bytes, formats: str, most_s: int, where: str) -> bytes:
    with opened(data, formats, _SOUND_TEXT, where, most_s) as container:
        stream = stream_of(container.streams.audio, SOUND_CODECS + SOUND_CODECS_PCM, _SOUND_TEXT, where)
        parts, left = [], most_s * HZ
        for piece in _pieces(container, stream, where):
            left -= piece.size
            if left < 0:
                raise _too_long(where, most_s)
            parts.append(piece.astype("<i2").tobytes())
    return b"".join(parts)


def _pieces(container: Any, stream: Any, where: str) -> Iterator[Any]:
    for piece in resampled(whole(container, stream, where), "s16", "mono", HZ):
        yield piece.to_ndarray()[0, : piece.samples]


def _picture(frame: Any, side_px: int) -> Image.Image:
    picture = Image.fromarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
    picture.thumbnail((side_px, side_px))
    return picture


def _too_long(where: str, most_s: int) -> Exception:
    return refused(where, f"is longer than {most_s} s", f"{most_s} s are allowed", "send a part of it")
