"""A video engine that computes nothing and keeps time by the cost model of the family file; its videos are plain grey.

Steps lie on an absolute schedule of the event loop, so that late wake-ups do not add up.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict

import numpy as np

from cluster.cost import video_step_s
from cluster.errors import InvalidRequest
from cluster.family import Video
from deployments.video.engine import Cancelled, Frames, OnStep, RenderSpec
from deployments.video.saved import SavedState

TITLE = "simulated"
GREY = 128


class SimulatedVideoEngine:
    """One job renders at a time: its caller sees to that."""

    def __init__(self, video: Video) -> None:
        self._video = video

    async def render(
        self, spec: RenderSpec, on_step: OnStep, cancelled: Callable[[], bool], saved: SavedState | None = None
    ) -> Frames:
        """RGB frames [F, H, W, 3]. Otherwise as VideoEngine.render. Raises Cancelled, InvalidRequest."""
        if spec.width % 2 or spec.height % 2:
            raise InvalidRequest(
                f"{spec.job_id}: {spec.width}x{spec.height}; even sides are allowed; change the family's video sizes",
                param="size",
            )
        if cancelled():
            raise Cancelled(spec.job_id)
        step_s = video_step_s(self._video, f"{spec.width}x{spec.height}", spec.frames / spec.fps)
        loop = asyncio.get_running_loop()
        begun, start_s = _resumed(saved, spec), loop.time()
        for done in range(begun + 1, spec.steps + 1):
            await asyncio.sleep(start_s + (done - begun) * step_s - loop.time())
            on_step(done, spec.steps)
            stopping = cancelled()
            if saved is not None and (stopping or saved.due):
                saved.write(json.dumps({"spec": asdict(spec), "done": done}).encode())
            if stopping:
                raise Cancelled(spec.job_id)
        return np.full((spec.frames, spec.height, spec.width, 3), GREY, np.uint8)


def _resumed(saved: SavedState | None, spec: RenderSpec) -> int:
    if saved is None or (raw := saved.read()) is None:
        return 0
    try:
        state = json.loads(raw)
        if state["spec"] == json.loads(json.dumps(asdict(spec))):  # tuples are lists there
            return int(state["done"])
        why = "a state of another job"
    except (ValueError, TypeError, KeyError) as error:
        why = f"{type(error).__name__}: {error}"
    saved.discard(why)
    return 0
