"""What reads a client's images, sound, clips and documents: of any bytes it tells what it found, or InvalidRequest."""

import contextlib
import io
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import inputs as made
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cluster.errors import InvalidRequest
from cluster.inputs import FRAMES_PER_S, HZ, InputTokens, Media, tokens_of
from deployments.inputs import documents, pictures, sounds
from deployments.inputs.look import Found, Look, read
from deployments.video import apart

Reader = Callable[[bytes, Look, Path, str], int]
WHERE = "messages[0].content[0].image_url.url"
SAMPLES: dict[str, tuple[Reader, bytes]] = {
    "png": (pictures.image, made.picture()),
    "jpeg": (pictures.image, made.picture(form="JPEG")),
    "webp": (pictures.image, made.picture(form="WEBP")),
    "wav": (sounds.sound, made.wav(0.1)),
    "mp4": (sounds.clip, made.mp4(0.5)),
    "pdf": (documents.document, made.pdf("The eel", "The sea")),
}


def found(reader: Reader, data: bytes, **look: object) -> Found:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found"
        reader(data, Look(**look), out, WHERE)  # type: ignore[arg-type]
        return read(out, WHERE)


def refusal(reader: Reader, data: bytes, **look: object) -> str:
    with pytest.raises(InvalidRequest) as caught:
        found(reader, data, **look)
    assert caught.value.param == WHERE
    assert caught.value.message.count("; ") >= 2
    return caught.value.message


def image(data: bytes, **look: object) -> tuple[Media, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    (media,) = found(pictures.image, data, **look).media
    with Image.open(io.BytesIO(media.pictures[0])) as picture:
        assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (media.width, media.height))
        return media, np.asarray(picture)


@pytest.mark.parametrize("name", SAMPLES)
@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_with_wrong_bytes_is_found_or_refused_and_nothing_else(name: str, data: st.DataObject) -> None:
    reader, whole = SAMPLES[name]
    broken = bytearray(whole[: data.draw(st.integers(1, len(whole)))])
    for place in data.draw(st.lists(st.integers(0, len(broken) - 1), max_size=8)):
        broken[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InvalidRequest):
        found(reader, bytes(broken))


@pytest.mark.parametrize("reader", list(dict.fromkeys(reader for reader, _ in SAMPLES.values())))
@given(data=st.binary(min_size=1, max_size=200))
@settings(max_examples=25, deadline=None)
def test_bytes_of_no_file_are_refused(reader: Reader, data: bytes) -> None:
    refusal(reader, data)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_file_of_another_kind_behind_this_ones_name_is_refused(name: str) -> None:
    reader, _ = SAMPLES[name]
    for other, (reads, data) in SAMPLES.items():
        if reads is not reader and (reads, reader) != (sounds.clip, sounds.sound):
            assert refusal(reader, data), other


def test_a_large_image_is_scaled_down_in_its_shape_and_a_small_one_stays() -> None:
    assert (image(made.picture((3000, 1500)))[0].width, image(made.picture((3000, 1500)))[0].height) == (2048, 1024)
    assert image(made.picture((3000, 1500)), side_px=512)[0].height == 256
    assert image(made.picture((1, 1)))[0].width == 1


def test_what_is_clear_is_white_whatever_its_colour() -> None:
    _, pixels = image(made.picture(colour=(255, 0, 0, 0), mode="RGBA"))
    assert (pixels > 250).all()


def test_sixteen_bits_are_eight_and_grey_is_a_colour() -> None:
    deep = Image.fromarray(np.full((40, 40), 0x8000, np.uint16))
    out = io.BytesIO()
    deep.save(out, "PNG")
    _, pixels = image(out.getvalue())
    assert np.abs(pixels.astype(int) - 0x80).max() <= 2


def test_what_moves_is_refused() -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    for form in ("WEBP", "PNG", "GIF"):
        out = io.BytesIO()
        frames[0].save(out, form, save_all=True, append_images=frames[1:], duration=100)
        assert ("moves" if form != "GIF" else "PNG, JPEG and WebP are allowed") in refusal(
            pictures.image, out.getvalue()
        )


def test_a_bomb_of_pixels_is_refused_before_it_is_decoded() -> None:
    small = bytearray(made.picture())
    small[16:24] = (60_000).to_bytes(4, "big") * 2
    small[29:33] = zlib.crc32(small[12:29]).to_bytes(4, "big")
    assert "pixels" in refusal(pictures.image, bytes(small))


def test_sound_keeps_its_pitch() -> None:
    (media,) = found(sounds.sound, made.wav(1.0, hz=44_100)).media
    samples = np.frombuffer(media.sound, "<i2")
    assert len(samples) == HZ
    assert abs(int(np.abs(np.fft.rfft(samples)).argmax()) - 440) <= 1


