"""Files as clients send them beside text: images, sound, clips and documents, made here."""

import io
import wave
from base64 import b64encode
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image


def picture(size: tuple[int, int] = (84, 56), colour: object = (255, 0, 0), form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    mode = options.pop("mode", "RGB")
    Image.new(mode, size, colour).save(out, form, **options)  # type: ignore[arg-type]
    return out.getvalue()


def wav(seconds: float = 1.0, hz: int = 8000, channels: int = 2) -> bytes:
    """A tone of 440 Hz."""
    tone = np.sin(2 * np.pi * 440 * np.arange(int(seconds * hz)) / hz)
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((channels, 2, hz, 0, "NONE", "not compressed"))
        file.writeframes(np.repeat((tone * 16_000).astype("<i2"), channels).tobytes())
    return out.getvalue()


def mp3(seconds: float = 1.0) -> bytes:
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="mp3") as container:
        stream: Any = container.add_stream("mp3", rate=44_100, layout="mono")
        tone = (np.sin(np.arange(int(seconds * 44_100)) / 16) * 8000).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
        frame.sample_rate = 44_100
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    return out.getvalue()


def mp4(seconds: float = 1.0, fps: int = 8, *, sound: bool = True, size: tuple[int, int] = (96, 64)) -> bytes:
    """Black first, then ever lighter."""
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        video: Any = container.add_stream("libx264", rate=fps)
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        audio: Any = container.add_stream("aac", rate=16_000, layout="mono") if sound else None
        count = int(seconds * fps)
        for index in range(count):
            grey = np.full((size[1], size[0], 3), 255 * index // max(1, count - 1), np.uint8)
            frame: Any = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if audio is not None:
            tone = (np.sin(np.arange(int(seconds * 16_000)) / 6) * 0.4).astype(np.float32)
            piece: Any = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
            piece.sample_rate, piece.pts = 16_000, 0
            container.mux([*audio.encode(piece), *audio.encode()])
    return out.getvalue()


def pdf(*pages: str, size: Sequence[float] = (200, 200), extra: str = "") -> bytes:
    """A page for each text; one of "" is empty. `extra`: of the trailer."""
    count = len(pages)
    kids = " ".join(f"{3 + 2 * index} 0 R" for index in range(count))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {count} /MediaBox [0 0 {size[0]} {size[1]}] /Resources << /Font << /F1 "
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>",
    ]
    for index, text in enumerate(pages):
        shown = f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET" if text else ""
        objects.append(f"<< /Type /Page /Parent 2 0 R /Contents {4 + 2 * index} 0 R >>")
        objects.append(f"<< /Length {len(shown)} >>\nstream\n{shown}\nendstream")
    out, places = "%PDF-1.4\n", []
    for number, text in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{text}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    size_line = f"<< /Size {len(objects) + 1} /Root 1 0 R {extra} >>"
    begin = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n"
    return f"{out}{begin}{table}trailer\n{size_line}\nstartxref\n{len(out)}\n%%EOF\n".encode("latin-1")


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{b64encode(data).decode()}"


def image_part(data: bytes | None = None, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(picture() if data is None else data)} | more}


def audio_part(data: bytes | None = None, form: str = "wav") -> dict[str, Any]:
    encoded = b64encode(wav() if data is None else data).decode()
    return {"type": "input_audio", "input_audio": {"data": encoded, "format": form}}


def video_part(data: bytes | None = None) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": data_url(mp4() if data is None else data, "video/mp4")}}


def file_part(data: bytes, name: str = "paper.pdf", kind: str = "application/pdf") -> dict[str, Any]:
    return {"type": "file", "file": {"file_data": data_url(data, kind), "filename": name}}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}
