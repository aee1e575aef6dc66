"""Virtual time: nothing waits in truth."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import virtual_time
from shell import VIDEO

from cluster.errors import InvalidRequest
from cluster.family import Video
from deployments.video.engine import Cancelled, Frames, RenderSpec
from deployments.video.saved import SavedState
from deployments.video.simulated import SimulatedVideoEngine

COST = {"base_s": 2.0, "linear_s_per_mtok": 0, "quadratic_s_per_mtok2": 0, "source": "a test"}


def spec(**changes: Any) -> RenderSpec:
    given: dict[str, Any] = {
        "job_id": "video_1", "prompt": "a red ball rises", "width": 96, "height": 64,
        "frames": 8, "fps": 8, "steps": 5, "guidance": 5.0, "seed": 7,
    }  # fmt: skip
    return RenderSpec(**given | changes)


class Job:
    """One rendering; `steps` are (done, at seconds)."""

    def __init__(self, saved: SavedState | None = None, stop_after: int = 0) -> None:
        self.steps: list[tuple[int, float]] = []
        self._saved = saved
        self._stop_after = stop_after

    async def frames(self, asked: RenderSpec) -> Frames:
        engine = SimulatedVideoEngine(Video.model_validate(VIDEO | {"engine": "simulated", "cost": COST}))
        loop = asyncio.get_running_loop()
        return await engine.render(
            asked,
            lambda done, total: self.steps.append((done, loop.time())),
            lambda: len(self.steps) >= self._stop_after > 0,
            self._saved,
        )


def test_steps_take_the_time_of_the_cost_model_and_the_frames_are_grey() -> None:
    job = Job()
    frames = virtual_time.run(job.frames(spec()))
    assert [done for done, _ in job.steps] == [1, 2, 3, 4, 5]
    assert [at_s for _, at_s in job.steps] == pytest.approx([2.0, 4.0, 6.0, 8.0, 10.0])
    assert frames.shape == (8, 64, 96, 3)
    assert frames.dtype == np.uint8
    assert np.ptp(frames) == 0


def test_a_preempted_job_goes_on_after_its_last_step(tmp_path: Path) -> None:
    first = Job(SavedState(tmp_path / "video.mp4"), stop_after=2)
    with pytest.raises(Cancelled):
        virtual_time.run(first.frames(spec()))
    second = Job(SavedState(tmp_path / "video.mp4"))
    virtual_time.run(second.frames(spec()))
    assert [done for done, _ in second.steps] == [3, 4, 5]


@pytest.mark.parametrize("damage", [b"{", b"[]", b"{}", None])
def test_a_state_that_cannot_be_used_is_discarded(damage: bytes | None, tmp_path: Path) -> None:
    saved = SavedState(tmp_path / "video.mp4")
    with pytest.raises(Cancelled):
        virtual_time.run(Job(saved, stop_after=2).frames(spec(seed=8)))
    if damage is not None:
        saved.path.write_bytes(damage)
    job = Job(saved)
    virtual_time.run(job.frames(spec()))
    assert len(job.steps) == 5
    assert not saved.path.exists()


def test_odd_sides_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="even sides"):
        virtual_time.run(Job().frames(spec(width=95)))
