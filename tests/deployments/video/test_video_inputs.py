import contextlib
import io
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from cluster.errors import InvalidRequest
from deployments.video.inputs import MOST_PIXELS, Clip, image, mask

CLIP = Clip(width=96, height=64, frames=16, fps=8)
LIMIT_BYTES = 1 << 20
RED, BLUE = (255, 0, 0), (0, 0, 255)


def file(picture: Image.Image, form: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def solid(size: tuple[int, int] = (96, 64), colour: object = RED, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, size, colour)  # type: ignore[arg-type]


def halves(size: tuple[int, int]) -> Image.Image:
    """Red on the left, blue on the right."""
    picture = solid(size)
    picture.paste(BLUE, (size[0] // 2, 0, *size))
    return picture


def read(data: bytes, clip: Clip = CLIP) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """As the model gets it."""
    with Image.open(io.BytesIO(image(data, clip, param="input_reference", limit_bytes=LIMIT_BYTES))) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (clip.width, clip.height))
        return np.asarray(picture)


def refusal(read_it: Callable[..., object], data: bytes, limit_bytes: int = LIMIT_BYTES) -> str:
    with pytest.raises(InvalidRequest) as refused:
        read_it(data, CLIP, param="input_reference", limit_bytes=limit_bytes)
    assert refused.value.param == "input_reference"
    where, given_, allowed, mend = refused.value.message.replace(": ", "; ", 1).split("; ")
    assert where == "input_reference"
    assert given_
    assert mend
    return f"{given_}; {allowed}"


def bomb(side: int) -> bytes:
    """A PNG of a few kilobytes that says it is of side x side pixels."""
    small = file(solid((1, 1)))
    header = small[12:16] + side.to_bytes(4, "big") * 2 + small[24:29]
    return small[:12] + header + zlib.crc32(header).to_bytes(4, "big") + small[33:]


@given(arrays(np.uint8, (64, 96, 3)))
@settings(max_examples=20)
def test_an_image_of_the_clips_size_keeps_every_pixel(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    assert (read(file(Image.fromarray(pixels))) == pixels).all()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_images_are_read_as(form: str) -> None:
    pixels = read(file(solid((300, 200), (30, 120, 220)), form, quality=90))
    assert np.abs(pixels.astype(int) - (30, 120, 220)).max() <= 4


def test_the_middle_is_cut_out_in_the_clips_aspect_ratio() -> None:
    wide = read(file(halves((960, 64))))  # ten times as wide: what is left is around the middle
    assert wide[32, 8].tolist() == list(RED)
    assert wide[32, 88].tolist() == list(BLUE)


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=30)
def test_any_image_becomes_one_of_the_clips_size(width: int, height: int, to_width: int, to_height: int) -> None:
    clip = Clip(width=to_width, height=to_height, frames=1, fps=1)
    assert (read(file(solid((width, height))), clip) == RED).all()


@pytest.mark.parametrize(("orientation", "left"), [(1, RED), (3, BLUE), (2, BLUE)])
def test_an_image_is_turned_as_its_exif_says(orientation: int, left: tuple[int, int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation  # 3: half a turn, 2: mirrored
    pixels = read(file(halves((96, 64)), "JPEG", exif=exif, quality=95))
    assert np.abs(pixels[32, 8].astype(int) - left).max() < 10


@pytest.mark.parametrize("stored", [(64, 96), (96, 64)])
def test_an_image_that_lies_on_its_side_is_stood_up_before_it_is_cut(stored: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn to the right: left becomes top
    pixels = read(file(halves(stored), "PNG", exif=exif))
    assert (pixels[8, 48] == RED).all()
    assert (pixels[56, 48] == BLUE).all()


def test_what_is_transparent_is_white() -> None:
    clear = solid(colour=(0, 0, 0, 0), mode="RGBA")
    clear.paste((255, 0, 0, 255), (0, 0, 48, 64))
    pixels = read(file(clear))
    assert pixels[32, 8].tolist() == [255, 0, 0]
    assert pixels[32, 88].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("picture", "grey"),
    [
        (solid(colour=200, mode="L"), 200),
        (Image.fromarray(np.full((64, 96), 200 * 256, np.uint16)), 200),  # 16 bits
        (solid(colour=1, mode="1"), 255),
        (solid(colour=(200, 200, 200)).quantize(), 200),
    ],
)
def test_grey_palettes_and_sixteen_bits_keep_their_brightness(picture: Image.Image, grey: int) -> None:
    assert np.abs(read(file(picture)).astype(int) - grey).max() <= 1


PAIR = file(solid(), "MPO", save_all=True, append_images=[solid(colour=BLUE)])
MOVING = file(solid(), "WEBP", save_all=True, append_images=[solid(colour=BLUE)])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty; a file with content is allowed"),
        (b"hello", "is no image that can be read here; PNG, JPEG and WebP are allowed"),
        (file(solid(), "GIF"), "is no image that can be read here; PNG, JPEG and WebP are allowed"),
        (file(solid(), "PNG")[:-40], "is corrupt or cut short"),
        (file(halves((96, 64)), "JPEG")[:-40], "is corrupt or cut short"),
        (file(halves((96, 64)), "WEBP")[:-40], "is corrupt or cut short"),
        (bomb(8_000), f"is 8000x8000; at most {MOST_PIXELS} pixels are allowed"),
        (bomb(60_000), f"has far too many pixels; at most {MOST_PIXELS} pixels are allowed"),
        (MOVING, "moves; one picture is allowed"),
        (file(solid(), "JPEG") + b"\xff\xda" * 200, "has too many scans; at most 100 are allowed"),
        (PAIR + b"\xff\xda" * 200, "has too many scans; at most 100 are allowed"),
    ],
)
def test_what_is_no_image_is_refused_and_says_why(data: bytes, said: str) -> None:
    assert refusal(image, data).startswith(said)
    assert refusal(mask, data).startswith(said)


def test_a_file_beyond_the_limit_is_refused_unread() -> None:
    assert refusal(image, bytes(11), limit_bytes=10) == "11 bytes; at most 10 are allowed"


def test_a_mask_is_black_and_white_and_of_the_clips_size() -> None:
    painted = solid(colour=(100, 100, 100))
    painted.paste((160, 160, 160), (0, 0, 48, 64))
    with Image.open(io.BytesIO(mask(file(painted), CLIP, param="mask", limit_bytes=LIMIT_BYTES))) as made:
        pixels = np.asarray(made)
    assert (pixels[:, :48] == 255).all()
    assert (pixels[:, 48:] == 0).all()


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (solid((64, 96)), "is 64x96; the clip's 96x64 is allowed"),
        (solid((192, 128)), "is 192x128; the clip's 96x64 is allowed"),
        (solid(colour=(0, 0, 0)), "marks nothing; white marks what may change"),
        (solid(colour=(255, 255, 255, 0), mode="RGBA"), "is transparent in parts; black and white are allowed"),
    ],
)
def test_what_is_no_mask_of_the_clip_is_refused(picture: Image.Image, said: str) -> None:
    assert refusal(mask, file(picture)) == said


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """A real image with some of its bytes overwritten, dropped or doubled."""
    data = bytearray(draw(st.sampled_from([file(halves((40, 30)), form) for form in ("PNG", "JPEG", "WEBP")])))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data) - 1))
        data[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=6))
    return bytes(data)


