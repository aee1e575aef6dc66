from pathlib import Path

import av
import numpy as np
import pytest

from cluster.errors import InvalidRequest
from deployments.video.encode import write_mp4


def field(frames: int, height: int = 64, width: int = 96) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Orange, brightening with time."""
    ramp = np.linspace(0.4, 1.0, frames)[:, None, None, None]
    return np.broadcast_to(ramp * np.array([220, 120, 30]), (frames, height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize(("seconds", "fps"), [(1, 8), (4, 8), (2, 24)])
def test_the_file_plays_with_the_frames_size_rate_and_colours_given(seconds: int, fps: int, tmp_path: Path) -> None:
    given = field(seconds * fps)
    write_mp4(given, fps, tmp_path / "video.mp4")
    with av.open(str(tmp_path / "video.mp4")) as container:
        stream = container.streams.video[0]
        played = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == fps
        assert container.duration == pytest.approx(seconds * 1_000_000, abs=1000)
    assert played.shape == given.shape
    assert np.abs(played.astype(int) - given).max() <= 6


def test_the_index_comes_before_the_pictures(tmp_path: Path) -> None:
    write_mp4(field(4), 8, tmp_path / "video.mp4")
    content = (tmp_path / "video.mp4").read_bytes()
    assert 0 < content.find(b"moov") < content.find(b"mdat")


@pytest.mark.parametrize("shape", [(4, 63, 96), (4, 64, 95), (0, 64, 96)])
def test_what_h264_cannot_hold_is_refused(shape: tuple[int, int, int], tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="even sides"):
        write_mp4(np.zeros((*shape, 3), np.uint8), 8, tmp_path / "video.mp4")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_neither_half_a_file_nor_harms_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="shape"):
        write_mp4(np.zeros((4, 64, 96, 7), np.uint8), 8, path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("video.mp4", b"old")]
