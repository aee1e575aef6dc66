"""Sound for a clip: any file with sound, brought to 48 kHz stereo and to AAC, no further than the picture is."""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.errors import InvalidRequest

HZ = 48_000
BIT_RATE = 192_000


class Sound:
    """`pieces`: 48 kHz stereo, planar floats; they are read as they are needed."""

    def __init__(self, pieces: Iterator[Any]) -> None:
        import av

        self._pieces, self._fifo, self._done = pieces, av.AudioFifo(), 0

    def into(self, container: Any) -> "Sound":
        self._stream = container.add_stream("aac", rate=HZ, layout="stereo")
        self._stream.bit_rate = BIT_RATE
        return self

    def until(self, seconds: Fraction) -> list[Any]:
        """Packets of the sound up to then, from where the last ones ended; fewer where the file ends before."""
        wanted = int(seconds * HZ) - self._done
        if wanted <= 0:
            return []
        while self._fifo.samples < wanted and (piece := next(self._pieces, None)):
            piece.pts = None  # the queue counts samples itself
            self._fifo.write(piece)
        if not self._fifo.samples:
            return []
        frame: Any = self._fifo.read(min(wanted, self._fifo.samples))
        frame.pts, frame.time_base = self._done, Fraction(1, HZ)
        self._done += frame.samples
        packets: list[Any] = self._stream.encode(frame)
        return packets

    def end(self) -> list[Any]:
        packets: list[Any] = self._stream.encode()
        return packets


@contextmanager
def of(file: Path) -> Iterator[Sound]:
    """Its sound, at 48 kHz. Raises InvalidRequest where it has none."""
    import av

    with av.open(str(file)) as source:
        if not source.streams.audio:
            raise InvalidRequest(
                f"{file.name}: has no sound; a file with an audio stream is allowed; leave the audio out",
                param="audio_reference",
            )
        yield Sound(resampled(source.decode(audio=0), "fltp"))


def resampled(frames: Iterator[Any], form: str, layout: str = "stereo", rate_hz: int = HZ) -> Iterator[Any]:
    """In that sample format."""
    import av

    to_pcm = av.AudioResampler(format=form, layout=layout, rate=rate_hz)
    for frame in frames:
        yield from to_pcm.resample(frame)
    yield from to_pcm.resample(None)


def of_samples(samples: NDArray[np.float32]) -> Any:
    """48 kHz stereo, [2, samples], as a piece of sound."""
    import av

    piece = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout="stereo")
    piece.sample_rate = HZ
    return piece
