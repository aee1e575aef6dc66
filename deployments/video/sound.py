"""Sound for a clip: any file with sound, brought to 48 kHz stereo and to AAC, no further than the picture is."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from cluster.errors import InvalidRequest

HZ = 48_000
BIT_RATE = 192_000


class Sound:
    """Read as it is needed. Raises InvalidRequest where the file has no sound."""

    def __init__(self, file: Path) -> None:
        import av

        self._source = av.open(str(file))
        if not self._source.streams.audio:
            self._source.close()
            raise InvalidRequest(
                f"{file.name}: has no sound; a file with an audio stream is allowed; leave the audio out",
                param="audio_reference",
            )
        self._fifo = av.AudioFifo()
        self._pieces = resampled(self._source.decode(audio=0), "fltp")
        self._done = 0

    def __enter__(self) -> "Sound":
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()

    def into(self, container: Any) -> "Sound":
        self._stream = container.add_stream("aac", rate=HZ, layout="stereo")
        self._stream.bit_rate = BIT_RATE
        return self

    def until(self, seconds: Fraction) -> list[Any]:
        """Packets of the sound up to then, from where the last ones ended; fewer where the file ends before."""
        wanted = int(seconds * HZ) - self._done
        while self._fifo.samples < wanted and (piece := next(self._pieces, None)):
            piece.pts = None  # the queue counts samples itself
            self._fifo.write(piece)
        frame = self._fifo.read(min(wanted, self._fifo.samples)) if self._fifo.samples else None
        if frame is None or wanted <= 0:
            return []
        frame.pts, frame.time_base = self._done, Fraction(1, HZ)
        self._done += frame.samples
        packets: list[Any] = self._stream.encode(frame)
        return packets

    def end(self) -> list[Any]:
        packets: list[Any] = self._stream.encode()
        return packets


def resampled(frames: Iterator[Any], form: str) -> Iterator[Any]:
    """48 kHz stereo of that sample format."""
    import av

    to_pcm = av.AudioResampler(format=form, layout="stereo", rate=HZ)
    for frame in frames:
        yield from to_pcm.resample(frame)
    yield from to_pcm.resample(None)
