"""Files are made by libav, and read as those of clients are. Most are read in this process, some as in production."""

import io
import resource
import tempfile
import wave
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from cluster.errors import InvalidRequest
from deployments.video import apart, demux, inputs
from deployments.video.encode import read, write
from deployments.video.inputs import Clip
from deployments.video.spec import Frames

CLIP = Clip(width=96, height=64, frames=8, fps=4)
STEP = 10


def greys(frames: int, height: int = 64, width: int = 96) -> Frames:
    """Frame i is grey of 10 i."""
    grey = (np.arange(frames) * STEP).astype(np.uint8)[:, None, None, None]
    return np.broadcast_to(grey, (frames, height, width, 3))


def made(frames: Frames, fps: int = 4, codec: str = "libx264", form: str = "mp4", **options: str) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format=form) as container:
        stream: Any = container.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(
                format=stream.pix_fmt
            )
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


def tone(seconds: float = 1.0, codec: str = "pcm_s16le", form: str = "wav", rate: int = 48_000) -> bytes:
    samples = np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate) * 9000
    out = io.BytesIO()
    with av.open(out, "w", format=form) as container:
        stream: Any = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples.astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate = rate
        for piece in av.AudioResampler(format=stream.format, layout="mono", rate=rate).resample(frame):
            container.mux(stream.encode(piece))
        container.mux(stream.encode())
    return out.getvalue()


def silence() -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((1, 2, 48_000, 0, "NONE", "not compressed"))
    return out.getvalue()


def shown(path: Path) -> list[int]:
    """Which frame each frame is, by its grey."""
    return [round(float(frame[32, 48].mean()) / STEP) for chunk in read(path) for frame in chunk]


def refusal(read_it: object, data: bytes, folder: Path, clip: Clip = CLIP) -> str:
    assert callable(read_it)
    with pytest.raises(InvalidRequest) as refused:
        read_it(data, clip, folder / "made", "video_reference")
    assert refused.value.param == "video_reference"
    assert refused.value.message.count("; ") == 2
    assert list(folder.iterdir()) == []
    return refused.value.message.removeprefix("video_reference: ").rpartition("; ")[0]


@pytest.mark.parametrize(
    ("codec", "form"),
    [
        ("libx264", "mp4"),
        ("libx264", "mov"),
        ("libx265", "mp4"),
        ("libsvtav1", "mp4"),
        ("libvpx-vp9", "webm"),
        ("ffv1", "matroska"),
    ],
)
def test_videos_are_read_as(codec: str, form: str, tmp_path: Path) -> None:
    assert demux.video(made(greys(8), codec=codec, form=form), CLIP, tmp_path / "made", "video_reference") == 8
    assert shown(tmp_path / "made") == list(range(8))


@pytest.mark.parametrize(
    ("frames", "fps", "taken"),
    [
        (16, 8, [0, 2, 4, 6, 8, 10, 12, 14]),  # twice the clip's rate
        (20, 4, [0, 1, 2, 3, 4, 5, 6, 7]),  # longer
        (3, 2, [0, 0, 1, 1, 2, 2]),  # slower, and shorter
        (1, 1, [0, 0, 0, 0]),
    ],
)
def test_a_video_is_brought_to_the_clips_rate_and_loses_what_is_beyond_it(
    frames: int, fps: int, taken: list[int], tmp_path: Path
) -> None:
    assert demux.video(made(greys(frames), fps), CLIP, tmp_path / "made", "video_reference") == len(taken)
    assert shown(tmp_path / "made") == taken


@pytest.mark.parametrize("form", ["matroska", "mp4"])
def test_times_rounded_to_milliseconds_neither_drop_nor_repeat_a_frame(form: str, tmp_path: Path) -> None:
    clip = Clip(width=96, height=64, frames=24, fps=24)
    assert demux.video(made(greys(24), 24, form=form), clip, tmp_path / "made", "video_reference") == 24
    assert shown(tmp_path / "made") == list(range(24))


