"""The watermark: what is marked is found by its key, whatever the payload, and by no other key; through H.264, too."""

import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import ConfigurationError
from deployments.video.encode import read, write
from deployments.video.spec import Frames
from deployments.video.watermark import BITS, KEY_FILE, RMS, Detected, Mark, key_of, payload_of, threshold

OURS, THEIRS = Mark(b"ours"), Mark(b"theirs")
PAYLOADS = st.integers(0, 2**BITS - 1)


def clip(width: int = 320, height: int = 192, frames: int = 8, seed: int = 0) -> Frames:
    """A disc that moves over a gradient with a grain as coarse as a block."""
    y, x = np.mgrid[:height, :width]
    grain = np.random.default_rng(seed).normal(0, 6, (height // 8 + 1, width // 8 + 1)).repeat(8, 0).repeat(8, 1)
    base = 80 + 90 * x / width + grain[:height, :width]
    made = np.repeat(np.repeat(base[None, :, :, None], 3, axis=-1), frames, axis=0)
    for index in range(frames):
        left = width * (index + 2) / (frames + 4)
        made[index, (x - left) ** 2 + (y - height / 2) ** 2 < (height / 5) ** 2] = 200, 40, 40
    return np.asarray(np.clip(made, 0, 255), np.uint8)


def chunks(frames: Frames, size: int = 3) -> Iterator[Frames]:
    yield from (frames[start : start + size] for start in range(0, len(frames), size))


CLIP = clip()


@given(PAYLOADS)
@settings(max_examples=8, deadline=None)
def test_any_payload_is_read_by_the_key_that_wrote_it(payload: int) -> None:
    found = OURS.detect(chunks(OURS.embed(CLIP, payload)))
    assert (found.payload, found.present) == (payload, True)


@given(PAYLOADS)
@settings(max_examples=8, deadline=None)
def test_another_key_finds_nothing(payload: int) -> None:
    found = THEIRS.detect([OURS.embed(CLIP, payload)])
    assert (found.payload, found.present) == (None, False)
    assert found.score < found.threshold


@given(st.integers(0, 2**32), st.sampled_from(["noise", "flat", "grain", "black"]))
@settings(max_examples=12, deadline=None)
def test_nothing_is_found_in_what_was_not_marked(seed: int, kind: str) -> None:
    shown = {
        "noise": np.random.default_rng(seed).integers(0, 256, (1, 192, 320, 3), np.uint8),
        "flat": np.full((1, 192, 320, 3), seed % 256, np.uint8),
        "grain": clip(frames=1, seed=seed),
        "black": np.zeros((1, 192, 320, 3), np.uint8),
    }
    assert not OURS.detect([shown[kind]]).present


@pytest.mark.parametrize(("width", "height"), [(320, 192), (330, 200), (96, 64)])
def test_a_mark_is_faint_and_the_same_in_every_frame(width: int, height: int) -> None:
    grey = np.full((3, height, width, 3), 128, np.uint8)
    moved = OURS.embed(grey, 77).astype(int) - 128
    assert np.abs(moved).max() <= 6 * RMS
    assert moved.std() <= RMS * 1.05
    assert (moved == moved[0, :, :, :1]).all()
    assert OURS.detect([OURS.embed(grey, 77)]).payload == 77


def test_light_and_dark_end_where_they_end() -> None:
    for level in (0, 255):
        marked = OURS.embed(np.full((1, 192, 320, 3), level, np.uint8), 5)
        assert np.abs(marked.astype(int) - level).max() <= 6 * RMS
        assert OURS.detect([marked]).payload == 5


def test_embedding_leaves_the_frames_that_it_was_given(tmp_path: Path) -> None:
    before = CLIP.copy()
    OURS.embed(CLIP, 1)
    assert (before == CLIP).all()


def test_frames_without_a_block_are_left_as_they_are() -> None:
    tiny = np.full((2, 8, 8, 3), 9, np.uint8)
    assert (OURS.embed(tiny, 3) == tiny).all()
    assert OURS.detect([tiny]) == Detected(payload=None, score=0.0, threshold=threshold(1))
    assert OURS.detect([]) == Detected(payload=None, score=0.0, threshold=threshold(1))


def test_a_mark_survives_the_encoder(tmp_path: Path) -> None:
    write([OURS.embed(CLIP, 0x12345)], 8, tmp_path / "video.mp4")
    assert OURS.detect(read(tmp_path / "video.mp4")).payload == 0x12345
    assert not THEIRS.detect(read(tmp_path / "video.mp4")).present


def test_of_what_was_marked_twice_both_payloads_are_told() -> None:
    found = OURS.detect([OURS.embed(OURS.embed(CLIP, 77), 123_456)])
    assert {found.payload, *found.others} == {77, 123_456}
    assert OURS.detect([OURS.embed(CLIP, 77)]).others == ()


def test_a_scaled_clip_is_found_by_the_size_that_it_had() -> None:
    marked = OURS.embed(CLIP, 4242)
    larger = marked.repeat(2, axis=1).repeat(2, axis=2)
    assert not OURS.detect([larger]).present
    found = OURS.detect([larger], sizes=[(96, 64), (320, 192)])
    assert (found.payload, found.threshold) == (4242, threshold(3))
    assert threshold(3) > threshold(1)


def test_a_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    key = key_of(tmp_path / "state")
    assert key == key_of(tmp_path / "state")
    assert key != key_of(tmp_path / "other")
    assert stat.S_IMODE((tmp_path / "state" / KEY_FILE).stat().st_mode) == 0o600
    assert [each.name for each in (tmp_path / "state").iterdir()] == [KEY_FILE]


def test_a_key_that_is_no_key_is_told(tmp_path: Path) -> None:
    (tmp_path / KEY_FILE).write_bytes(b"short")
    with pytest.raises(ConfigurationError, match=r"watermark.key: 5 bytes; 32 are allowed"):
        key_of(tmp_path)


@given(st.text())
def test_a_job_has_a_payload(job_id: str) -> None:
    assert 0 <= payload_of(job_id) < 2**BITS
