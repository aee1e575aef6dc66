"""Ranks of a video replica with a GPU each, over nccl, compute what one does. Never run."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_pipelines
import torch

from cluster.video import Acceleration
from deployments.video.adapters.job import Job
from deployments.video.engine import VideoEngine
from deployments.video.spec import RenderSpec

Note = Callable[..., None]
CLIP = RenderSpec(
    job_id="video_1", prompt="a red ball rises", width=64, height=160, frames=17, fps=8, steps=8, guidance=5.0, seed=7
)


def made(engine: VideoEngine, folder: Path) -> tuple[Job, float]:
    """A clip, and the seconds of its steps."""
    job = engine.open(CLIP, folder, None)
    began_s = time.perf_counter()
    while job.done < job.total:
        engine.step([job])
    torch.cuda.synchronize()
    return job, time.perf_counter() - began_s


@pytest.mark.parametrize("family", ["placed", "wan", "vace", "ltx"])
def test_ranks_make_the_latents_of_one(gpu: torch.device, note: Note, family: str, tmp_path: Path) -> None:
    ranks = min(torch.cuda.device_count(), 3)
    if ranks < 2:
        pytest.skip("one GPU, two are needed: never run")
    folder = tiny_pipelines.written(family, tmp_path / family)
    one = VideoEngine(folder, "float32", gpu.type)
    one.load()
    several = VideoEngine(folder, "float32", gpu.type, Acceleration(context_parallel=ranks))
    several.load()
    try:
        (alone, alone_s), (shared, shared_s) = made(one, tmp_path), made(several, tmp_path)
    finally:
        several.close()
    apart = float((shared.latents - alone.latents).abs().max())
    note("video ranks", family=family, ranks=ranks, alone_s=alone_s, shared_s=shared_s, largest_difference=apart)
    torch.testing.assert_close(shared.latents, alone.latents, atol=1e-3, rtol=1e-3)
