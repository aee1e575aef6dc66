"""A video replica without Ray, and jobs for it."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from cluster.family import Video
from deployments.video.messages import Asked, News
from deployments.video.spec import RenderSpec, StepEngine
from deployments.video.worker import VideoWorker

SHIPPED = Path(__file__).parents[1] / "deployments" / "demo" / "checkpoints" / "video"
FREE = {"base_s": 0.0, "linear_s_per_mtok": 0.0, "quadratic_s_per_mtok2": 0.0, "source": "a test"}


def video(**changes: Any) -> Video:
    """Simulated, of steps that take no time, unless told otherwise."""
    given: dict[str, Any] = {
        "names": ["sora-2"], "checkpoint": str(SHIPPED), "engine": "simulated", "sizes": ["64x64", "96x64"],
        "seconds": [1, 2], "fps": 8, "steps": 4, "slo": {"deadline_s": 60}, "price": {"usd_per_second": 0.1},
        "replicas": {"min": 0, "max": 1, "initial": 0}, "cost": FREE,
    }  # fmt: skip
    return Video.model_validate(given | changes)


def replica(folder: Path, engine_of_test: StepEngine | None = None, **changes: Any) -> VideoWorker:
    """Its files are in `state/videos` of the folder, what it is making in `scratch`."""
    (folder / "scratch").mkdir(exist_ok=True)
    return VideoWorker(video(**changes), "cpu", str(folder / "state"), str(folder / "scratch"), engine_of_test)


def asked(
    job_id: str = "video_1", *, priority: int = 0, deadline_s: float = 600.0, alone: bool = False, **changes: Any
) -> Asked:
    """`deadline_s`: from now."""
    given: dict[str, Any] = {
        "job_id": job_id, "prompt": "a red circle moving left", "width": 64, "height": 64, "frames": 8, "fps": 8,
        "steps": 4, "guidance": 5.0, "seed": 7,
    }  # fmt: skip
    spec = RenderSpec(**given | changes)
    return Asked(spec=spec, model="sora-2", deadline_s=time.time() + deadline_s, priority=priority, alone=alone)


async def told(stream: AsyncIterator[News]) -> list[News]:
    return [news async for news in stream]


def files(folder: Path, job_id: str = "video_1") -> list[str]:
    job = folder / "state" / "videos" / job_id
    return sorted(file.name for file in job.iterdir()) if job.exists() else []
