"""Clips, one behind the other, as one. Clips that were encoded alike are copied, so that no frame changes; others are

encoded again, scaled to the first one's size and rate. Their sound is encoded anew as one, so that nothing clicks where
they meet; a clip without sound is silent for as long as it is.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from deployments.video import encode
from deployments.video.sound import HZ, Sound, of_samples, resampled
from deployments.video.spec import Frames


def join(clips: Sequence[Path], out: Path) -> bool:
    """Whether they could be copied. Blocking. Raises OSError, ValueError where there are none."""
    if not clips:
        raise ValueError("clips: none; at least one is allowed; give one")
    shapes = [_shape(clip) for clip in clips]
    width, height, rate, _ = shapes[0]
    with encode.beside(out) as partial:
        if len(set(shapes)) == 1:
            _copy(clips, _sound(clips, rate), partial)
            return True
        fitted = partial.with_suffix(".fitted")
        try:
            encode.write(_frames(clips, (width, height), rate), int(rate), fitted)
            _copy([fitted], _sound(clips, rate), partial)
        finally:
            fitted.unlink(missing_ok=True)
    return False


def _shape(clip: Path) -> tuple[int, int, Fraction, bytes]:
    """What two clips share that one decoder takes: size, rate, and how the encoder was set."""
    import av

    with av.open(str(clip)) as container:
        stream: Any = container.streams.video[0]
        return stream.width, stream.height, stream.average_rate, bytes(stream.codec_context.extradata or b"")


def _copy(clips: Sequence[Path], sound: Sound | None, out: Path) -> None:
    import av

    with av.open(str(out), "w", format="mp4", options={"movflags": "+faststart"}) as target:
        copied: Any = None
        begins = Fraction(0)
        for clip in clips:
            with av.open(str(clip)) as source:
                stream: Any = source.streams.video[0]
                if copied is None:
                    copied = target.add_stream_from_template(stream)
                    sound = sound and sound.into(target)
                shift = round(begins / stream.time_base)
                for packet in source.demux(stream):
                    if packet.dts is None:  # the end
                        continue
                    shown_s = begins + (packet.pts + packet.duration) * stream.time_base
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, copied
                    target.mux(packet)
                    if sound:
                        target.mux(sound.until(shown_s))
                begins += stream.frames / stream.average_rate
        if sound:
            target.mux([*sound.until(begins), *sound.end()])


def _sound(clips: Sequence[Path], rate: Fraction) -> Sound | None:
    """Of all clips; None where none of them has any."""
    import av

    def heard(clip: Path) -> bool:
        with av.open(str(clip)) as container:
            return bool(container.streams.audio)

    return Sound(_pieces(clips, rate)) if any(map(heard, clips)) else None


def _pieces(clips: Sequence[Path], rate: Fraction) -> Iterator[Any]:
    """As long as each clip is shown at that rate, to the sample: what a file has not is silence, what is more goes."""
    import av

    done, ends_s = 0, Fraction(0)
    for clip in clips:
        with av.open(str(clip)) as source:
            picture: Any = source.streams.video[0]
            ends_s += -(-picture.frames * rate // picture.average_rate) / rate
            left = int(ends_s * HZ) - done
            done += left
            if source.streams.audio:
                for piece in resampled(source.decode(audio=0), "fltp"):
                    kept = min(left, piece.samples)
                    left -= kept
                    if kept:
                        yield piece if kept == piece.samples else of_samples(piece.to_ndarray()[:, :kept])
            if left:
                yield of_samples(np.zeros((2, left), np.float32))


def _frames(clips: Sequence[Path], size: tuple[int, int], rate: Fraction) -> Iterator[Frames]:
    """Frames of another rate are repeated, or left out."""
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
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))