def test_the_middle_of_a_video_is_cut_out_and_scaled(tmp_path: Path) -> None:
    frames = np.zeros((2, 128, 512, 3), np.uint8)
    frames[:, :, 160:352] = 240  # the middle, in the clip's aspect ratio
    demux.video(made(frames), CLIP, tmp_path / "made", "video_reference")
    assert next(read(tmp_path / "made"))[0, :, 2:-2].min() > 220


def test_a_video_is_turned_as_its_file_says(tmp_path: Path) -> None:
    frames = np.zeros((2, 96, 64, 3), np.uint8)
    frames[:, :, :32] = 240  # the left
    data = bytearray(made(frames))
    matrix = data.index(b"tkhd") + 44  # of the track header: 3 x 3 fixed-point numbers
    quarter_turn = [0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30]
    data[matrix : matrix + 36] = b"".join(number.to_bytes(4, "big", signed=True) for number in quarter_turn)
    demux.video(bytes(data), CLIP, tmp_path / "made", "video_reference")
    upright = next(read(tmp_path / "made"))[0]
    assert upright[8].min() > 200  # to the right: left becomes top
    assert upright[-8].max() < 40


def faststart() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write([greys(8)], 4, Path(folder) / "video.mp4")
        return (Path(folder) / "video.mp4").read_bytes()


SILENT = made(greys(8))
TOO_LONG = made(np.zeros((121, 16, 16, 3), np.uint8), fps=1)
WIDE = made(np.zeros((1, 1280, 8192, 3), np.uint8), preset="ultrafast")
PLAYLIST = b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"hello", f"cannot be opened; {demux.VIDEO_TEXT}"),
        (PLAYLIST, f"cannot be opened; {demux.VIDEO_TEXT}"),
        (made(greys(4), codec="mpeg4"), f"is coded with mpeg4; {demux.VIDEO_TEXT}"),
        (tone(codec="aac", form="mp4"), f"has none of the kind that is asked for; {demux.VIDEO_TEXT}"),
        (TOO_LONG, "121 seconds; at most 120 are allowed"),
        (WIDE, "10485760 pixels a frame; at most 9437184 are allowed"),
        (made(greys(8), form="matroska")[:-400], "ends at 0.0 of 2.0 s; a whole file is allowed"),
        (SILENT[:-300], f"cannot be opened; {demux.VIDEO_TEXT}"),
        (faststart()[:-300], "is corrupt or cut short; a whole file is allowed"),
    ],
)
def test_what_is_no_video_is_refused_and_says_why(data: bytes, said: str, tmp_path: Path) -> None:
    assert refusal(demux.video, data, tmp_path).startswith(said)


def test_a_picture_that_grows_on_the_way_is_refused(tmp_path: Path) -> None:
    """The header says 96 x 64; a key frame after a minute says 8192 x 1280."""
    large = np.zeros((1, 1280, 8192, 3), np.uint8)
    key_frames = [made(frames, form="h264", preset="ultrafast") for frames in (greys(1), large)]
    out = io.BytesIO()
    with av.open(io.BytesIO(key_frames[0])) as small, av.open(out, "w", format="matroska") as container:
        stream = container.add_stream_from_template(small.streams.video[0])
        for second in range(61):
            packet = av.Packet(key_frames[second == 60])
            packet.pts = packet.dts = second
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1), stream, True
            container.mux(packet)
    minute = Clip(width=96, height=64, frames=61, fps=1)
    said = refusal(demux.video, out.getvalue(), tmp_path, minute)
    assert said == "is corrupt or cut short; a whole file is allowed"


