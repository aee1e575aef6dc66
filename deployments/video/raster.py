"""A client's picture, decoded by Pillow under bounds. Run in a process of its own: see apart.py.

It is turned upright as its file says, put on white where it is transparent, and its middle is cut out in the clip's
aspect ratio and scaled to the clip's size; a mask is not, it must be of that size. Pixels count as square, colours as
sRGB. Of what is written, the failures are OSError; of what is read, all are InvalidRequest.
"""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cluster.errors import InvalidRequest
from deployments.video.fit import Clip, fitted, refused

MOST_PIXELS = 1 << 25  # of an image: 8192 x 4096. Read, one takes 200 to 330 MiB, a WebP with alpha 600
MOST_SCANS = 100  # of a JPEG: each is a pass over all of its pixels
KINDS = ("PNG", "JPEG", "WEBP")
KINDS_TEXT = "PNG, JPEG and WebP are allowed"


def image(data: bytes, clip: Clip, out: Path, param: str) -> int:
    """See inputs.image."""
    return _put(fitted(read(data, param), clip), out)


def mask(data: bytes, clip: Clip, out: Path, param: str) -> int:
    """See inputs.mask."""
    picture = read(data, param)
    if picture.size != (clip.width, clip.height):
        size = f"is {picture.width}x{picture.height}"
        raise refused(param, size, f"the clip's {clip.width}x{clip.height} is allowed", "send one of that size")
    if picture.has_transparency_data and picture.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise refused(param, "is transparent in parts", "black and white are allowed", "paint white what may change")
    marked = np.asarray(picture.convert("L")) >= 128
    if not marked.any():
        raise refused(param, "marks nothing", "white marks what may change", "paint some of it white")
    return _put(Image.fromarray(marked.astype(np.uint8) * 255), out)


def read(data: bytes, param: str) -> Image.Image:
    """One picture, upright. What a decoder raises on bad bytes is not documented, so whatever it is means bad bytes."""
    try:
        with Image.open(BytesIO(data), formats=KINDS) as found:
            _check(found, data, param)
            found.load()
            ImageOps.exif_transpose(found, in_place=True)
            return _eight_bits(found)
    except (InvalidRequest, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(param, "has far too many pixels") from None
    except UnidentifiedImageError:
        raise refused(param, "is no image that can be read here", KINDS_TEXT, "convert it") from None
    except Exception as error:
        raise refused(param, f"is corrupt or cut short ({type(error).__name__})", KINDS_TEXT, "save it anew") from None


def _check(found: Image.Image, data: bytes, param: str) -> None:
    """Before any of its pixels is read."""
    if found.width * found.height > MOST_PIXELS:
        raise _too_large(param, f"is {found.width}x{found.height}")
    if found.format in ("PNG", "WEBP") and getattr(found, "is_animated", False):
        raise refused(param, "moves", "one picture is allowed", "send a still, or a video as video_reference")
    # Pillow calls a JPEG with an index of pictures MPO.
    if found.format not in ("PNG", "WEBP") and data.count(b"\xff\xda") > MOST_SCANS:
        raise refused(param, "has too many scans", f"at most {MOST_SCANS} are allowed", "save it as a baseline JPEG")


def _too_large(param: str, given: str) -> InvalidRequest:
    return refused(param, given, f"at most {MOST_PIXELS} pixels are allowed", "scale it down")


def _eight_bits(picture: Image.Image) -> Image.Image:
    if picture.mode not in ("I", "I;16"):
        return picture
    return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))  # converting would clip all above 255


def _put(picture: Image.Image, out: Path) -> int:
    """Its bytes."""
    encoded = BytesIO()
    picture.save(encoded, "PNG", compress_level=1)
    return out.write_bytes(encoded.getvalue())
