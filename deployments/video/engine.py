"""The step engine: jobs of a diffusers pipeline folder, a step at a time, as deployments.video.spec.StepEngine.

Families that an adapter knows run by our own loop: progress is counted in true steps, jobs of one shape share a
forward, and a job stops at a step boundary and goes on elsewhere from its saved state, bit for bit. Alone, its frames
are the stock pipeline's for the same seed. Every other pipeline runs by its own call, and says so (`Job.way`). Models
decode 1 + every * n frames: the next such number is rendered and the end is trimmed.
torch and diffusers are imported by `load`.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from cluster.errors import EngineFailed
from cluster.video import Acceleration, Video
from deployments.video.spec import Frames as Frames
from deployments.video.spec import Rendering
from deployments.video.spec import RenderSpec as RenderSpec

if TYPE_CHECKING:
    from deployments.video.adapters.job import Job
    from deployments.video.adapters.load import Family
    from deployments.video.ranks import Ranks


class VideoEngine:
    """Blocking; called from one thread at a time."""

    def __init__(
        self,
        checkpoint: str | Path,
        dtype: Literal["float32", "bfloat16"],
        device: str,
        acceleration: Acceleration | None = None,
    ) -> None:
        self.checkpoint = Path(checkpoint)
        self.dtype = dtype
        self.device = device
        self.acceleration = acceleration or Acceleration()
        self._family: Family | None = None
        self.ranks: Ranks | None = None

    def load(self) -> None:
        """Read the weights. Raises CheckpointError. The VAE stays in float32, as diffusers advises for Wan."""
        from deployments.video.adapters.load import load, transformers
        from deployments.video.ranks import Ranks

        if self.acceleration.context_parallel > 1:
            self.ranks = Ranks(self.checkpoint, self.dtype, self.device, self.acceleration)
        try:
            family = load(self.checkpoint, self.dtype, self.device, self.acceleration)
            if self.ranks is not None:
                self.ranks.lead(transformers(family.pipe))
        except BaseException:
            self.close()
            raise
        self._family = family

    def close(self) -> None:
        """Its other ranks end. An engine of one rank needs no closing; nor does one whose process ends."""
        if self.ranks is not None:
            self.ranks.close()

    @property
    def family(self) -> "Family":
        if self._family is None:
            raise EngineFailed(f"{self.checkpoint}: the video engine is not loaded; loading comes first; call load")
        return self._family

    @property
    def stepwise(self) -> bool:
        """False where jobs run by the pipeline's own call: they share no step and go on from no saved state."""
        from deployments.video.adapters.whole import Whole

        return not isinstance(self.family, Whole)

    def key(self, spec: RenderSpec) -> tuple[object, ...]:
        return self.family.key(spec)

    def tokens(self, spec: RenderSpec) -> int:
        return self.family.tokens(spec)

    def open(self, spec: RenderSpec, folder: Path, saved: bytes | None) -> "Job":
        import torch

        with torch.no_grad():
            return self.family.open(spec, folder, saved)

    def step(self, renderings: Sequence[Rendering]) -> None:
        import torch

        with torch.no_grad(), nullcontext() if self.ranks is None else self.ranks.together():
            self.family.step(_ours(renderings))

    def free(self) -> None:
        """What the allocator keeps for later. Raises torch.AcceleratorError where the device is lost."""
        import gc

        import torch

        gc.collect()
        torch.cuda.empty_cache()

    def save(self, rendering: Rendering) -> bytes:
        return self.family.save(*_ours([rendering]))

    def kept(self, rendering: Rendering) -> bytes:
        return self.family.kept(*_ours([rendering]))

    def decode(self, rendering: Rendering) -> Iterator[Frames]:
        """A generator that is left between two chunks must not leave torch without gradients: each has its own."""
        import torch

        with torch.no_grad():
            chunks = self.family.decode(*_ours([rendering]))
        while True:
            with torch.no_grad():
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk

    def render(self, spec: RenderSpec) -> Frames:
        """One job alone, of no inputs, to all of its frames [F, H, W, 3]. Raises InvalidRequest, EngineFailed."""
        with tempfile.TemporaryDirectory() as folder:
            job = self.open(spec, Path(folder), None)
            while job.done < job.total:
                self.step([job])
            return np.concatenate(list(self.decode(job)))


def engine_for(video: Video, device: str) -> VideoEngine:
    """The engine of the family file's checkpoint. `device`: cpu or cuda."""
    return VideoEngine(video.checkpoint, video.dtype, device, video.acceleration)


def _ours(renderings: Sequence[Rendering]) -> list["Job"]:
    from deployments.video.adapters.job import Job

    jobs = [job for job in renderings if isinstance(job, Job)]
    assert len(jobs) == len(renderings)  # an engine steps what it opened
    return jobs
