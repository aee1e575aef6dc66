"""Two pictures of a video: a WebP of its middle, and a JPEG sheet of sixteen frames, four across and four down."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployments.video.encode import KEY_FRAME_EVERY_S, beside

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 4
LONGEST_PX = 640  # of the thumbnail
LONGEST_TILE_PX = 320


def thumbnail(video: Path, out: Path) -> None:
    """Raises OSError."""
    (picture,) = _shrunk(video, 1, LONGEST_PX)
    with beside(out) as partial:
        picture.save(partial, "WEBP", quality=80)


def spritesheet(video: Path, out: Path) -> None:
    """Frames in the middles of sixteen equal parts of the video, in reading order. Raises OSError."""
    from PIL import Image

    sheet = None
    for index, tile in enumerate(_shrunk(video, SIDE * SIDE, LONGEST_TILE_PX)):
        sheet = sheet or Image.new("RGB", (SIDE * tile.width, SIDE * tile.height))
        down, across = divmod(index, SIDE)
        sheet.paste(tile, (across * tile.width, down * tile.height))
    assert sheet is not None
    with beside(out) as partial:
        sheet.save(partial, "JPEG", quality=80)


def _shrunk(video: Path, count: int, longest_px: int) -> Iterator["Image"]:
    """Of each of `count` equal parts of the video, the frame in its middle; no longer side than that."""
    import av

    with av.open(str(video)) as container:
        seconds = (container.duration or 0) / av.time_base
        far = seconds / count > KEY_FRAME_EVERY_S  # it is then quicker to seek than to decode what lies between
        pictures = container.decode(video=0)
        picture = next(pictures)
        for part in range(count):
            at_s = seconds * (part + 0.5) / count
            if far:
                container.seek(int(at_s * av.time_base))
                pictures = container.decode(video=0)
                picture = next(pictures)
            picture = _shown_at(at_s, picture, pictures)
            image = picture.to_image()
            image.thumbnail((longest_px, longest_px))
            yield image


def _shown_at(at_s: float, picture: Any, following: Iterator[Any]) -> Any:
    """The frame on the screen at that time: of those from `picture` on, the first that lasts longer."""
    while float((picture.pts + picture.duration) * picture.time_base) <= at_s:
        later = next(following, None)
        if later is None:
            break
        picture = later
    return picture
