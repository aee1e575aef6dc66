"""LTX-Video: a time per token; the pair of guidance is one forward, as stock."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.video import Acceleration
from deployments.video.adapters.decoding import decoded
from deployments.video.adapters.job import Job, Prompt, own_scheduler
from deployments.video.adapters.stepwise import Stepwise
from deployments.video.spec import Frames, RenderSpec

if TYPE_CHECKING:
    from torch import Tensor

TEXT_TOKENS = 128  # the stock pipeline's limit


class Ltx(Stepwise):
    """LTXPipeline and LTXImageToVideoPipeline: one model. Latents are packed to tokens only for the transformer."""

    per_token = True

    def __init__(self, pipe: Any, device: str, acceleration: Acceleration) -> None:
        super().__init__(pipe, device, acceleration)
        self.unit_px, self.every_frames = pipe.vae_spatial_compression_ratio, pipe.vae_temporal_compression_ratio
        self.patch = pipe.transformer_spatial_patch_size

    @property
    def channels(self) -> int:
        return int(self.pipe.transformer.config.in_channels)

    def key(self, spec: RenderSpec) -> tuple[object, ...]:
        """The rate is an input of the model's positions."""
        return (*super().key(spec), spec.fps)

    def schedule(self, spec: RenderSpec) -> Any:
        from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift, retrieve_timesteps

        scheduler = own_scheduler(self.pipe.scheduler)
        get = scheduler.config.get
        shift = calculate_shift(
            self.tokens(spec),
            get("base_image_seq_len", 256),
            get("max_image_seq_len", 4096),
            get("base_shift", 0.5),
            get("max_shift", 1.15),
        )
        sigmas: Any = np.linspace(1.0, 1 / spec.steps, spec.steps)
        retrieve_timesteps(scheduler, spec.steps, self.device, None, sigmas=sigmas, mu=shift)
        return scheduler

    def prompts(self, spec: RenderSpec) -> tuple[Prompt, Prompt | None]:
        guided = spec.guidance > 1
        positive, mask, negative, against = self.pipe.encode_prompt(
            spec.prompt,
            spec.negative_prompt,
            do_classifier_free_guidance=guided,
            max_sequence_length=min(TEXT_TOKENS, self.pipe.tokenizer.model_max_length),
            device=self.device,
        )
        return (positive, mask), (negative, against) if guided else None

    def velocities(self, jobs: Sequence[Job]) -> list["Tensor"]:
        """Samples of the forward: for each job against its negative prompt, where it has one, and for its prompt."""
        import torch

        samples = [(job, prompt) for job in jobs for prompt in (job.negative, job.positive) if prompt is not None]
        shape = jobs[0].latents.shape[2:]
        packed = [self.pipe._pack_latents(job.latents, self.patch) for job, _ in samples]
        embeddings, masks = (torch.cat([prompt[part] for _, prompt in samples]) for part in (0, 1))
        with self.pipe.transformer.cache_context(f"{jobs[0].spec.job_id} pair"):
            out = self.pipe.transformer(
                hidden_states=torch.cat(packed).to(embeddings.dtype),
                encoder_hidden_states=embeddings,
                timestep=torch.cat([self._times(job) for job, _ in samples]),
                encoder_attention_mask=masks,
                num_frames=shape[0],
                height=shape[1],
                width=shape[2],
                rope_interpolation_scale=(self.every_frames / jobs[0].spec.fps, self.unit_px, self.unit_px),
                return_dict=False,
            )[0].float()
        found = iter(out.split(1))
        return [self.pipe._unpack_latents(self._guided(job, found), *shape, self.patch) for job in jobs]

    def _guided(self, job: Job, found: Iterator["Tensor"]) -> "Tensor":
        if job.negative is None:
            return next(found)
        against, towards = next(found), next(found)
        return against + job.spec.guidance * (towards - against)

    def _times(self, job: Job) -> "Tensor":
        import torch

        if job.tokens is None:
            return job.timestep.expand(1, self.tokens(job.spec))
        return torch.from_numpy(job.tokens).flatten()[None].to(self.device) * job.timestep

    def decode_latents(self, spec: RenderSpec, latents: "Tensor") -> Iterator[Frames]:
        """With the stock defaults a VAE that is told a time is told 0: no noise is added."""
        import torch

        vae = self.pipe.vae
        whole = self.pipe._denormalize_latents(latents, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
        at = torch.zeros(1, device=self.device, dtype=vae.dtype) if vae.config.timestep_conditioning else None
        return decoded(vae, whole.to(vae.dtype), temb=at)

    def encode(self, video: "Tensor") -> "Tensor":
        vae = self.pipe.vae
        latents = vae.encode(video.to(vae.dtype)).latent_dist.mode().float()
        return self.pipe._normalize_latents(latents, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)  # type: ignore[no-any-return]
