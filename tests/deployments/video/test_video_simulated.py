from pathlib import Path
from typing import Any

import numpy as np
import pytest
from video_replica import FREE, asked, video

from cluster.errors import InvalidRequest
from deployments.video.simulated import CHUNK_FRAMES, SimulatedVideoEngine

COST = FREE | {"base_s": 2.0, "linear_s_per_mtok": 1e6}  # a second a token


class Slept(list[float]):
    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def engine(slept: Slept) -> SimulatedVideoEngine:
    return SimulatedVideoEngine(video(cost=COST), slept)


def opened(of: SimulatedVideoEngine, saved: bytes | None = None, **changes: Any) -> Any:
    return of.open(asked(**changes).spec, Path(), saved)


def test_a_step_takes_the_time_of_the_cost_model_and_what_it_shares_only_once() -> None:
    slept = Slept()
    of = engine(slept)
    jobs = [opened(of), opened(of)]  # 64x64 and 8 frames are 3 x 4 x 4 tokens
    assert of.tokens(jobs[0].spec) == 48
    of.step(jobs[:1])
    of.step(jobs)
    assert slept == pytest.approx([2 + 48, 2 + 2 * 48])
    assert [job.done for job in jobs] == [2, 1]


def test_frames_are_grey_and_come_a_few_at_a_time() -> None:
    of = engine(Slept())
    chunks = list(of.decode(opened(of, frames=2 * CHUNK_FRAMES + 1)))
    assert [len(chunk) for chunk in chunks] == [CHUNK_FRAMES, CHUNK_FRAMES, 1]
    assert chunks[0].shape[1:] == (64, 64, 3)
    assert np.ptp(np.concatenate(chunks)) == 0


def test_a_job_goes_on_from_its_state() -> None:
    of = engine(Slept())
    job = opened(of)
    of.step([job])
    assert opened(of, of.save(job)).done == 1


@pytest.mark.parametrize("damage", [b"{", b"[]", b"{}", None])
def test_a_state_that_cannot_be_used_is_refused(damage: bytes | None) -> None:
    of = engine(Slept())
    other = of.save(opened(of, seed=8))
    with pytest.raises(ValueError, match=r"."):
        opened(of, other if damage is None else damage)


def test_odd_sides_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="even sides"):
        opened(engine(Slept()), width=95)


def test_what_is_kept_says_that_nothing_was_computed() -> None:
    of = engine(Slept())
    assert b'\\"simulated\\": true' in of.kept(opened(of))
