"""Renders videos from a diffusers Wan pipeline folder, one denoising step at a time.

The loop is ours and equals the stock pipeline's for the same seed: so progress is counted in true steps, and a job
stops at the next step boundary and goes on elsewhere from its saved state, bit for bit. Noise comes from one CPU
generator per job, keyed by its seed, so it never depends on other jobs or on the device. Wan decodes 1 + 4n frames: the
next such number is rendered and the end is trimmed.
torch and diffusers are imported by `load`.
"""

import copy
import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

from cluster.errors import CheckpointError, EngineFailed, InvalidRequest
from deployments.video.saved import SavedState
from deployments.video.spec import Frames as Frames
from deployments.video.spec import RenderSpec as RenderSpec

if TYPE_CHECKING:
    from torch import Tensor

TEXT_TOKENS = 512  # the stock pipeline's limit; longer prompts are cut there
OnStep = Callable[[int, int], None]


class Cancelled(Exception):
    """The caller stopped the job; raised at a step boundary, after its state was saved."""


class VideoEngine:
    """Blocking; made to be called from a thread. One job renders at a time: a second call waits for its turn."""

    def __init__(self, checkpoint: str | Path, dtype: Literal["float32", "bfloat16"], device: str) -> None:
        self.checkpoint = Path(checkpoint)
        self.dtype = dtype
        self.device = device
        self._pipe: Any = None
        self._turn = Lock()

    def load(self) -> None:
        """Read the weights. Raises CheckpointError. The VAE stays in float32, as diffusers advises for Wan."""
        _check_class(self.checkpoint)
        import torch
        from diffusers import DiffusionPipeline
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        from deployments.video import codec, positioned  # noqa: F401  # diffusers reads parts of ours once imported

        if self.device == "cpu":
            torch.set_num_threads(1)
        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        dtype = {"vae": torch.float32, "default": getattr(torch, self.dtype)}
        try:
            read = DiffusionPipeline.from_pretrained
            pipe = read(self.checkpoint, local_files_only=True, dtype=dtype)  # type: ignore[no-untyped-call]
        except Exception as error:  # whatever a broken folder provokes in three libraries
            raise CheckpointError(
                f"{self.checkpoint}: {type(error).__name__}: {error}; a folder that WanPipeline.save_pretrained wrote "
                "is allowed; write it again"
            ) from error
        _check_whole(self.checkpoint, pipe)
        self._pipe = pipe.to(self.device)

    def render(
        self, spec: RenderSpec, on_step: OnStep, cancelled: Callable[[], bool], saved: SavedState | None = None
    ) -> Frames:
        """RGB frames [F, H, W, 3]. `on_step(done, total)` is called on this thread after every denoising step.

        It goes on from a `saved` state; it saves there from time to time and when it is cancelled.

        Raises Cancelled, InvalidRequest where the size does not fit the model, EngineFailed.
        """
        if self._pipe is None:
            raise EngineFailed(f"{spec.job_id}: the video engine is not loaded; loading comes first; call load")
        import torch

        self._check_size(spec)
        with self._turn, torch.no_grad():
            latents = self._denoise(spec, on_step, cancelled, saved)
            if not torch.isfinite(latents).all():
                raise EngineFailed(
                    f"{spec.job_id}: the latents are not finite after {spec.steps} steps; finite numbers are allowed; "
                    "lower the guidance or take dtype float32"
                )
            return self._decode(latents)[: spec.frames]

    def _check_size(self, spec: RenderSpec) -> None:
        patch = _denoiser(self._pipe).config.patch_size
        unit = self._pipe.vae_scale_factor_spatial
        down, across = unit * patch[1], unit * patch[2]
        if spec.height % down or spec.width % across or min(spec.height, spec.width, spec.frames, spec.steps) < 1:
            raise InvalidRequest(
                f"{spec.job_id}: {spec.width}x{spec.height}, {spec.frames} frames, {spec.steps} steps; this model "
                f"takes multiples of {across}x{down}, at least one frame and one step; change the family's video sizes",
                param="size",
            )

    def _denoise(
        self, spec: RenderSpec, on_step: OnStep, cancelled: Callable[[], bool], saved: SavedState | None
    ) -> "Tensor":
        if cancelled():
            raise Cancelled(spec.job_id)
        scheduler = copy.deepcopy(self._pipe.scheduler)  # it keeps the history of one job
        scheduler.set_timesteps(spec.steps, device=self.device)
        scheduler.set_begin_index(0)
        begun, latents = _resumed(saved, spec, scheduler) or (0, self._noise(spec))
        prompts = self._encode(spec)
        total = len(scheduler.timesteps)
        for index in range(begun, total):
            latents = self._step(spec, scheduler, index, latents, prompts)
            on_step(index + 1, total)
            stopping = cancelled()
            if saved is not None and (stopping or saved.due):
                saved.write(_state(spec, scheduler, index + 1, latents))
            if stopping:
                raise Cancelled(spec.job_id)
        return latents

    def _step(
        self, spec: RenderSpec, scheduler: Any, index: int, latents: "Tensor", prompts: "tuple[Tensor, Tensor | None]"
    ) -> "Tensor":
        positive, negative = prompts
        timestep = scheduler.timesteps[index]
        model = self._stage(timestep)
        times = self._times(model, timestep, latents)
        noisy = latents.to(model.dtype)
        velocity = model(noisy, times, positive, return_dict=False)[0]
        if negative is not None:
            against = model(noisy, times, negative, return_dict=False)[0]
            velocity = against + spec.guidance * (velocity - against)
        return scheduler.step(velocity, timestep, latents, return_dict=False)[0]  # type: ignore[no-any-return]

    def _encode(self, spec: RenderSpec) -> "tuple[Tensor, Tensor | None]":
        guided = spec.guidance > 1
        positive, negative = self._pipe.encode_prompt(
            spec.prompt,
            spec.negative_prompt,
            do_classifier_free_guidance=guided,
            max_sequence_length=min(TEXT_TOKENS, self._pipe.tokenizer.model_max_length),
            device=self.device,
        )
        dtype = _denoiser(self._pipe).dtype
        return positive.to(dtype), negative.to(dtype) if guided else None

    def _noise(self, spec: RenderSpec) -> "Tensor":
        import torch

        pipe = self._pipe
        every = pipe.vae_scale_factor_temporal
        return pipe.prepare_latents(  # type: ignore[no-any-return]
            1,
            _denoiser(pipe).config.in_channels,
            spec.height,
            spec.width,
            -(-(spec.frames - 1) // every) * every + 1,
            torch.float32,
            torch.device(self.device),
            torch.Generator().manual_seed(spec.seed),
        )

    def _stage(self, timestep: "Tensor") -> Any:
        """Wan 2.2 of two transformers: the second takes over below the boundary."""
        pipe = self._pipe
        ratio = pipe.config.boundary_ratio
        if ratio is None:
            return _denoiser(pipe)
        high = timestep >= ratio * pipe.scheduler.config.num_train_timesteps
        return pipe.transformer if high else pipe.transformer_2

    def _times(self, model: Any, timestep: "Tensor", latents: "Tensor") -> "Tensor":
        """Shape [1], or [1, tokens] for models with a time per token."""
        if not self._pipe.config.expand_timesteps:
            return timestep.expand(1)
        _, _, frames, height, width = latents.shape
        _, down, across = model.config.patch_size
        return timestep.expand(1, frames * (height // down) * (width // across))

    def _decode(self, latents: "Tensor") -> Frames:
        import torch

        vae = self._pipe.vae
        latents = latents.to(vae.dtype)
        shape = (1, vae.config.z_dim, 1, 1, 1)
        mean = torch.tensor(vae.config.latents_mean).view(shape).to(latents)
        spread = 1.0 / torch.tensor(vae.config.latents_std).view(shape).to(latents)  # as stock: the same rounding
        video = vae.decode(latents / spread + mean, return_dict=False)[0][0]
        pixels = ((video / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return pixels.permute(1, 2, 3, 0).contiguous().cpu().numpy()  # type: ignore[no-any-return]


def _state(spec: RenderSpec, scheduler: Any, done: int, latents: "Tensor") -> bytes:
    import torch

    file = io.BytesIO()
    kind, history = type(scheduler).__name__, _history(scheduler)
    torch.save({"spec": asdict(spec), "kind": kind, "done": done, "latents": latents, "scheduler": history}, file)
    return file.getvalue()


def _history(scheduler: Any) -> dict[str, Any]:
    """All that a scheduler keeps but its configuration, which comes with the checkpoint."""
    return {name: value for name, value in vars(scheduler).items() if name != "_internal_dict"}


def _resumed(saved: SavedState | None, spec: RenderSpec, scheduler: Any) -> "tuple[int, Tensor] | None":
    """Steps done and the latents after them; the scheduler is set to where it was. None: there is no state to use."""
    import torch

    if saved is None or (raw := saved.read()) is None:
        return None
    try:
        state = torch.load(io.BytesIO(raw), weights_only=True)  # tensors where they were: sigmas stay on the CPU
        if (state["spec"], state["kind"]) != (asdict(spec), type(scheduler).__name__):
            raise ValueError("a state of another job or another scheduler")
        vars(scheduler).update(state["scheduler"])
        return int(state["done"]), state["latents"]
    except Exception as error:  # whatever torch makes of broken bytes
        saved.discard(f"{type(error).__name__}: {error}")
        return None


def _denoiser(pipe: Any) -> Any:
    return pipe.transformer if pipe.transformer is not None else pipe.transformer_2


def _check_class(folder: Path) -> None:
    index = folder / "model_index.json"
    try:
        raw = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{index}: {error}; the folder of a diffusers pipeline is allowed; mend video.checkpoint in the family file"
        ) from error
    given = raw.get("_class_name") if isinstance(raw, dict) else None
    if given != "WanPipeline":
        raise CheckpointError(
            f"{index}: the pipeline is {given!r}; WanPipeline (text to video) is allowed; give another checkpoint"
        )


def _check_whole(folder: Path, pipe: Any) -> None:
    """diffusers leaves a weight that is missing from the files on the meta device and goes on."""
    from torch import nn

    if _denoiser(pipe) is None:
        raise CheckpointError(f"{folder}: there is no transformer; transformer or transformer_2 is needed; add it")
    for name, part in pipe.components.items():
        absent = (
            [key for key, weight in part.named_parameters() if weight.is_meta] if isinstance(part, nn.Module) else []
        )
        if absent:
            raise CheckpointError(
                f"{folder}: {name} lacks {len(absent)} weights, {absent[0]} first; every weight that its configuration "
                "names is needed; write it again"
            )
