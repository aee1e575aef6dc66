"""A storyboard on the family that ships: shots rendered, joined and signed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integration.server import Server, eventually

from deployments.video import credentials, encode

pytestmark = pytest.mark.slow
RENDERED_S = 120.0
SHOTS = [
    {"prompt": "a red circle moves left", "seconds": 1},
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
    videos = [shot["video"]["id"] for shot in told["shots"]]
    clips = [http.get(f"/v1/videos/{video}/content").raise_for_status().content for video in videos]
    parts = [frames(tmp_path / "part.mp4", clip) for clip in clips]
    assert np.array_equal(frames(tmp_path / "cut.mp4", whole), np.concatenate(parts))
    verdict = credentials.verify(tmp_path / "cut.mp4", None)
    assert (verdict.state, len(verdict.manifests)) == ("Valid", 3)
    assert [part.title for part in verdict.manifests[0].ingredients] == videos


def test_a_script_needs_a_tier_that_can_hold_an_answer_to_a_schema(laptop: Server) -> None:
    refused = laptop.http().post("/v1/storyboards", json={"script": "Anna is late for her train."})
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "unsupported_parameter"
    assert "vllm" in refused.json()["error"]["message"]