@pytest.mark.parametrize(
    ("codec", "form"),
    [
        ("pcm_s16le", "wav"),
        ("libmp3lame", "mp3"),
        ("flac", "flac"),
        ("libopus", "ogg"),
        ("aac", "mp4"),
        ("libopus", "webm"),
    ],
)
def test_sounds_are_read_as(codec: str, form: str, tmp_path: Path) -> None:
    samples = demux.sound(tone(codec=codec, form=form), CLIP, tmp_path / "made", "audio_reference")
    with wave.open(str(tmp_path / "made")) as file:
        assert file.getparams()[:4] == (2, 2, 48_000, samples)
        heard = np.frombuffer(file.readframes(samples), np.int16)[::2]
    assert samples == pytest.approx(48_000, abs=2500)  # codecs add silence
    assert np.abs(np.fft.rfft(heard)).argmax() * 48_000 / len(heard) == pytest.approx(440, abs=3)


def test_sound_is_cut_to_the_clips_length(tmp_path: Path) -> None:
    assert demux.sound(tone(3.5, rate=44_100), CLIP, tmp_path / "made", "audio_reference") == 2 * 48_000


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (SILENT, f"has none of the kind that is asked for; {demux.SOUND_TEXT}"),
        (tone(codec="pcm_s16be", form="aiff"), f"cannot be opened; {demux.SOUND_TEXT}"),
        (tone(codec="ac3", form="mp4"), f"is coded with ac3; {demux.SOUND_TEXT}"),
        (silence(), f"has no sound; {demux.SOUND_TEXT}"),
    ],
)
def test_what_is_no_sound_is_refused_and_says_why(data: bytes, said: str, tmp_path: Path) -> None:
    assert refusal(demux.sound, data, tmp_path) == said


def test_a_process_of_its_own_reads_refuses_and_leaves_nothing_else(tmp_path: Path) -> None:
    given = {"param": "video_reference", "limit_bytes": 1 << 20}
    assert inputs.video(SILENT, CLIP, tmp_path / "source.mkv", **given) == 8  # type: ignore[arg-type]
    assert shown(tmp_path / "source.mkv") == list(range(8))
    with pytest.raises(InvalidRequest, match=r"video_reference: cannot be opened; .*; convert it"):
        inputs.video(SILENT[:-300], CLIP, tmp_path / "other.mkv", **given)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="bytes; at most 10 are allowed; send a smaller file"):
        inputs.audio(tone(), CLIP, tmp_path / "other.wav", param="audio_reference", limit_bytes=10)
    assert [file.name for file in tmp_path.iterdir()] == ["source.mkv"]


def test_a_file_that_would_unfold_to_gigabytes_is_refused_by_the_bound_on_memory(tmp_path: Path) -> None:
    """An index that is said to be of 4 GiB once it is unpacked: libav asks for the memory first."""

    def atom(kind: bytes, *content: bytes) -> bytes:
        return (8 + sum(map(len, content))).to_bytes(4, "big") + kind + b"".join(content)

    packed = atom(b"cmvd", (0xFFFF_FFF0).to_bytes(4, "big"), zlib.compress(bytes(1000)))
    bomb = atom(b"ftyp", b"isom\0\0\2\0isom") + atom(b"moov", atom(b"cmov", atom(b"dcom", b"zlib"), packed))
    with pytest.raises(InvalidRequest, match="takes too much time or memory to read; 300 s and 3 GiB are allowed"):
        inputs.video(bomb, CLIP, tmp_path / "made", param="video_reference", limit_bytes=1 << 20)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_no_more_is_an_os_error_and_leaves_nothing(tmp_path: Path) -> None:
    given = {"param": "audio_reference", "limit_bytes": 1 << 20}
    inputs.audio(tone(0.1), CLIP, tmp_path / "made.wav", **given)  # type: ignore[arg-type]
    server = apart.SERVER.process
    assert server is not None
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (50_000, 50_000))  # the kernel refuses more, as a full disk
    try:
        with pytest.raises(OSError, match="too large"):
            inputs.audio(tone(2.0), CLIP, tmp_path / "other.wav", **given)  # type: ignore[arg-type]
    finally:
        apart.SERVER.end()
    assert [each.name for each in tmp_path.iterdir()] == ["made.wav"]
