"""Clips joined to one."""

import wave
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from deployments.video import cut, encode
from deployments.video.spec import Frames


def clip(
    folder: Path, name: str, seed: int, *, frames: int = 8, side: int = 64, fps: int = 8, audio: Path | None = None
) -> Path:
    file = folder / f"{name}.mp4"
    drawn = np.random.default_rng(seed).integers(0, 256, (frames, 4, 4, 3), np.uint8)
    encode.write([drawn.repeat(side // 4, 1).repeat(side // 4, 2)], fps, file, audio=audio)
    return file


HZ = 48_000


def tone(folder: Path, hz: float, seconds: float) -> Path:
    """A file with nothing but this note."""
    file = folder / f"{hz:g}-{seconds:g}.wav"
    note = (8000 * np.sin(2 * np.pi * hz * np.arange(int(seconds * HZ)) / HZ)).astype(np.int16)
    with wave.open(str(file), "wb") as written:
        written.setparams((1, 2, HZ, 0, "NONE", "not compressed"))
        written.writeframes(note.tobytes())
    return file


def heard(file: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    """One channel, from the beginning of the picture on."""
    with av.open(str(file), mode="r") as container:
        pieces = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
    return np.concatenate(pieces)


def pitch(sound: np.ndarray[Any, np.dtype[np.float32]]) -> float:
    """The loudest frequency, in Hz; 0 of silence."""
    spectrum = np.abs(np.fft.rfft(sound))
    return float(spectrum.argmax() * HZ / len(sound)) if np.abs(sound).max() > 0.01 else 0.0


def pictures(file: Path) -> Frames:
    return np.concatenate(list(encode.read(file)))


def test_clips_of_one_encoding_are_copied_and_no_frame_changes(tmp_path: Path) -> None:
    clips = [clip(tmp_path, "a", 1), clip(tmp_path, "b", 2, frames=16), clip(tmp_path, "c", 3, frames=5)]
    assert cut.join(clips, tmp_path / "cut.mp4")
    assert np.array_equal(pictures(tmp_path / "cut.mp4"), np.concatenate([pictures(each) for each in clips]))


def test_every_frame_is_shown_as_long_as_before(tmp_path: Path) -> None:
    cut.join([clip(tmp_path, "a", 1), clip(tmp_path, "b", 2, frames=16)], tmp_path / "cut.mp4")
    with av.open(str(tmp_path / "cut.mp4"), mode="r") as container:
        shown = [frame.time for frame in container.decode(video=0)]
    assert shown == [index / 8 for index in range(24)]


def test_each_clip_is_heard_while_it_is_seen_and_one_without_sound_is_silent(tmp_path: Path) -> None:
    clips = [
        clip(tmp_path, "a", 1, audio=tone(tmp_path, 440, 1)),
        clip(tmp_path, "b", 2),
        clip(tmp_path, "c", 3, frames=16, audio=tone(tmp_path, 880, 1)),  # it ends before its picture
        clip(tmp_path, "d", 4, audio=tone(tmp_path, 1320, 1)),
    ]
    assert cut.join(clips, tmp_path / "cut.mp4")
    assert np.array_equal(pictures(tmp_path / "cut.mp4"), np.concatenate([pictures(each) for each in clips]))
    sound = heard(tmp_path / "cut.mp4")
    assert 5 * HZ <= len(sound) < 5 * HZ + 2048  # AAC's frames are of 1024 samples
    notes = [pitch(sound[int((second + 0.1) * HZ) : int((second + 0.9) * HZ)]) for second in range(5)]
    assert notes == pytest.approx([440, 0, 880, 0, 1320], abs=2)
    quiet = np.abs(sound[HZ + 1024 : 2 * HZ - 1024])
    assert quiet.max() < 0.01  # to within a frame of where the clips meet


def test_clips_that_are_fitted_keep_their_sound_beside_their_pictures(tmp_path: Path) -> None:
    clips = [clip(tmp_path, "a", 1), clip(tmp_path, "b", 2, side=128, frames=16, fps=16, audio=tone(tmp_path, 440, 1))]
    assert not cut.join(clips, tmp_path / "cut.mp4")
    sound = heard(tmp_path / "cut.mp4")
    assert [pitch(sound[int((second + 0.1) * HZ) : int((second + 0.9) * HZ)]) for second in range(2)] == pytest.approx(
        [0, 440], abs=2
    )
    assert {file.suffix for file in tmp_path.iterdir()} == {".mp4", ".wav"}


def test_clips_without_sound_make_a_cut_without_a_track_of_it(tmp_path: Path) -> None:
    cut.join([clip(tmp_path, "a", 1), clip(tmp_path, "b", 2)], tmp_path / "cut.mp4")
    with av.open(str(tmp_path / "cut.mp4"), mode="r") as container:
        assert not container.streams.audio


def test_clips_of_other_sizes_and_rates_are_fitted_to_the_first(tmp_path: Path) -> None:
    clips = [clip(tmp_path, "a", 1), clip(tmp_path, "b", 2, side=128, frames=32, fps=16)]
    assert not cut.join(clips, tmp_path / "cut.mp4")
    assert pictures(tmp_path / "cut.mp4").shape == (8 + 16, 64, 64, 3)


def test_nothing_makes_no_cut_and_a_fault_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        cut.join([], tmp_path / "cut.mp4")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    with pytest.raises((OSError, ValueError)):
        cut.join([clip(tmp_path, "a", 1), broken], tmp_path / "cut.mp4")
    assert {file.name for file in tmp_path.iterdir()} == {"a.mp4", "broken.mp4"}
