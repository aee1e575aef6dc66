"""Clips joined to one."""

from pathlib import Path

import numpy as np
import pytest

from deployments.video import cut, encode
from deployments.video.spec import Frames


def clip(folder: Path, name: str, seed: int, *, frames: int = 8, side: int = 64, fps: int = 8) -> Path:
    file = folder / f"{name}.mp4"
    drawn = np.random.default_rng(seed).integers(0, 256, (frames, 4, 4, 3), np.uint8)
    encode.write([drawn.repeat(side // 4, 1).repeat(side // 4, 2)], fps, file)
    return file


def pictures(file: Path) -> Frames:
    return np.concatenate(list(encode.read(file)))


def test_clips_of_one_encoding_are_copied_and_no_frame_changes(tmp_path: Path) -> None:
    clips = [clip(tmp_path, "a", 1), clip(tmp_path, "b", 2, frames=16), clip(tmp_path, "c", 3, frames=5)]
    assert cut.join(clips, tmp_path / "cut.mp4")
    assert np.array_equal(pictures(tmp_path / "cut.mp4"), np.concatenate([pictures(each) for each in clips]))


def test_every_frame_is_shown_as_long_as_before(tmp_path: Path) -> None:
    import av

    cut.join([clip(tmp_path, "a", 1), clip(tmp_path, "b", 2, frames=16)], tmp_path / "cut.mp4")
    with av.open(str(tmp_path / "cut.mp4"), mode="r") as container:
        shown = [frame.time for frame in container.decode(video=0)]
    assert shown == [index / 8 for index in range(24)]


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