@given(st.one_of(st.binary(max_size=300), broken()))
@settings(max_examples=400)
@example(b"\x89PNG\r\n\x1a\n")
@example(b"RIFF\x00\x00\x00\x00WEBPVP8X")
@example(b"\xff\xd8\xff\xe1\x00\x08Exif\x00\x00")
def test_any_bytes_at_all_are_an_image_or_are_refused(data: bytes) -> None:
    with contextlib.suppress(InvalidRequest):
        assert read(data).shape == (64, 96, 3)


PEAK = """
import resource, sys, zlib
from deployments.video.inputs import Clip, image
from cluster.errors import InvalidRequest
clip = Clip(width=96, height=64, frames=1, fps=1)
small = image(open(sys.argv[1], "rb").read(), clip, param="image", limit_bytes=1 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[2:]:
    try:
        image(open(name, "rb").read(), clip, param="image", limit_bytes=1 << 20)
    except InvalidRequest:
        pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_bomb_of_pixels_takes_no_memory(tmp_path: Path) -> None:
    """A WebP and a PNG that say gigabytes in a few bytes. In a process of its own, whose peak is its own."""
    animated = bytearray(MOVING)  # the container of a moving picture says its size apart from its frames
    at = animated.index(b"VP8X") + 12
    animated[at : at + 6] = (16_382).to_bytes(3, "little") * 2
    files = {"small": file(solid()), "webp": bytes(animated), "png": bomb(60_000), "large": bomb(13_000)}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    command = [sys.executable, "-W", "ignore", "-c", PEAK, *(str(tmp_path / name) for name in files)]
    grown_kib = int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)
    assert grown_kib < 16 * 1024
