"""A step engine that computes nothing and keeps time by the cost model of the family file; its videos are plain grey.

A step of several jobs costs what does not depend on tokens once.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cluster.clip import Grid
from cluster.cost import video_step_s
from cluster.errors import InvalidRequest
from cluster.family import Video
from deployments.video.spec import Frames, Rendering, RenderSpec

GREY = 128
CHUNK_FRAMES = 16


@dataclass(slots=True, kw_only=True)
class Simulated:
    """One job: nothing but its count of steps."""

    spec: RenderSpec
    total: int
    done: int = 0
    way: str = "simulated"


class SimulatedVideoEngine:
    """`sleep`: blocks for so many seconds."""

    def __init__(self, video: Video, sleep: Callable[[float], None] = time.sleep) -> None:
        self._video = video
        self._sleep = sleep

    def load(self) -> None: ...

    def key(self, spec: RenderSpec) -> tuple[object, ...]:
        return spec.width, spec.height, spec.frames

    def tokens(self, spec: RenderSpec) -> int:
        return Grid(width=spec.width, height=spec.height, frames=spec.frames).tokens

    def open(self, spec: RenderSpec, folder: Path, saved: bytes | None) -> Simulated:
        """Raises ValueError, InvalidRequest."""
        if spec.width % 2 or spec.height % 2:
            raise InvalidRequest(
                f"{spec.job_id}: {spec.width}x{spec.height}; even sides are allowed; change the family's video sizes",
                param="size",
            )
        job = Simulated(spec=spec, total=spec.steps)
        if saved is not None:
            job.done = _done(saved, spec)
        return job

    def step(self, renderings: Sequence[Rendering]) -> None:
        base_s = self._video.cost.base_s
        self._sleep(base_s + sum(self._step_s(job.spec) - base_s for job in renderings))
        for job in renderings:
            job.done += 1

    def free(self) -> None: ...

    def save(self, rendering: Rendering) -> bytes:
        return json.dumps({"spec": asdict(rendering.spec), "done": rendering.done}).encode()

    def kept(self, rendering: Rendering) -> bytes:
        from safetensors.numpy import save

        layer = json.dumps({"spec": asdict(rendering.spec), "simulated": True})
        return save({"latents": np.zeros((1, 0), np.float16)}, metadata={"moray": layer})

    def decode(self, rendering: Rendering) -> Iterator[Frames]:
        spec = rendering.spec
        for start in range(0, spec.frames, CHUNK_FRAMES):
            frames = min(CHUNK_FRAMES, spec.frames - start)
            yield np.full((frames, spec.height, spec.width, 3), GREY, np.uint8)

    def _step_s(self, spec: RenderSpec) -> float:
        return video_step_s(self._video, f"{spec.width}x{spec.height}", spec.frames / self._video.fps)


def _done(saved: bytes, spec: RenderSpec) -> int:
    try:
        state = json.loads(saved)
        if state["spec"] == json.loads(json.dumps(asdict(spec))):  # tuples are lists there
            return int(state["done"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    raise ValueError("a state of another job")
