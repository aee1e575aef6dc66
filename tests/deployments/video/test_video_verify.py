"""`moray video verify`, as it is typed."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.video import Provenance
from deployments.cli import main
from deployments.video.certificates import ANCHOR, DEVELOPMENT
from deployments.video.credentials import Claim, Signer
from deployments.video.encode import write
from deployments.video.watermark import Mark, key_of, payload_of

STATE = Path(".moray")  # of the family laptop, below the directory of the command


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(name: str, **claim: object) -> Path:
    """A clip that is marked and signed as a worker does it."""
    grey = np.full((4, 64, 96, 3), 128, np.uint8)
    write([Mark(key_of(STATE)).embed(grey, payload_of("video_1"))], 8, file := Path(f"{name}.mp4"))
    given = {"title": name, "model": "sora-2", "job_id": "video_1", "seed": 7, **claim}
    Signer(Provenance(), STATE).sign(file, Claim(**given))  # type: ignore[arg-type]
    return file


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    status = main(["video", "verify", *words])
    return status, "".join(capsys.readouterr())


def test_it_tells_who_made_a_file_out_of_what_and_whose_mark_it_has(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ingredients = (("a ball", made("ball")),)
    made("red", job_id="video_2", action="edited", ingredients=ingredients)
    status, text = said(capsys, "red.mp4")
    assert status == 0
    assert text.startswith("red.mp4: Trusted\n  red: c2pa.opened, c2pa.edited\n")
    assert "    parentOf: a ball\n  ball: c2pa.created\n" in text
    assert "job_id video_1, model sora-2" in text
    assert f"watermark: {payload_of('video_1'):05x}, score " in text
    assert text.endswith(", of video_1\n")


def test_it_tells_programs_the_same(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made("ball")
    _, text = said(capsys, "ball.mp4", "--anchors", str(STATE / DEVELOPMENT / ANCHOR), "--json")
    told = json.loads(text)
    assert (told["state"], told["manifests"][0]["own"]["seed"]) == ("Trusted", 7)
    assert told["watermark"]["payload"] == payload_of("video_1")


def test_without_state_it_tells_the_credentials_alone(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = made("ball").resolve()
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    status, text = said(capsys, str(file))
    assert (status, f"{file}: Valid (signingCredential.untrusted)" in text) == (0, True)
    assert text.endswith("watermark: not looked for\n")
    assert list(Path.cwd().iterdir()) == []


def test_a_stripped_file_fails_and_its_mark_still_tells(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = Mark(key_of(STATE)).embed(np.full((4, 64, 96, 3), 128, np.uint8), payload_of("video_1"))
    write([frames], 8, Path("stripped.mp4"))
    status, text = said(capsys, "stripped.mp4")
    assert (status, text.splitlines()[0]) == (1, "stripped.mp4: Unsigned")
    assert f"watermark: {payload_of('video_1'):05x}" in text
    write([np.full((4, 64, 96, 3), 128, np.uint8)], 8, Path("foreign.mp4"))
    assert "watermark: none of this key; score " in said(capsys, "foreign.mp4")[1]


def test_of_a_clip_that_was_marked_twice_both_jobs_are_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    y, x = np.mgrid[:192, :320]
    frames = np.broadcast_to((80 + x // 4 + y // 8)[None, :, :, None], (4, 192, 320, 3)).astype(np.uint8)
    for job in ("video_1", "video_2"):
        frames = Mark(key_of(STATE)).embed(frames, payload_of(job))
    write([frames], 8, file := Path("twice.mp4"))
    Signer(Provenance(), STATE).sign(file, Claim(title="t", model="m", job_id="video_2", seed=0))
    told = said(capsys, "twice.mp4")[1].partition("watermark: ")[2]
    assert ", of video_2" in told
    assert f"{payload_of('video_1'):05x}" in told
    assert told.count("of no job named here") == 1


def test_stills_are_looked_at_for_credentials_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (96, 64)).save("still.webp")
    Signer(Provenance(), STATE).sign(Path("still.webp"), Claim(title="s", model="m", job_id="j", seed=0))
    status, text = said(capsys, "still.webp")
    assert (status, text.splitlines()[0]) == (0, "still.webp: Trusted")
    assert "not looked for" in text


def test_what_is_no_video_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("words.mp4").write_text("a clip")
    assert said(capsys, "words.mp4")[0] == 1
    assert "words.mp4: " in said(capsys, "words.mp4")[1]
