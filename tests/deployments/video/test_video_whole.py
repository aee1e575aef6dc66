"""A pipeline without an adapter: its own call, stopped between its steps."""

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from video_work import done, frames, latents, opened, spec

from cluster.errors import EngineFailed, InvalidRequest
from deployments.video.engine import VideoEngine
from deployments.video.spec import Frames, Inputs

Tiny = Callable[[str], VideoEngine]


def calls() -> int:
    return sum(thread.name == "pipeline call" for thread in threading.enumerate())


def stock(engine: VideoEngine) -> Frames:
    pipe: Any = DiffusionPipeline.from_pretrained(engine.checkpoint)
    asked = spec()
    shown = pipe(
        asked.prompt, asked.negative_prompt, height=64, width=64, num_frames=9, num_inference_steps=4,
        guidance_scale=5.0,
        max_sequence_length=pipe.tokenizer.model_max_length,
        output_type="np", generator=torch.Generator().manual_seed(7),
    ).frames[0]  # fmt: skip
    whole: Frames = (shown * 255).round().astype(np.uint8)
    return whole


def test_its_frames_are_those_of_its_own_call_and_it_says_so(tiny: Tiny, tmp_path: Path) -> None:
    engine = tiny("other")
    job = done(engine, spec(), tmp_path)
    assert np.array_equal(frames(engine, job), stock(engine))
    assert (job.way, engine.stepwise, tiny("wan").stepwise) == ("pipeline", False, True)
    assert latents(engine.kept(job)).shape[0] == 1


def test_two_calls_by_turns_do_not_meet(tiny: Tiny, tmp_path: Path) -> None:
    engine = tiny("other")
    alone = [frames(engine, done(engine, spec(seed=seed), tmp_path)) for seed in (1, 2)]
    jobs = [opened(engine, spec(job_id=str(seed), seed=seed, steps=4), tmp_path) for seed in (1, 2)]
    engine.step(jobs[:1])
    for _ in range(3):
        engine.step(jobs)
    engine.step(jobs[1:])
    assert [job.done for job in jobs] == [4, 4]
    assert all(np.array_equal(frames(engine, job), clip) for job, clip in zip(jobs, alone, strict=True))
    assert engine.key(jobs[0].spec) != engine.key(jobs[1].spec)


def test_a_call_that_nobody_waits_for_ends(tiny: Tiny, tmp_path: Path) -> None:
    engine = tiny("other")
    job = opened(engine, spec(steps=50), tmp_path)
    engine.step([job])
    assert calls() == 1
    thread = job.memory._thread
    del job
    gc.collect()
    thread.join(10)
    assert calls() == 0


@pytest.mark.parametrize("reported", [2, 6])
def test_a_call_that_reports_fewer_or_more_steps_than_asked_for_ends_too(
    tiny: Tiny, reported: int, tmp_path: Path
) -> None:
    engine = tiny("other")
    job = opened(engine, spec(), tmp_path)
    job.memory._arguments["num_inference_steps"] = reported
    for _ in range(4):
        engine.step([job])
    assert job.done == job.total == 4
    assert frames(engine, job).shape == (9, 64, 64, 3)


def test_it_goes_on_from_no_state(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="goes on from no state"):
        opened(tiny("other"), spec(), tmp_path, b"")


def test_it_takes_new_clips_alone(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="edit; CogVideoXPipeline takes create"):
        opened(tiny("other"), spec(task="edit", parent="video_0"), tmp_path)
    with pytest.raises(InvalidRequest, match="input_reference given; CogVideoXPipeline takes a prompt"):
        opened(tiny("other"), spec(inputs=Inputs(first="first.png")), tmp_path)


def test_what_its_call_refuses_is_the_callers_to_mend(tiny: Tiny, tmp_path: Path) -> None:
    engine = tiny("other")
    job = opened(engine, spec(width=60), tmp_path)
    with pytest.raises(InvalidRequest, match=r"divisible by 8.*change the request"):
        engine.step([job])


def test_frames_that_are_not_finite_fail_the_job(tiny: Tiny, tmp_path: Path) -> None:
    engine = VideoEngine(tiny("other").checkpoint, "float32", "cpu")
    engine.load()
    engine.family.pipe.transformer.proj_out.weight.data.fill_(float("nan"))
    job = done(engine, spec(), tmp_path)
    with pytest.raises(EngineFailed, match="no finite frames"):
        frames(engine, job)
