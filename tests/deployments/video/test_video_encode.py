import resource
import weakref
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cluster.errors import InvalidRequest
from deployments.video.encode import read, write, write_master
from deployments.video.spec import Frames


def field(frames: int, height: int = 64, width: int = 96) -> Frames:
    """Orange, brightening with time."""
    ramp = np.linspace(0.4, 1.0, frames)[:, None, None, None]
    return np.broadcast_to(ramp * np.array([220, 120, 30]), (frames, height, width, 3)).astype(np.uint8)


def played(path: Path) -> Frames:
    return np.concatenate(list(read(path)))


def tone(path: Path, seconds: float) -> Path:
    samples = np.sin(2 * np.pi * 440 * np.arange(int(seconds * 44_100)) / 44_100)
    with av.open(str(path), "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=44_100, layout="mono")
        frame = av.AudioFrame.from_ndarray((samples * 9000).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate = 44_100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(("seconds", "fps"), [(1, 8), (4, 8), (2, 24)])
def test_the_file_plays_with_the_frames_size_rate_and_colours_given(seconds: int, fps: int, tmp_path: Path) -> None:
    given = field(seconds * fps)
    write([given], fps, tmp_path / "video.mp4")
    with av.open(str(tmp_path / "video.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == fps
        assert stream.codec_context.colorspace == 1  # BT.709
        assert container.duration == pytest.approx(seconds * 1_000_000, abs=1000)
    assert np.abs(played(tmp_path / "video.mp4").astype(int) - given).max() <= 6


def test_the_same_frames_give_the_same_master_byte_for_byte(tmp_path: Path) -> None:
    """By its bytes a request that is sent again is told from another."""
    for name in ("first", "again"):
        write_master([field(4)], 8, tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "again").read_bytes()


def test_the_index_comes_before_the_pictures(tmp_path: Path) -> None:
    write([field(4)], 8, tmp_path / "video.mp4")
    content = (tmp_path / "video.mp4").read_bytes()
    assert 0 < content.find(b"moov") < content.find(b"mdat")


@pytest.mark.parametrize(
    ("fps", "out_fps", "shown"),
    [
        (4, 8, [0, 0, 1, 1, 2, 2, 3, 3]),
        (4, 6, [0, 0, 1, 2, 2, 3]),  # of every half second three frames, from two
        (4, 2, [0, 2]),
    ],
)
def test_delivered_frames_are_repeated_or_left_out_and_scaled(
    fps: int, out_fps: int, shown: list[int], tmp_path: Path
) -> None:
    given = field(4)
    write([given], fps, tmp_path / "video.mp4", out=(192, 128, out_fps))
    delivered = played(tmp_path / "video.mp4")
    assert delivered.shape == (len(shown), 128, 192, 3)
    assert np.abs(delivered[:, 9, 9].astype(int) - given[shown, 9, 9]).max() <= 6


@settings(max_examples=15)
@given(
    st.integers(1, 9).flatmap(
        lambda side: arrays(np.uint8, st.tuples(st.integers(1, 7), st.just(side + 16), st.just(33), st.just(3)))
    ),
    st.integers(1, 7),
)
def test_a_master_keeps_every_bit_whatever_the_chunks(
    tmp_path_factory: pytest.TempPathFactory, frames: Frames, size: int
) -> None:
    path = tmp_path_factory.mktemp("master") / "master.mkv"
    assert write_master((frames[at : at + size] for at in range(0, len(frames), size)), 8, path) == len(frames)
    assert (played(path) == frames).all()


def test_no_more_than_one_chunk_is_alive_while_the_next_is_made(tmp_path: Path) -> None:
    alive: set[int] = set()

    def chunks() -> Iterator[Frames]:
        for index in range(6):
            assert not alive, "the chunk before is still held"
            chunk = field(8)
            alive.add(index)
            weakref.finalize(chunk, alive.discard, index)
            yield chunk
            del chunk

    write(chunks(), 8, tmp_path / "video.mp4", out=(192, 128, 24))
    assert len(played(tmp_path / "video.mp4")) == 6 * 8 * 3
    assert not alive
    assert write_master(chunks(), 8, tmp_path / "master.mkv") == 6 * 8


@pytest.mark.parametrize(("sound_s", "heard_s"), [(3.3, 2.0), (2.0, 2.0), (0.7, 0.7)])
def test_sound_is_heard_and_ends_with_the_picture(sound_s: float, heard_s: float, tmp_path: Path) -> None:
    write([field(16)], 8, tmp_path / "video.mp4", audio=tone(tmp_path / "tone.wav", sound_s))
    with av.open(str(tmp_path / "video.mp4")) as container:
        stream = container.streams.audio[0]
        assert stream.duration is not None
        assert stream.time_base is not None
        assert (stream.codec_context.name, stream.rate, stream.layout.name) == ("aac", 48_000, "stereo")
        assert float(stream.duration * stream.time_base) == pytest.approx(heard_s, abs=0.001)
        heard = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
        strongest_hz = np.abs(np.fft.rfft(heard)).argmax() * 48_000 / len(heard)
    assert strongest_hz == pytest.approx(440, abs=3)


def test_a_file_without_sound_is_refused_as_sound(tmp_path: Path) -> None:
    write([field(4)], 8, tmp_path / "silent.mp4")
    with pytest.raises(InvalidRequest, match=r"silent\.mp4: has no sound; .*; leave the audio out"):
        write([field(4)], 8, tmp_path / "video.mp4", audio=tmp_path / "silent.mp4")
    assert [file.name for file in tmp_path.iterdir()] == ["silent.mp4"]


@pytest.mark.parametrize("shape", [(4, 63, 96), (4, 64, 95), (0, 64, 96)])
def test_what_h264_cannot_hold_is_refused(shape: tuple[int, int, int], tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="even sides"):
        write([np.zeros((*shape, 3), np.uint8)], 8, tmp_path / "video.mp4")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_neither_half_a_file_nor_harms_the_old_one(tmp_path: Path) -> None:
    def chunks() -> Iterator[Frames]:
        yield field(40)
        raise RuntimeError("the decoder broke")

    path = tmp_path / "video.mp4"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="the decoder broke"):
        write(chunks(), 8, path)
    with pytest.raises(RuntimeError, match="the decoder broke"):
        write_master(chunks(), 8, tmp_path / "master.mkv")
    with pytest.raises(ValueError, match="one shape is allowed"):
        write([field(4), field(4, height=32)], 8, path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("video.mp4", b"old")]


def test_a_disk_that_takes_no_more_is_an_os_error_and_leaves_nothing(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 128, 192, 3), np.uint8)
    bound = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, bound[1]))  # the kernel refuses more, as a full disk does
    try:
        with pytest.raises(OSError, match="too large"):
            write([noise], 8, tmp_path / "video.mp4")
        with pytest.raises(OSError, match="too large"):
            write_master([noise], 8, tmp_path / "master.mkv")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, bound)
    assert list(tmp_path.iterdir()) == []
