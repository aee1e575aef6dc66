"""Our own loop over denoising steps, for any family whose forward, latents and decoder a subclass knows.

One forward serves several jobs at different steps: a transformer takes a time per sample. Noise comes from one CPU
generator per job, so neighbours and devices never change it. Flow matching throughout: z = (1 - sigma) clean + sigma
noise, and the transformer says the velocity, noise - clean.
"""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cluster.clip import Grid, marked
from cluster.errors import EngineFailed, InvalidRequest
from cluster.video import Acceleration, Takes, taken_by
from deployments.video.adapters import kept, pictures
from deployments.video.adapters.job import Job, Prompt, Way, own_scheduler, resume, to_bytes
from deployments.video.adapters.takes import check
from deployments.video.spec import Frames, RenderSpec

if TYPE_CHECKING:
    from torch import Tensor


class Stepwise(ABC):
    """`unit_px`, `every_frames`: pixels of a latent and frames of a latent frame. `patch`: latents of a token, a side.

    `per_token`: whether the transformer takes a time for each token.
    """

    per_token: bool
    unit_px: int
    every_frames: int
    patch: int

    def __init__(self, pipe: Any, device: str, acceleration: Acceleration) -> None:
        self.pipe = pipe
        self.device = device
        self.acceleration = acceleration

    @property
    def takes(self) -> Takes:
        takes = taken_by(type(self.pipe).__name__, self.per_token)
        assert takes is not None  # of a family that has an adapter
        return takes

    @abstractmethod
    def prompts(self, spec: RenderSpec) -> tuple[Prompt, Prompt | None]: ...

    @abstractmethod
    def velocities(self, jobs: Sequence[Job]) -> list["Tensor"]:
        """One [1, C, F, H, W] for each job, guided."""

    @abstractmethod
    def decode_latents(self, spec: RenderSpec, latents: "Tensor") -> Iterator[Frames]: ...

    @abstractmethod
    def encode(self, video: "Tensor") -> "Tensor":
        """Pixels [1, 3, F, H, W] in -1..1 to normalised latents."""

    @property
    @abstractmethod
    def channels(self) -> int: ...

    def grid(self, spec: RenderSpec) -> Grid:
        every, cell = self.every_frames, self.unit_px * self.patch
        return Grid(width=spec.width, height=spec.height, frames=spec.frames, every_frames=every, cell_px=cell)

    def tokens(self, spec: RenderSpec) -> int:
        return self.grid(spec).tokens

    def key(self, spec: RenderSpec) -> tuple[object, ...]:
        """A first-block cache belongs to one job, and so do the keys and values of a fast edit."""
        alone = self.acceleration.first_block_cache is not None or (spec.edit is not None and spec.edit.mode == "fast")
        return (*self.grid(spec).shape, spec.job_id if alone else "")

    def check(self, spec: RenderSpec) -> None:
        """Raises InvalidRequest."""
        cell = self.unit_px * self.patch
        if spec.height % cell or spec.width % cell or min(spec.height, spec.width, spec.frames, spec.steps) < 1:
            raise InvalidRequest(
                f"{spec.job_id}: {spec.width}x{spec.height}, {spec.frames} frames, {spec.steps} steps; this model "
                f"takes multiples of {cell}x{cell}, at least one frame and one step; change the family's video sizes",
                param="size",
            )
        check(spec, self.takes, type(self.pipe).__name__)

    def open(self, spec: RenderSpec, folder: Path, saved: bytes | None) -> Job:
        self.check(spec)
        scheduler = self.schedule(spec)
        steps = len(scheduler.timesteps)
        begin = steps - max(1, round(steps * min(1.0, max(0.0, spec.strength)))) if spec.task == "remix" else 0
        scheduler.set_begin_index(begin)
        positive, negative = self.prompts(spec)
        noise = self.noise(spec)
        job = Job(
            spec=spec, total=steps - begin, latents=noise, noise=noise, scheduler=scheduler, positive=positive,
            negative=negative, folder=folder, begin=begin,
        )  # fmt: skip
        if self.acceleration.first_block_cache is not None:
            weakref.finalize(job, forget, self.pipe, spec.job_id)
        self.prepare(job)
        if saved is not None:
            resume(job, saved)
        return job

    def step(self, jobs: Sequence[Job]) -> None:
        """Raises EngineFailed."""
        for job, velocity in zip(jobs, self.velocities(jobs), strict=True):
            # In float32, whatever the weights are: Euler's step returns the velocity's type, and would round each sum.
            job.latents = job.scheduler.step(velocity.float(), job.timestep, job.latents, return_dict=False)[0]
            job.done += 1
            if job.clean is not None and job.mask is not None:
                job.latents = job.latents.where(job.mask, self._held(job))

    def save(self, job: Job) -> bytes:
        return to_bytes(job)

    def kept(self, job: Job) -> bytes:
        return kept.to_bytes(job.spec, self.own(job), [float(sigma) for sigma in job.scheduler.sigmas])

    def decode(self, job: Job) -> Iterator[Frames]:
        """The delivered frames. Raises EngineFailed where the latents are not finite."""
        spec, latents = job.spec, self.own(job)
        if not latents.isfinite().all():
            raise EngineFailed(
                f"{spec.job_id}: the latents are not finite after {job.total} steps; finite numbers are allowed; "
                "lower the guidance or take dtype float32"
            )
        chunks = trimmed(self.decode_latents(spec, latents), spec.frames)
        file = pictures.parent(job.folder, spec) if spec.task in ("edit", "extend") else None
        if file is None or job.tokens is None:
            return chunks
        return pictures.composited(chunks, pictures.frames(file), self.grid(spec), job.tokens)

    def own(self, job: Job) -> "Tensor":
        """The latents of the clip itself."""
        return job.latents

    def latent_frames(self, spec: RenderSpec) -> int:
        """Of what the transformer computes."""
        return self.grid(spec).shape[0]

    def schedule(self, spec: RenderSpec) -> Any:
        scheduler = own_scheduler(self.pipe.scheduler)
        scheduler.set_timesteps(spec.steps, device=self.device)
        return scheduler

    def noise(self, spec: RenderSpec) -> "Tensor":
        """As the stock pipelines draw it: on the CPU, then moved."""
        import torch
        from diffusers.utils.torch_utils import randn_tensor

        _, down, across = self.grid(spec).shape
        shape = (1, self.channels, self.latent_frames(spec), down * self.patch, across * self.patch)
        generator = torch.Generator().manual_seed(spec.seed)
        return randn_tensor(shape, generator=generator, device=torch.device(self.device), dtype=torch.float32)  # type: ignore[no-any-return]

    def prepare(self, job: Job) -> None:
        """What of the clip is given, by task and inputs."""
        spec = job.spec
        if spec.task == "remix":
            job.latents = _noised(self._parent(job), job.noise, job.sigma)
            return
        clean, tokens = self._begins_from(job) if spec.task in ("edit", "extend") else self._images(job)
        if clean is None:
            return
        self.hold(job, clean, tokens)

    def hold(self, job: Job, clean: "Tensor", tokens: NDArray[np.bool_]) -> None:
        """`clean` latents stay as they are outside the marked tokens."""
        import torch

        sides = torch.from_numpy(tokens).repeat_interleave(self.patch, 1).repeat_interleave(self.patch, 2)
        job.clean, job.tokens, job.mask = clean, tokens, sides[None, None].to(self.device)
        job.way = self._way(job)
        job.latents = job.noise.where(job.mask, self._held(job))

    def _way(self, job: Job) -> Way:
        if not self.per_token:
            return "blended"
        edit = job.spec.edit
        fast = edit is not None and edit.mode == "fast" and self.takes.fast
        # A first-block cache leaves out layers that a fast edit records, and compares steps of different tokens; ranks
        # cut all tokens into runs.
        alone = self.acceleration.first_block_cache is None and self.acceleration.context_parallel == 1
        return "per-token-fast" if fast and alone else "per-token"

    def _held(self, job: Job) -> "Tensor":
        assert job.clean is not None
        return job.clean if job.way != "blended" else _noised(job.clean, job.noise, job.sigma)

    def _begins_from(self, job: Job) -> tuple["Tensor", NDArray[np.bool_]]:
        if job.spec.task == "extend":
            return self._extended(job)
        return self._parent(job), self.edited(job)

    def edited(self, job: Job) -> NDArray[np.bool_]:
        """Tokens that an edit marks. Raises InvalidRequest where there are none."""
        spec, grid = job.spec, self.grid(job.spec)
        edit = spec.edit
        tokens = marked(grid, spec.fps, edit.span if edit else None, edit.region if edit else None)
        if spec.inputs.mask:
            tokens &= pictures.mask(job.folder / spec.inputs.mask, grid)
        if not tokens.any():
            raise InvalidRequest(
                f"{spec.job_id}: the edit marks nothing of {spec.frames} frames of {spec.width}x{spec.height}; a time "
                "range or a region inside the clip is allowed; mark a part of it",
                param="time_range",
            )
        return tokens

    def _extended(self, job: Job) -> tuple["Tensor", NDArray[np.bool_]]:
        """The parent's latent frames of which every frame was delivered stay; time after them is new."""
        import torch

        spec = job.spec
        latents, frames = self._given(job)
        if frames >= spec.frames or latents.shape[-2:] != job.noise.shape[-2:]:
            raise InvalidRequest(
                f"{spec.job_id}: {spec.frames} frames after a clip of {frames}; an extension counts the clip's own "
                "frames too and has its size; ask for more seconds",
                param="seconds",
            )
        tokens = self.after(spec, frames)
        stays = int((~tokens[:, 0, 0]).sum())
        clean = torch.zeros_like(job.noise)
        clean[:, :, :stays] = latents[:, :, :stays]
        return clean, tokens

    def after(self, spec: RenderSpec, frames: int) -> NDArray[np.bool_]:
        """Tokens that an extension of so many frames computes: of latent frames of which not every frame is known."""
        tokens = np.ones(self.grid(spec).shape, np.bool_)
        tokens[: 1 + (frames - 1) // self.every_frames] = False
        return tokens

    def _parent(self, job: Job) -> "Tensor":
        latents, _ = self._given(job)
        if latents.shape != job.noise.shape:
            raise InvalidRequest(
                f"{job.spec.job_id}: latents {tuple(latents.shape[1:])} of the clip begun from; of this job "
                f"{tuple(job.noise.shape[1:])}; ask for the size and the seconds of that clip",
                param="size",
            )
        return latents

    def _given(self, job: Job) -> tuple["Tensor", int]:
        """Latents of the clip that this one begins from, and how many frames of it count."""
        if job.spec.inputs.source is None:
            found = kept.read(job.folder, job.spec.job_id)
            return found.latents.to(self.device), found.frames
        frames = self.source(job)
        return self.encode(self.video(frames)), len(frames)

    def source(self, job: Job) -> list[Frames]:
        """Frames of the video begun from, no more than the job's; filled up with the last one to what the VAE takes."""
        file = pictures.parent(job.folder, job.spec)
        frames = list(islice(pictures.frames(file), job.spec.frames)) if file else []
        if not frames:
            raise InvalidRequest(
                f"{job.spec.job_id}: there are no frames in the video begun from; one is allowed; give another",
                param="video_reference",
            )
        return frames

    def video(self, frames: Sequence[Frames]) -> "Tensor":
        """Pixels [1, 3, 1 + every * n, H, W] in -1..1; the last frame stays for what is lacking."""
        import torch

        lacking = -(len(frames) - 1) % self.every_frames
        pixels = torch.from_numpy(np.stack([*frames, *[frames[-1]] * lacking])).to(self.device)
        return pixels.permute(3, 0, 1, 2)[None].to(torch.float32) / 127.5 - 1

    def _images(self, job: Job) -> tuple["Tensor | None", NDArray[np.bool_]]:
        """A first and a last image as clean latent frames."""
        import torch

        spec, tokens = job.spec, np.ones(self.grid(job.spec).shape, np.bool_)
        if not (spec.inputs.first or spec.inputs.last):
            return None, tokens
        clean = torch.zeros_like(job.noise)
        if spec.inputs.first:
            picture = np.asarray(pictures.image(job.folder / spec.inputs.first))
            clean[:, :, :1] = self.encode(self.video([picture]))
            tokens[0] = False
        if spec.inputs.last:
            picture = np.asarray(pictures.image(job.folder / spec.inputs.last))
            still = [picture] * (1 + self.every_frames)
            clean[:, :, -1:] = self.encode(self.video(still))[:, :, -1:]
            tokens[-1] = False
        return clean, tokens


def forget(pipe: Any, job_id: str) -> None:
    """Drop what diffusers' caches hold for a job: they keep one state per name, for ever."""
    parts = (module for part in pipe.components.values() if hasattr(part, "modules") for module in part.modules())
    for module in parts:
        registry = getattr(module, "_diffusers_hook", None)
        for hook in registry.hooks.values() if registry is not None else ():
            states = getattr(getattr(hook, "state_manager", None), "_state_cache", {})
            for name in [name for name in states if name.startswith(f"{job_id} ")]:
                del states[name]


def each_alone(module: Any) -> None:
    """Let a part take the samples of a batch one by one.

    Some kernels of a CPU round otherwise for one sample than for several: a convolution, a product with one row, the
    end of an array that no whole register fills. With the embeddings alone the rest gives the same bits in any batch,
    by measurement, where widths are multiples of 16; a GPU promises none of it.
    """
    import torch

    forward = module.forward

    def one_by_one(batch: Any, *rest: Any) -> "Tensor":
        return torch.cat([forward(sample, *rest) for sample in batch.split(1)])

    module.forward = one_by_one


def trimmed(chunks: Iterator[Frames], frames: int) -> Iterator[Frames]:
    for chunk in chunks:
        if frames <= 0:
            return
        yield chunk[:frames]
        frames -= len(chunk)


def _noised(clean: "Tensor", noise: "Tensor", sigma: float) -> "Tensor":
    return (1 - sigma) * clean + sigma * noise
