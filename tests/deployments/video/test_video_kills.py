"""A replica that is killed (SIGKILL) at any stage costs a job at most one step, and there is one result."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from video_replica import asked, files, replica, told

from deployments.stores.files import VIDEO
from deployments.video import encode
from deployments.video.credentials import verify
from deployments.video.messages import Rendered, StepDone

VICTIM = Path(__file__).parents[2] / "video_victim.py"
MADE = ["kept.safetensors", "master.mkv", "spritesheet.jpg", "thumbnail.webp", "video.mp4"]


def kill(folder: Path, stage: str) -> None:
    """Run a replica until it stands at that stage."""
    command = [sys.executable, str(VICTIM), str(folder), stage]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline().strip() == stage
        victim.kill()


@pytest.mark.parametrize(
    ("stage", "done"),
    [("queued", 0), ("step 3", 2), ("decoding", 4), ("encoding", 4), ("signing", 4), ("storing", 4), ("stored", 4)],
)
async def test_a_job_whose_replica_is_killed_goes_on_and_ends_once(tmp_path: Path, stage: str, done: int) -> None:
    kill(tmp_path, stage)
    assert ((tmp_path / "state" / "videos" / "video_1" / VIDEO).exists()) == (stage == "stored")
    assert len(list((tmp_path / "scratch").iterdir())) == 1  # what was being made

    *news, last = await told(replica(tmp_path).render(asked()))
    assert last == Rendered(signed=True, simulated=True)
    again = [each.done for each in news if isinstance(each, StepDone)]
    assert again == list(range(5 - len(again), 5))
    assert len(again) == 4 - done  # all steps done: straight to decoding
    assert files(tmp_path) == MADE
    job = tmp_path / "state" / "videos" / "video_1"
    assert verify(job / VIDEO, None).state == "Valid"
    assert len(np.concatenate(list(encode.read(job / VIDEO)))) == 8
    assert list((tmp_path / "scratch").iterdir()) == []
