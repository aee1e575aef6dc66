"""A storyboard on the family that ships: written by a small model, rendered shot by shot, joined, heard and signed."""

import base64
import io
import wave
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from integration.server import Server, eventually

from deployments.video import credentials, encode

pytestmark = pytest.mark.slow
RENDERED_S = 120.0
HZ = 48_000


def tone() -> str:
    """A second of a note, as a data URL."""
    sound = io.BytesIO()
    note = (8000 * np.sin(2 * np.pi * 440 * np.arange(HZ) / HZ)).astype(np.int16)
    with wave.open(sound, "wb") as file:
        file.setparams((1, 2, HZ, 0, "NONE", "not compressed"))
        file.writeframes(note.tobytes())
    return f"data:audio/wav;base64,{base64.b64encode(sound.getvalue()).decode()}"


def notes(file: Path, data: bytes) -> list[float]:
    """The loudest frequency of each of the first two seconds, in Hz; 0 of silence."""
    file.write_bytes(data)
    with av.open(str(file), mode="r") as container:
        sound = np.concatenate([piece.to_ndarray()[0] for piece in container.decode(audio=0)])
    seconds = [sound[int((second + 0.1) * HZ) : int((second + 0.9) * HZ)] for second in range(2)]
    return [float(np.abs(np.fft.rfft(one)).argmax() / 0.8) if np.abs(one).max() > 0.01 else 0.0 for one in seconds]


SHOTS = [
    {"prompt": "a red circle moves left", "seconds": 1, "audio_reference": {"audio_url": tone()}},
    {"prompt": "a blue square", "seconds": 1.5, "camera": "zooms in and zooms out"},
]


def frames(file: Path, data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    file.write_bytes(data)
    return np.concatenate(list(encode.read(file)))


def test_a_storyboard_is_rendered_shot_by_shot_and_cut(laptop: Server, tmp_path: Path) -> None:
    http = laptop.http()
    board = http.post("/v1/storyboards", json={"title": "two", "shots": SHOTS}).raise_for_status().json()
    assert [(one["shot"], one["kind"]) for one in board["warnings"]] == [(1, "seconds"), (1, "motion")]

    def cut() -> Any:
        told = http.get(f"/v1/storyboards/{board['id']}").raise_for_status().json()
        assert told["status"] in ("in_progress", "joining", "completed"), told
        return told if told["status"] == "completed" else None

    told = eventually(cut, RENDERED_S, "the cut")
    whole = http.get(f"/v1/storyboards/{board['id']}/content").raise_for_status().content
    assert notes(tmp_path / "cut.mp4", whole) == pytest.approx([440, 0], abs=4)
    videos = [shot["video"]["id"] for shot in told["shots"]]
    clips = [http.get(f"/v1/videos/{video}/content").raise_for_status().content for video in videos]
    parts = [frames(tmp_path / "part.mp4", clip) for clip in clips]
    assert np.array_equal(frames(tmp_path / "cut.mp4", whole), np.concatenate(parts))
    verdict = credentials.verify(tmp_path / "cut.mp4", None)
    assert (verdict.state, len(verdict.manifests)) == ("Valid", 3)
    assert [part.title for part in verdict.manifests[0].ingredients] == videos


def test_an_idea_becomes_a_storyboard_whatever_the_words_of_a_small_model(laptop: Server) -> None:
    http = laptop.http()
    anna = {"name": "Anna", "phrase": "a red circle"}
    asked = {"script": "Anna is late for her train.", "script_model": "gpt-5.2-mini", "characters": [anna]}
    board = http.post("/v1/storyboards", json=asked | {"size": "64x64"}).raise_for_status().json()
    try:
        for shot in board["shots"]:
            assert shot["prompt"]
            assert shot["seconds"] in (1, 2, 4)
            assert shot["characters"] in ([], ["Anna"])
            assert shot["video"]["status"] in ("queued", "in_progress")
        refused = http.post("/v1/storyboards", json={"script": "Anna is late.", "script_model": "sora-2"})
        assert refused.json()["error"]["param"] == "script_model"
    finally:
        http.delete(f"/v1/storyboards/{board['id']}").raise_for_status()
        for shot in board["shots"]:
            http.delete(f"/v1/videos/{shot['video']['id']}").raise_for_status()
