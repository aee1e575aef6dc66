"""Jobs for tests of the step engine, and their pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load as load_tensors

from cluster.video import Acceleration
from deployments.video.adapters.job import Job
from deployments.video.adapters.kept import NAME
from deployments.video.engine import VideoEngine
from deployments.video.spec import Frames, RenderSpec


def spec(**changes: Any) -> RenderSpec:
    given: dict[str, Any] = {
        "job_id": "video_1", "prompt": "a red ball rises", "negative_prompt": "dark", "width": 64, "height": 64,
        "frames": 9, "fps": 8, "steps": 4, "guidance": 5.0, "seed": 7,
    }  # fmt: skip
    return RenderSpec(**given | changes)


def opened(engine: VideoEngine, asked: RenderSpec, folder: Path, saved: bytes | None = None) -> Job:
    return engine.open(asked, folder, saved)


def finished(engine: VideoEngine, jobs: Sequence[Job]) -> None:
    """Together as far as all go."""
    while left := [job for job in jobs if job.done < job.total]:
        engine.step(left)


def done(engine: VideoEngine, asked: RenderSpec, folder: Path) -> Job:
    job = opened(engine, asked, folder)
    finished(engine, [job])
    return job


def frames(engine: VideoEngine, job: Job) -> Frames:
    return np.concatenate(list(engine.decode(job)))


def latents(kept: bytes) -> torch.Tensor:
    return load_tensors(kept)["latents"]


def picture(path: Path, seed: int = 0, side: int = 64) -> Image.Image:
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8))
    image.save(path)
    return image


def parent(engine: VideoEngine, folder: Path, **changes: Any) -> Job:
    """A finished clip, its latents kept where a job that begins from it looks for them."""
    job = done(engine, spec(job_id="video_0", seed=3, **changes), folder)
    (folder / NAME).write_bytes(engine.kept(job))
    return job


def engine_like(engine: VideoEngine, **acceleration: Any) -> VideoEngine:
    """The same weights under other settings."""
    other = VideoEngine(engine.checkpoint, "float32", "cpu", Acceleration(**acceleration))
    other.load()
    return other
