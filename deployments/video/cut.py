"""Clips, one behind the other, as one. Clips that were encoded alike are copied, so that no frame changes; others are

encoded again, scaled to the first one's size and rate. Sound is left out: clips of a storyboard have none.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from deployments.video import encode
from deployments.video.spec import Frames


def join(clips: Sequence[Path], out: Path) -> bool:
    """Whether they could be copied. Blocking. Raises OSError, ValueError where there are none."""
    if not clips:
        raise ValueError("clips: none; at least one is allowed; give one")
    shapes = [_shape(clip) for clip in clips]
    if len(set(shapes)) == 1:
        with encode.beside(out) as partial:
            _copy(clips, partial)
        return True
    width, height, rate, _ = shapes[0]
    encode.write(_frames(clips, (width, height), rate), int(rate), out)
    return False


def _shape(clip: Path) -> tuple[int, int, Fraction, bytes]:
    """What two clips share that one decoder takes: size, rate, and how the encoder was set."""
    import av

    with av.open(str(clip)) as container:
        stream: Any = container.streams.video[0]
        return stream.width, stream.height, stream.average_rate, bytes(stream.codec_context.extradata or b"")


def _copy(clips: Sequence[Path], out: Path) -> None:
    import av

    with av.open(str(out), "w", format="mp4", options={"movflags": "+faststart"}) as target:
        copied: Any = None
        begins = Fraction(0)
        for clip in clips:
            with av.open(str(clip)) as source:
                stream: Any = source.streams.video[0]
                copied = copied or target.add_stream_from_template(stream)
                shift = round(begins / stream.time_base)
                for packet in source.demux(stream):
                    if packet.dts is None:  # the end
                        continue
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, copied
                    target.mux(packet)
                begins += stream.frames / stream.average_rate


def _frames(clips: Sequence[Path], size: tuple[int, int], rate: Fraction) -> Iterator[Frames]:
    """Frames of another rate are repeated, or left out."""
    import numpy as np

    for clip in clips:
        _, _, own, _ = _shape(clip)
        seen = written = 0
        for chunk in encode.read(clip):
            shown = []
            for frame in chunk:
                seen += 1
                until = -(-seen * rate // own)
                shown += [_scaled(frame, size)] * (until - written)
                written = until
            if shown:
                yield np.stack(shown)


def _scaled(frame: Frames, size: tuple[int, int]) -> Frames:
    from PIL import Image

    if (frame.shape[1], frame.shape[0]) == size:
        return frame
    import numpy as np

    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))