def test_sound_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sounds, "MOST_SOUND_S", 1)
    assert "at most 1 are allowed" in refusal(sounds.sound, made.wav(3.0))


@pytest.mark.parametrize("fps", [1, 8, 25])
def test_frames_of_a_clip_are_those_on_the_screen_at_even_times(fps: int) -> None:
    (media,) = found(sounds.clip, made.mp4(3.0, fps, sound=False), side_px=48).media
    assert len(media.pictures) == 3 * FRAMES_PER_S
    assert (media.width, media.height) == (48, 32)
    greys = [float(np.asarray(Image.open(io.BytesIO(one)).convert("L")).mean()) for one in media.pictures]
    assert greys == sorted(greys)
    assert greys[0] < 10


@pytest.mark.parametrize(("seconds", "fits"), [(30.0, True), (31.0, False)])
def test_a_clip_may_have_thirty_seconds(seconds: float, fits: bool) -> None:
    data = made.mp4(seconds, 2, sound=False, size=(16, 16))
    if fits:
        assert len(found(sounds.clip, data).media[0].pictures) == 60
    else:
        assert "30" in refusal(sounds.clip, data)


def test_a_documents_text_comes_with_marks_of_its_pages() -> None:
    told = found(documents.document, made.pdf("One", "", "Three"), name="a.pdf")
    assert told.text == "[a.pdf, page 1 of 3]\nOne\n[a.pdf, page 2 of 3]\n(no text)\n[a.pdf, page 3 of 3]\nThree"
    assert told.media == ()


def test_pages_without_text_are_drawn_in_their_place_where_they_may() -> None:
    told = found(documents.document, made.pdf("One", "", size=(200, 150)), name="a.pdf", pages=True)
    (page,) = told.media
    assert (page.width, page.height) == (400, 300)
    assert told.text[: page.at].endswith("page 2 of 2]\n")


def test_a_huge_page_is_drawn_small() -> None:
    (page,) = found(documents.document, made.pdf("", size=(14_400, 14_400)), pages=True).media
    assert max(page.width, page.height) <= 2048


def test_an_encrypted_document_is_refused_as_such() -> None:
    lock = f"<< /Filter /Standard /V 1 /R 2 /O <{'41' * 32}> /U <{'42' * 32}> /P -4 >>"
    data = made.pdf("secret", extra=f"/Encrypt {lock} /ID [<{'43' * 16}> <{'43' * 16}>]")
    assert "is encrypted" in refusal(documents.document, data)


def test_pages_and_characters_of_a_document_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MOST_PAGES", 2)
    assert "1 to 2 are allowed" in refusal(documents.document, made.pdf("a", "b", "c"))
    monkeypatch.setattr(documents, "MOST_CHARS", 3)
    assert "more than 3 characters" in refusal(documents.document, made.pdf("abcd"))


def test_more_empty_pages_than_pictures_may_be_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MOST_PICTURES", 1)
    told = found(documents.document, made.pdf("", ""), pages=True)
    assert len(told.media) == 1
    assert told.text.endswith("(a picture, left out: there are too many)")


def test_a_reader_that_takes_too_long_ends_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(apart, "LOOK_CPU_S", 1)
    slow = made.pdf(*(["BT (x) Tj ET" * 2000] * 900))
    with pytest.raises(InvalidRequest, match="1 s and 3 GiB are allowed"):
        apart.run("document", slow, Look(), tmp_path / "out", WHERE)
    assert apart.run("seen", made.picture(), Look(), tmp_path / "out", WHERE) > 0


@given(
    width=st.integers(1, 4000),
    height=st.integers(1, 4000),
    seconds=st.floats(0, 30),
    patch=st.sampled_from([14, 28, 32]),
)
def test_more_of_an_input_never_counts_for_less(width: int, height: int, seconds: float, patch: int) -> None:
    counts = InputTokens(patch_px=patch)

    def tokens(scale: int) -> tuple[int, int]:
        seen = Media(kind="image", at=0, where="", pictures=(b"",), width=width * scale, height=height * scale)
        heard = Media(kind="audio", at=0, where="", sound=b"\0\0" * int(seconds * HZ) * scale)
        return tokens_of(seen, counts, ()), tokens_of(heard, counts, ())

    assert tokens(1) <= tokens(2)
    assert min(tokens(1)) > 0


def test_an_image_counts_by_its_patches_or_as_one_whatever_its_size() -> None:
    seen = Media(kind="image", at=0, where="", pictures=(b"",), width=1024, height=768)
    assert tokens_of(seen, InputTokens(), ()) == 2 + 37 * 27
    assert tokens_of(seen, InputTokens(per_image=576), ()) == 578
