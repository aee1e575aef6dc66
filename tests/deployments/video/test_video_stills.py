from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deployments.video.encode import write
from deployments.video.stills import spritesheet, thumbnail

GREY_STEP = 4


def clip(path: Path, frames: int, fps: int, height: int = 64, width: int = 96) -> Path:
    """Frame i is grey of 4 i."""
    grey = (np.arange(frames) * GREY_STEP).astype(np.uint8)[:, None, None, None]
    write([np.broadcast_to(grey, (frames, height, width, 3))], fps, path)
    return path


def greys(image: Image.Image, across: int, down: int) -> list[float]:
    """What frame each tile shows, row by row, from the grey in its middle."""
    pixels = np.asarray(image.convert("L")).astype(float)
    tall, wide = pixels.shape[0] // down, pixels.shape[1] // across
    middles = pixels[tall // 2 :: tall, wide // 2 :: wide]
    return [float(round(grey / GREY_STEP)) for grey in middles.flatten()]


def test_a_thumbnail_is_a_webp_of_the_middle_frame(tmp_path: Path) -> None:
    thumbnail(clip(tmp_path / "video.mp4", 31, 8), tmp_path / "thumbnail.webp")
    with Image.open(tmp_path / "thumbnail.webp") as image:
        assert (image.format, image.size) == ("WEBP", (96, 64))
        assert greys(image, 1, 1) == [15]


def test_a_thumbnail_of_a_large_video_is_at_most_640_pixels_long(tmp_path: Path) -> None:
    thumbnail(clip(tmp_path / "video.mp4", 2, 8, height=720, width=1280), tmp_path / "thumbnail.webp")
    with Image.open(tmp_path / "thumbnail.webp") as image:
        assert image.size == (640, 360)


@pytest.mark.parametrize(
    ("frames", "fps", "shown"),
    [
        (16, 8, list(range(16))),
        (48, 24, list(range(1, 48, 3))),
        (48, 1, list(range(1, 48, 3))),  # a key frame every two seconds: each tile is sought
        (4, 8, [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4),
        (1, 8, [0] * 16),
    ],
)
def test_a_spritesheet_shows_sixteen_equal_parts_in_reading_order(
    frames: int, fps: int, shown: list[int], tmp_path: Path
) -> None:
    spritesheet(clip(tmp_path / "video.mp4", frames, fps), tmp_path / "spritesheet.jpg")
    with Image.open(tmp_path / "spritesheet.jpg") as image:
        assert (image.format, image.size) == ("JPEG", (4 * 96, 4 * 64))
        assert greys(image, 4, 4) == shown


def test_what_cannot_be_drawn_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_bytes(b"no video")
    for draw, name in ((thumbnail, "thumbnail.webp"), (spritesheet, "spritesheet.jpg")):
        with pytest.raises(ValueError, match="Invalid data"):
            draw(tmp_path / "video.mp4", tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == ["video.mp4"]
