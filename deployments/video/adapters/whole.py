"""Any other video pipeline of diffusers, by its own call: progress and cancelling by its callback, nothing shared.

The call runs in a thread of its own that is let go on by one step at a time. It cannot go on from a saved state: a job
that was interrupted begins anew. Its frames are all in memory at once.
"""

import copy
import inspect
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import EngineFailed, InvalidRequest
from cluster.video import Input, Takes
from deployments.video.adapters import kept, pictures
from deployments.video.adapters.job import Job, own_scheduler
from deployments.video.adapters.takes import FIELDS, check
from deployments.video.spec import Frames, RenderSpec

# Names of the API, arguments of diffusers' calls.
IMAGES: dict[Input, str] = {"input_reference": "image", "last_frame_reference": "last_image"}


class _Closed(BaseException):
    """Nobody waits for the call any more. Not an Exception: no pipeline catches it."""


class _Call:
    """The thread of one call; it stands still between two steps."""

    def __init__(self, pipe: Any, arguments: dict[str, Any]) -> None:
        self._pipe, self._arguments = pipe, arguments
        self._go, self._stood = threading.Semaphore(0), threading.Semaphore(0)
        self._closed = False
        self._thread: threading.Thread | None = None
        self.latents: Any = None
        self.frames: Any = None
        self.error: Exception | None = None
        self.over = False

    def onward(self) -> None:
        """To the end of the next step, or of the call; some report fewer steps than asked for. Raises its failure."""
        if self.over:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True, name="pipeline call")
            self._thread.start()
        self._go.release()
        self._stood.acquire()
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        self._closed = True
        self._go.release()

    def _run(self) -> None:
        try:
            self._wait()
            self.frames = self._pipe(**self._arguments, callback_on_step_end=self._stepped).frames
        except _Closed:
            pass
        except Exception as error:  # whatever a pipeline raises belongs to who waits for it
            self.error = error
        finally:
            self.over = True
            self._stood.release()

    def _stepped(self, _pipe: Any, _index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        self.latents = tensors.get("latents")
        self._stood.release()
        self._wait()
        return {}

    def _wait(self) -> None:
        self._go.acquire()
        if self._closed:
            raise _Closed


class Whole:
    """Calls of one pipeline. `takes` is read off the arguments of its call."""

    def __init__(self, pipe: Any, device: str) -> None:
        self.pipe = pipe
        self.device = device
        self._arguments = inspect.signature(pipe.__call__).parameters
        images = tuple(name for name, argument in IMAGES.items() if argument in self._arguments)
        needs = images[:1] if "ImageToVideo" in type(pipe).__name__ else ()
        self.takes = Takes(inputs=images, needs=needs, tasks=("create",))

    def key(self, spec: RenderSpec) -> tuple[object, ...]:
        return (spec.job_id,)

    def tokens(self, spec: RenderSpec) -> int:
        """By the measure of most: 16 x 16 pixels, 4 frames."""
        return (1 + -(-(spec.frames - 1) // 4)) * -(-spec.height // 16) * -(-spec.width // 16)

    def open(self, spec: RenderSpec, folder: Path, saved: bytes | None) -> Job:
        """Raises ValueError with a state: there is no going on."""
        check(spec, self.takes, type(self.pipe).__name__)
        if saved is not None:
            raise ValueError(f"{type(self.pipe).__name__} runs by its own call and goes on from no state")
        pipe = copy.copy(self.pipe)  # the parts are shared, the scheduler and what a call notes are not
        pipe.scheduler = own_scheduler(self.pipe.scheduler)
        call = _Call(pipe, self._asked(spec, folder))
        import torch

        none = torch.empty(0)
        job = Job(
            spec=spec, total=spec.steps, latents=none, noise=none, scheduler=pipe.scheduler, positive=(), negative=None,
            folder=folder, way="pipeline", memory=call,
        )  # fmt: skip
        weakref.finalize(job, call.close)
        return job

    def _asked(self, spec: RenderSpec, folder: Path) -> dict[str, Any]:
        import torch

        every = getattr(self.pipe, "vae_scale_factor_temporal", 4)
        asked: dict[str, Any] = {
            "prompt": spec.prompt, "negative_prompt": spec.negative_prompt, "height": spec.height, "width": spec.width,
            "num_frames": -(-(spec.frames - 1) // every) * every + 1, "frame_rate": spec.fps,
            "num_inference_steps": spec.steps, "guidance_scale": spec.guidance, "output_type": "np",
            "generator": torch.Generator().manual_seed(spec.seed),
        }  # fmt: skip
        for name, argument in IMAGES.items():
            if file := getattr(spec.inputs, FIELDS[name]):
                asked[argument] = pictures.image(folder / file)
        tokenizer = getattr(self.pipe, "tokenizer", None)
        longest = self._arguments.get("max_sequence_length")
        if longest is not None and isinstance(longest.default, int):
            asked["max_sequence_length"] = min(longest.default, getattr(tokenizer, "model_max_length", longest.default))
        return {name: value for name, value in asked.items() if name in self._arguments}

    def step(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            try:
                job.memory.onward()
            except ValueError as error:  # by which pipelines say that arguments do not suit them
                raise InvalidRequest(
                    f"{job.spec.job_id}: {error}; what {type(self.pipe).__name__} takes is allowed; change the request"
                ) from error
            job.done += 1

    def save(self, job: Job) -> bytes:
        return b""

    def kept(self, job: Job) -> bytes:
        """As the pipeline lays them out; no job begins from them."""
        sigmas = getattr(job.scheduler, "sigmas", ())
        return kept.to_bytes(job.spec, job.memory.latents, [float(sigma) for sigma in sigmas])

    def decode(self, job: Job) -> Iterator[Frames]:
        while not job.memory.over:  # the last step is not the end of the call, and some take more than asked for
            job.memory.onward()
        frames = job.memory.frames
        if frames is None or not np.isfinite(frames[0]).all():
            raise EngineFailed(
                f"{job.spec.job_id}: {type(self.pipe).__name__} made no finite frames; finite numbers are allowed; "
                "lower the guidance or take dtype float32"
            )
        yield (np.asarray(frames[0][: job.spec.frames]) * 255).round().astype(np.uint8)
