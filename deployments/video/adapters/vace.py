"""Wan VACE: a video, a mask and reference images are inputs of the model. One job to a forward: stock batches none."""

from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.clip import pixels
from cluster.errors import InvalidRequest
from deployments.video.adapters import kept, pictures
from deployments.video.adapters.job import Job
from deployments.video.adapters.wan import Wan
from deployments.video.spec import Frames, RenderSpec

if TYPE_CHECKING:
    from torch import Tensor

UNKNOWN = 128  # grey where the model is to fill in, as it was trained


class Vace(Wan):
    """References are latent frames before the clip's own."""

    def key(self, spec: RenderSpec) -> tuple[object, ...]:
        return (*self.grid(spec).shape, spec.job_id)

    def own(self, job: Job) -> "Tensor":
        return job.latents[:, :, job.latents.shape[2] - self.grid(job.spec).shape[0] :]

    def latent_frames(self, spec: RenderSpec) -> int:
        return super().latent_frames(spec) + len(spec.inputs.references)

    def prepare(self, job: Job) -> None:
        spec = job.spec
        if spec.task == "remix":
            if spec.inputs.references:
                raise InvalidRequest(
                    f"{spec.job_id}: references of a remix; {type(self.pipe).__name__} takes them for new clips and "
                    "edits; leave them out",
                    param="image_references",
                )
            super().prepare(job)
        video, mask = self._video(job)
        job.conditions["control"] = self._control(job, video, mask)
        if video is not None:
            job.way = "conditioned"

    def _video(self, job: Job) -> "tuple[list[Any] | None, list[Any] | None]":
        """PIL frames of what is known and masks, white where it is not; None: nothing is known."""
        from PIL import Image

        spec, grid = job.spec, self.grid(job.spec)
        count = 1 + (grid.shape[0] - 1) * self.every_frames
        frames = [np.full((spec.height, spec.width, 3), UNKNOWN, np.uint8)] * count
        unknown = np.ones((count, spec.height, spec.width), np.bool_)
        if spec.task in ("edit", "extend"):
            known = self._known(job)[:count]
            if spec.task == "edit":
                known += [known[-1]] * (count - len(known))
                job.tokens = self.edited(job)
                unknown = pixels(grid, job.tokens)[np.minimum(np.arange(count), spec.frames - 1)]
            else:
                job.tokens = self.after(spec, len(known))
                unknown[: len(known)] = False
            frames = [*known, *frames[len(known) :]]
        for file, at in ((spec.inputs.first, 0), (spec.inputs.last, count - 1)):
            if file:
                frames[at] = np.asarray(pictures.image(job.folder / file))
                unknown[at] = False
        if unknown.all():
            return None, None
        white = (Image.fromarray(part.astype(np.uint8) * 255).convert("RGB") for part in unknown)
        return [Image.fromarray(frame) for frame in frames], list(white)

    def _known(self, job: Job) -> list[Frames]:
        """The pixels begun from: a master, a video that was given, or the parent's latents decoded."""
        if pictures.parent(job.folder, job.spec) is not None:
            return self.source(job)
        found = kept.read(job.folder, job.spec.job_id)
        chunks = self.decode_latents(job.spec, found.latents.to(self.device))
        return [frame for chunk in chunks for frame in chunk][: found.frames]

    def _control(self, job: Job, video: list[Any] | None, mask: list[Any] | None) -> "Tensor":
        """As WanVACEPipeline prepares it."""
        import torch

        spec, pipe = job.spec, self.pipe
        count = 1 + (self.grid(spec).shape[0] - 1) * self.every_frames
        images = [pictures.image(job.folder / name) for name in spec.inputs.references]
        size, device = (spec.height, spec.width, count), torch.device(self.device)
        known, masked, references = pipe.preprocess_conditions(
            video, mask, images or None, 1, *size, torch.float32, device
        )
        latents = pipe.prepare_video_latents(known, masked, references, None, device)
        return torch.cat([latents, pipe.prepare_masks(masked, references)], dim=1).to(self.model.dtype)

    def _groups(self, jobs: Any) -> list[list[int]]:
        return [[at] for at in range(len(jobs))]

    def extra(self, jobs: list[Job]) -> dict[str, "Tensor"]:
        import torch

        layers = len(self.model.config.vace_layers)
        control = jobs[0].conditions["control"]
        return {"control_hidden_states": control, "control_hidden_states_scale": torch.ones(layers).to(control)}
