"""A client's video or sound, decoded by libav under bounds. Run in a process of its own: see apart.py.

Containers and codecs are those listed; frames, pixels and length are bounded before they are decoded and while they
are. Of what is written, the failures are OSError; of what is read, all are InvalidRequest.
"""

import wave
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from deployments.video.encode import beside, write_master
from deployments.video.fit import Clip, fitted, refused
from deployments.video.sound import HZ, resampled
from deployments.video.spec import Frames

MOST_SECONDS = 120
MOST_FRAMES = 14_400  # 120 s at 120 frames a second
MOST_FRAME_PIXELS = 4096 * 2304  # the rows that codecs add are in it
ROUNDING_S = 0.001  # Matroska's times are whole milliseconds
MOST_DECODED_PIXELS = 15_000_000_000  # 120 s of 1920x1080 at 60 frames a second
VIDEO_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm"
VIDEO_CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "ffv1")
VIDEO_TEXT = "MP4, MOV, WebM and Matroska with H.264, HEVC, VP8, VP9, AV1 or FFV1 are allowed"
SOUND_FORMATS = f"wav,mp3,flac,ogg,{VIDEO_FORMATS}"
SOUND_CODECS = ("aac", "alac", "flac", "mp3", "mp3float", "opus", "libopus", "vorbis")
SOUND_CODECS_PCM = ("pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le")
SOUND_TEXT = "WAV, MP3, FLAC, Ogg and the sound of MP4, MOV and WebM are allowed"


def video(data: bytes, clip: Clip, out: Path, param: str) -> int:
    """See inputs.video."""
    with opened(data, VIDEO_FORMATS, VIDEO_TEXT, param) as container:
        stream = stream_of(container.streams.video, VIDEO_CODECS, VIDEO_TEXT, param)
        stream.codec_context.options = {"max_pixels": str(MOST_FRAME_PIXELS)}
        _check(stream.codec_context.width * stream.codec_context.height, MOST_FRAME_PIXELS, "pixels a frame", param)
        shown = shown_of(whole(container, stream, param), clip, param)
        return write_master((_fitted(picture, clip) for picture in shown), clip.fps, out)


def sound(data: bytes, clip: Clip, out: Path, param: str) -> int:
    """See inputs.audio."""
    left = samples = clip.frames * HZ // clip.fps
    with opened(data, SOUND_FORMATS, SOUND_TEXT, param) as container, beside(out) as partial:
        stream = stream_of(container.streams.audio, SOUND_CODECS + SOUND_CODECS_PCM, SOUND_TEXT, param)
        with wave.open(str(partial), "wb") as file:
            file.setparams((2, 2, HZ, 0, "NONE", "not compressed"))
            for piece in resampled(whole(container, stream, param), "s16"):
                pcm = piece.to_ndarray()[:, : 2 * left]  # interleaved
                file.writeframes(pcm.tobytes())
                left -= pcm.shape[1] // 2
                if not left:
                    break
        if left == samples:
            raise refused(param, "has no sound", SOUND_TEXT, "check what was uploaded")
    return samples - left


@contextmanager
def opened(data: bytes, formats: str, allowed: str, param: str, most_s: int = MOST_SECONDS) -> Iterator[Any]:
    import av

    bounds = {"format_whitelist": formats, "max_pixels": str(MOST_FRAME_PIXELS)}
    try:
        container: Any = av.open(BytesIO(data), options=bounds)
    except MemoryError:
        raise
    except Exception:  # what libav raises on bad bytes is not documented
        raise refused(param, "cannot be opened", allowed, "convert it, or send it again whole") from None
    with container:
        seconds = (container.duration or 0) / av.time_base
        _check(seconds, most_s, "seconds", param)
        yield container


def stream_of(streams: Any, codecs: tuple[str, ...], allowed: str, param: str) -> Any:
    if not streams:
        raise refused(param, "has none of the kind that is asked for", allowed, "check what was uploaded")
    name = streams[0].codec_context.codec.name if streams[0].codec_context else "an unknown codec"
    if name not in codecs:
        raise refused(param, f"is coded with {name}", allowed, "convert it")
    return streams[0]


def whole(container: Any, stream: Any, param: str) -> Iterator[Any]:
    """Decoded frames. Raises InvalidRequest where one cannot be, or where the file ends before it says it does."""
    until_s = 0.0
    try:
        for packet in container.demux(stream):
            for frame in packet.decode():
                if packet.is_corrupt or frame.is_corrupt:
                    raise ValueError("a corrupt frame")
                until_s = max(until_s, _end_s(frame))
                yield frame
    except MemoryError:
        raise
    except Exception:
        raise refused(param, "is corrupt or cut short", "a whole file is allowed", "send it again") from None
    said_s = float((stream.duration or 0) * stream.time_base)
    if until_s < said_s - 1:
        raise refused(param, f"ends at {until_s:.1f} of {said_s:.1f} s", "a whole file is allowed", "send it again")


def shown_of(frames: Iterator[Any], clip: Clip, param: str) -> Iterator[Any]:
    """Of frames of any rate, what is on the screen at each of the clip's times, from the first on."""
    times = [index / clip.fps for index in range(clip.frames)][::-1]
    held: Any = None
    start_s = pixels = 0.0
    for count, frame in enumerate(chain(frames, [None]), 1):
        if held is None and frame is None:
            raise refused(param, "has no frames", VIDEO_TEXT, "check what was uploaded")
        start_s = _at_s(frame) if held is None else start_s
        until_s = (_end_s(held) if frame is None else _at_s(frame)) - start_s - ROUNDING_S
        while held is not None and times and times[-1] < until_s:
            yield held
            times.pop()
        if frame is None or not times:
            return
        held = frame
        pixels += frame.width * frame.height
        _check(count, MOST_FRAMES, "frames", param)
        _check(pixels, MOST_DECODED_PIXELS, "pixels in all", param)


def _fitted(frame: Any, clip: Clip) -> Frames:
    from PIL import Image

    upright = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
    return np.asarray(fitted(Image.fromarray(upright), clip))[None]


def _at_s(frame: Any) -> float:
    return float(frame.time or 0)


def _end_s(frame: Any) -> float:
    return _at_s(frame) + max(float((frame.duration or 0) * frame.time_base), 0.01)  # the last may have no length


def _check(given: float, most: int, what: str, param: str) -> None:
    if given > most:
        raise refused(param, f"{given:.0f} {what}", f"at most {most} are allowed", "send a shorter or smaller one")
