"""Images for a language model: a client's, decoded and scaled down. Run in a process of its own: see apart.py."""

from io import BytesIO
from pathlib import Path

from PIL import Image

from cluster.inputs import Media
from deployments.inputs.look import Found, Look, write
from deployments.video import raster
from deployments.video.fit import refused

MOST_LENGTHWISE = 200  # times as long as wide: what cuts pictures into patches refuses more
QUALITY = 95


def image(data: bytes, look: Look, out: Path, where: str) -> int:
    """Upright, without an alpha channel, at most `side_px` long. Raises InvalidRequest; OSError where the disk does."""
    picture = raster.read(data, where)
    long, short = max(picture.size), min(picture.size)
    if long > MOST_LENGTHWISE * short:
        raise refused(
            where,
            f"is {picture.width}x{picture.height}",
            f"at most {MOST_LENGTHWISE} times as long as wide is allowed",
            "cut it into pieces",
        )
    return write(Found(media=(of(picture, look.side_px, 0),)), out, where)


def of(picture: Image.Image, side_px: int, at: int) -> Media:
    """On white where it is transparent."""
    small, encoded = _opaque(picture, side_px)
    return Media(kind="image", at=at, where="", pictures=(encoded,), width=small[0], height=small[1])


def jpeg(picture: Image.Image) -> bytes:
    """With all of its colour, so that text in pictures stays sharp."""
    encoded = BytesIO()
    picture.save(encoded, "JPEG", quality=QUALITY, subsampling=0)
    return encoded.getvalue()


def _opaque(picture: Image.Image, side_px: int) -> tuple[tuple[int, int], bytes]:
    mode = "RGBA" if picture.has_transparency_data else "RGB"
    plain = picture if picture.mode == mode else picture.convert(mode)
    if max(plain.size) > side_px:
        scale = side_px / max(plain.size)
        width, height = (max(1, round(side * scale)) for side in plain.size)
        plain = plain.resize((width, height), Image.Resampling.LANCZOS)
    if plain.mode == "RGBA":
        plain = Image.alpha_composite(Image.new("RGBA", plain.size, "white"), plain).convert("RGB")
    return plain.size, jpeg(plain)
