"""Images are made by Pillow. Most are read in this process, some as in production, in one of their own."""

import contextlib
import io
import resource
import subprocess
import sys
import tempfile
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
from deployments.video import apart, inputs, raster
from deployments.video.inputs import Clip
from deployments.video.raster import MOST_PIXELS

CLIP = Clip(width=96, height=64, frames=16, fps=8)
LIMIT_BYTES = 1 << 20
Reader = Callable[[bytes, Clip, Path, str], int]
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
    with Image.open(io.BytesIO(made(raster.image, data, clip))) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (clip.width, clip.height))
        return np.asarray(picture)


def made(read_it: Reader, data: bytes, clip: Clip = CLIP) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "made"
        assert read_it(data, clip, out, "input_reference") == out.stat().st_size
        return out.read_bytes()


def refusal(read_it: Reader, data: bytes) -> str:
    with pytest.raises(InvalidRequest) as refused:
        made(read_it, data)
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
    assert refusal(raster.image, data).startswith(said)
    assert refusal(raster.mask, data).startswith(said)


@pytest.mark.parametrize(("data", "said"), [(bytes(11), "11 bytes; at most 10 are allowed"), (b"", "is empty")])
@pytest.mark.parametrize("read_it", [inputs.image, inputs.mask, inputs.video, inputs.audio])
def test_a_file_beyond_the_limit_or_without_content_is_refused_unread(
    read_it: Callable[..., object], data: bytes, said: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match=f"image: {said}"):
        read_it(data, CLIP, tmp_path / "made", param="image", limit_bytes=10)
    assert list(tmp_path.iterdir()) == []


def test_a_mask_is_black_and_white_and_of_the_clips_size() -> None:
    painted = solid(colour=(100, 100, 100))
    painted.paste((160, 160, 160), (0, 0, 48, 64))
    with Image.open(io.BytesIO(made(raster.mask, file(painted)))) as drawn:
        pixels = np.asarray(drawn)
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
    assert refusal(raster.mask, file(picture)) == said


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
from pathlib import Path
from deployments.video.fit import Clip
from deployments.video.raster import image
from cluster.errors import InvalidRequest
clip = Clip(width=96, height=64, frames=1, fps=1)
out = Path(sys.argv[1]).with_name("made")
image(Path(sys.argv[1]).read_bytes(), clip, out, "image")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[2:]:
    try:
        image(Path(name).read_bytes(), clip, out, "image")
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


def test_a_process_of_its_own_reads_what_this_one_would(tmp_path: Path) -> None:
    out, given = tmp_path / "first.png", {"param": "input_reference", "limit_bytes": LIMIT_BYTES}
    inputs.image(file(halves((300, 200)), "JPEG"), CLIP, out, **given)  # type: ignore[arg-type]
    assert out.read_bytes() == made(raster.image, file(halves((300, 200)), "JPEG"))
    inputs.mask(file(solid(colour="white")), CLIP, out, **given)  # type: ignore[arg-type]
    assert out.read_bytes() == made(raster.mask, file(solid(colour="white")))
    with pytest.raises(InvalidRequest, match=r"input_reference: is no image that can be read here; .*; convert it"):
        inputs.image(bytes(LIMIT_BYTES), CLIP, tmp_path / "other.png", **given)  # type: ignore[arg-type]
    assert [each.name for each in tmp_path.iterdir()] == ["first.png"]


def test_the_process_that_reads_a_picture_is_bounded_and_no_other(tmp_path: Path) -> None:
    clip, given = Clip(width=4000, height=4000, frames=1, fps=1), {"param": "image", "limit_bytes": LIMIT_BYTES}
    inputs.image(file(solid()), CLIP, tmp_path / "made", **given)  # type: ignore[arg-type]
    server = apart.SERVER.process
    assert server is not None
    resource.prlimit(server.pid, resource.RLIMIT_DATA, (150 << 20, 150 << 20))  # less than production's, for the test
    try:
        with pytest.raises(InvalidRequest, match="image: takes too much time or memory to read"):
            inputs.image(file(solid((5000, 5000), 1, "L")), clip, tmp_path / "large", **given)  # type: ignore[arg-type]
        inputs.image(file(solid()), CLIP, tmp_path / "made", **given)  # type: ignore[arg-type]
    finally:
        apart.SERVER.end()
    assert [each.name for each in tmp_path.iterdir()] == ["made"]


def test_a_server_that_was_killed_is_begun_again_and_ends_with_who_began_it(tmp_path: Path) -> None:
    def read_one() -> None:
        inputs.image(file(solid()), CLIP, tmp_path / "made", param="image", limit_bytes=LIMIT_BYTES)

    read_one()
    process = apart.SERVER.process
    assert process is not None
    process.kill()
    process.wait()
    read_one()
    begun = apart.SERVER.process
    assert begun is not None
    apart.SERVER.end()
    assert begun.returncode == 0
