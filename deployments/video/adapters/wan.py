"""Wan 2.1 and 2.2: one or two transformers, text or image to video, and models with a time per token (TI2V)."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from cluster.errors import InvalidRequest
from cluster.video import Acceleration
from deployments.video.adapters import pictures, sparse
from deployments.video.adapters.decoding import decoded
from deployments.video.adapters.job import Job, Prompt
from deployments.video.adapters.stepwise import Stepwise, each_alone
from deployments.video.spec import Frames, RenderSpec

if TYPE_CHECKING:
    from torch import Tensor

TEXT_TOKENS = 512  # the stock pipeline's limit; longer prompts are cut there


class Wan(Stepwise):
    """WanPipeline. With `expand_timesteps` a first and a last image are clean latents at time 0, without: no images."""

    def __init__(self, pipe: Any, device: str, acceleration: Acceleration) -> None:
        super().__init__(pipe, device, acceleration)
        self.model = pipe.transformer if pipe.transformer is not None else pipe.transformer_2
        self.per_token = bool(getattr(pipe.config, "expand_timesteps", False))
        self.unit_px, self.every_frames = pipe.vae_scale_factor_spatial, pipe.vae_scale_factor_temporal
        self.patch = self.model.config.patch_size[1]
        for model in (pipe.transformer, pipe.transformer_2) if device == "cpu" else ():
            if model is not None:
                embed_alone(model)

    @property
    def channels(self) -> int:
        return int(self.model.config.in_channels)

    def prompts(self, spec: RenderSpec) -> tuple[Prompt, Prompt | None]:
        guided = spec.guidance > 1
        positive, negative = self.pipe.encode_prompt(
            spec.prompt,
            spec.negative_prompt,
            do_classifier_free_guidance=guided,
            max_sequence_length=min(TEXT_TOKENS, self.pipe.tokenizer.model_max_length),
            device=self.device,
        )
        dtype = self.model.dtype
        return (positive.to(dtype),), (negative.to(dtype),) if guided else None

    def velocities(self, jobs: Sequence[Job]) -> list["Tensor"]:
        """Jobs on either side of the boundary of two transformers share no forward; nor do fast edits, nor caches."""
        found: dict[int, Tensor] = {}
        for group in self._groups(jobs):
            members = [jobs[at] for at in group]
            found |= dict(zip(group, self._guided(members), strict=True))
        return [found[at] for at in range(len(jobs))]

    def _groups(self, jobs: Sequence[Job]) -> list[list[int]]:
        groups: dict[tuple[object, ...], list[int]] = {}
        for at, job in enumerate(jobs):
            alone = job.way == "per-token-fast" or self.acceleration.first_block_cache is not None
            groups.setdefault((id(self.stage(job)), at if alone else None), []).append(at)
        return list(groups.values())

    def stage(self, job: Job) -> Any:
        """Wan 2.2 of two transformers: the second takes over below the boundary."""
        ratio = self.pipe.config.boundary_ratio
        if ratio is None:
            return self.model
        high = job.timestep >= ratio * self.pipe.scheduler.config.num_train_timesteps
        return self.pipe.transformer if high else self.pipe.transformer_2

    def _guided(self, jobs: list[Job]) -> list["Tensor"]:
        """Two forwards, as stock: a pair in one would double what activations take."""
        velocities = self._forward(jobs, [job.positive for job in jobs], "cond")
        guided = [(at, job) for at, job in enumerate(jobs) if job.negative is not None]
        if guided:
            members = [job for _, job in guided]
            against = self._forward(members, [job.negative for job in members if job.negative], "uncond")
            for (at, job), base in zip(guided, against, strict=True):
                velocities[at] = base + job.spec.guidance * (velocities[at] - base)
        return velocities

    def _forward(self, jobs: list[Job], prompts: list[Prompt], stream: str) -> list["Tensor"]:
        import torch

        model = self.stage(jobs[0])
        noisy = torch.cat([self.model_input(job) for job in jobs]).to(model.dtype)
        times = torch.cat([self.times(job) for job in jobs])
        text = torch.cat([prompt[0] for prompt in prompts])
        with self.context(model, jobs[0], stream):
            if jobs[0].way == "per-token-fast":
                return [sparse.forward(model, jobs[0], stream, (noisy, times, text), self.acceleration.refresh_steps)]
            velocity = model(noisy, times, text, return_dict=False, **self.extra(jobs))[0]
        return list(velocity.split(1))

    def model_input(self, job: Job) -> "Tensor":
        return job.latents

    def extra(self, jobs: list[Job]) -> dict[str, "Tensor"]:
        return {}

    def times(self, job: Job) -> "Tensor":
        """Shape [1], or [1, tokens] for models with a time per token."""
        import torch

        if not self.per_token:
            return job.timestep.expand(1)
        if job.tokens is None:
            return job.timestep.expand(1, self.tokens(job.spec))
        return (torch.from_numpy(job.tokens).flatten()[None].to(self.device) * job.timestep).to(job.timestep.dtype)

    def context(self, model: Any, job: Job, stream: str) -> AbstractContextManager[None]:
        """A cache of diffusers keeps one state per name."""
        if self.acceleration.first_block_cache is None:
            return nullcontext()
        return model.cache_context(f"{job.spec.job_id} {stream}")  # type: ignore[no-any-return]

    def decode_latents(self, spec: RenderSpec, latents: "Tensor") -> Iterator[Frames]:
        vae = self.pipe.vae
        mean, spread = self._scale(latents.to(vae.dtype))
        return decoded(vae, latents.to(vae.dtype) / spread + mean)

    def encode(self, video: "Tensor") -> "Tensor":
        vae = self.pipe.vae
        latents = vae.encode(video.to(vae.dtype)).latent_dist.mode().float()
        mean, spread = self._scale(latents)
        return (latents - mean) * spread  # type: ignore[no-any-return]

    def _scale(self, like: "Tensor") -> tuple["Tensor", "Tensor"]:
        import torch

        config = self.pipe.vae.config
        shape = (1, config.z_dim, 1, 1, 1)
        mean = torch.tensor(config.latents_mean).view(shape).to(like)
        return mean, 1.0 / torch.tensor(config.latents_std).view(shape).to(like)  # as stock: the same rounding


class WanImages(Wan):
    """WanImageToVideoPipeline: a first image, and a last where there is one, beside the noise in channels of its own.

    The models with a time per token take it as Wan does.
    """

    @property
    def channels(self) -> int:
        return int(self.pipe.vae.config.z_dim)

    def prepare(self, job: Job) -> None:
        if self.per_token:
            super().prepare(job)
            return
        inputs, folder = job.spec.inputs, job.folder
        assert inputs.first is not None  # of what is needed
        images = [pictures.image(folder / name) for name in (inputs.first, inputs.last) if name]
        self._check_count(job.spec.job_id, len(images))
        job.conditions["channels"] = self._channels(job, images)
        job.way = "conditioned"
        if self.model.config.image_dim is not None:
            seen = images if len(images) > 1 else images[0]
            job.conditions["image"] = self.pipe.encode_image(seen, self.device).to(self.model.dtype)

    def _check_count(self, job_id: str, given: int) -> None:
        """Wan 2.1 sees its images too: of either the first, or both ends. Raises InvalidRequest."""
        if self.model.config.image_dim is None:
            return
        needed = 1 if self.model.config.pos_embed_seq_len is None else 2
        if given != needed:
            raise InvalidRequest(
                f"{job_id}: {given} images; this model takes {('a first one', 'a first and a last one')[needed - 1]}; "
                f"{('leave the last one out', 'add the last one')[needed - 1]}",
                param="last_frame_reference",
            )

    def _channels(self, job: Job, images: list[Any]) -> "Tensor":
        import torch

        spec = job.spec
        pixels = [self.pipe.video_processor.preprocess(each, spec.height, spec.width).float() for each in images]
        first, last = pixels[0].to(self.device), pixels[1].to(self.device) if len(pixels) > 1 else None
        frames = 1 + (self.grid(spec).shape[0] - 1) * self.every_frames
        size = (spec.height, spec.width, frames)
        _, condition = self.pipe.prepare_latents(
            first, 1, self.channels, *size, torch.float32, torch.device(self.device), None, job.noise, last
        )
        return condition  # type: ignore[no-any-return]

    def model_input(self, job: Job) -> "Tensor":
        import torch

        channels = job.conditions.get("channels")
        return job.latents if channels is None else torch.cat([job.latents, channels], dim=1)

    def extra(self, jobs: list[Job]) -> dict[str, "Tensor"]:
        import torch

        images = [job.conditions["image"] for job in jobs if "image" in job.conditions]
        return {"encoder_hidden_states_image": torch.cat(images)} if images else {}


def embed_alone(model: Any) -> None:
    """So that a job has the same bits in any batch, see `each_alone`."""
    times = model.condition_embedder
    for part in (model.patch_embedding, times.time_embedder, times.act_fn, times.time_proj):
        each_alone(part)
