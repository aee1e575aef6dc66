"""What clients send beside words, made into plain files of the clip's own size: PNG, FFV1 in Matroska, WAV.

Nobody after this reads a client's bytes. A picture is turned upright as its file says, put on white where it is
transparent, and its middle is cut out in the clip's aspect ratio and scaled to the clip's size; a mask is not, it must
be of that size. Pixels count as square, colours as sRGB. All but `fetch` block: they belong into READERS, which bound
how many are read at once.
"""

from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cluster.errors import InvalidRequest
from deployments.video import apart
from deployments.video.fetch import fetch as fetch
from deployments.video.fit import Clip as Clip
from deployments.video.fit import fitted, refused

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

READERS = ThreadPoolExecutor(2, "inputs")
MOST_PIXELS = 1 << 25  # of an image: 8192 x 4096. Read, one takes 200 to 330 MiB, a WebP with alpha 600
MOST_SCANS = 100  # of a JPEG: each is a pass over all of its pixels
KINDS = ("PNG", "JPEG", "WEBP")
KINDS_TEXT = "PNG, JPEG and WebP are allowed"


def image(data: bytes, clip: Clip, *, param: str, limit_bytes: int) -> bytes:
    """A PNG, RGB of 8 bits, of the clip's size. Raises InvalidRequest."""
    return _png(fitted(_read(data, param, limit_bytes), clip))


def mask(data: bytes, clip: Clip, *, param: str, limit_bytes: int) -> bytes:
    """A PNG, grey, of the clip's size: 255 where an edit may change, 0 elsewhere. Raises InvalidRequest."""
    from PIL import Image

    picture = _read(data, param, limit_bytes)
    if picture.size != (clip.width, clip.height):
        size = f"is {picture.width}x{picture.height}"
        raise refused(param, size, f"the clip's {clip.width}x{clip.height} is allowed", "send one of that size")
    if picture.has_transparency_data and picture.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise refused(param, "is transparent in parts", "black and white are allowed", "paint white what may change")
    marked = np.asarray(picture.convert("L")) >= 128
    if not marked.any():
        raise refused(param, "marks nothing", "white marks what may change", "paint some of it white")
    return _png(Image.fromarray(marked.astype(np.uint8) * 255))


def video(data: bytes, clip: Clip, out: Path, *, param: str, limit_bytes: int) -> int:
    """A master of the clip's size and rate in `out`, without sound; returns how many frames, at most the clip's.

    Frame i is what is shown i / fps seconds after the first. Read in a process of its own. Raises InvalidRequest;
    OSError where the disk says no.
    """
    _bound(data, param, limit_bytes)
    return apart.run("video", data, clip, out, param)


def audio(data: bytes, clip: Clip, out: Path, *, param: str, limit_bytes: int) -> int:
    """A WAV of 16 bits, 48 kHz, stereo in `out`, no longer than the clip; returns how many samples of each channel.

    The sound of a video is taken, too. Read in a process of its own. Raises InvalidRequest; OSError where the disk
    says no.
    """
    _bound(data, param, limit_bytes)
    return apart.run("sound", data, clip, out, param)


def _bound(data: bytes, param: str, limit_bytes: int) -> None:
    if len(data) > limit_bytes:
        raise refused(param, f"{len(data)} bytes", f"at most {limit_bytes} are allowed", "send a smaller file")
    if not data:
        raise refused(param, "is empty", "a file with content is allowed", "check what was uploaded")


def _read(data: bytes, param: str, limit_bytes: int) -> "Picture":
    """One picture, upright. What a decoder raises on bad bytes is not documented, so whatever it is means bad bytes."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    _bound(data, param, limit_bytes)
    try:
        with Image.open(BytesIO(data), formats=KINDS) as found:
            _check(found, data, param)
            found.load()
            ImageOps.exif_transpose(found, in_place=True)
            return _eight_bits(found)
    except InvalidRequest:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(param, "has far too many pixels") from None
    except UnidentifiedImageError:
        raise refused(param, "is no image that can be read here", KINDS_TEXT, "convert it") from None
    except Exception as error:
        raise refused(param, f"is corrupt or cut short ({type(error).__name__})", KINDS_TEXT, "save it anew") from None


def _check(found: "Picture", data: bytes, param: str) -> None:
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


def _eight_bits(picture: "Picture") -> "Picture":
    from PIL import Image

    if picture.mode not in ("I", "I;16"):
        return picture
    return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))  # converting would clip all above 255


def _png(picture: "Picture") -> bytes:
    out = BytesIO()
    picture.save(out, "PNG", compress_level=1)
    return out.getvalue()
