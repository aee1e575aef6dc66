"""A pipeline folder of diffusers to the family that runs it, with the settings of the family file applied."""

import json
import logging
from pathlib import Path
from typing import Any, Literal

from cluster.errors import CheckpointError
from cluster.video import Acceleration
from deployments.video.adapters.ltx import Ltx
from deployments.video.adapters.stepwise import Stepwise
from deployments.video.adapters.vace import Vace
from deployments.video.adapters.wan import Wan, WanImages, embed_alone
from deployments.video.adapters.whole import Whole

log = logging.getLogger("ray.serve")
Family = Stepwise | Whole
STEPWISE: dict[str, type[Wan] | type[Ltx]] = {
    "WanPipeline": Wan,
    "WanImageToVideoPipeline": WanImages,
    "WanVACEPipeline": Vace,
    "LTXPipeline": Ltx,
    "LTXImageToVideoPipeline": Ltx,
}


def load(folder: Path, dtype: Literal["float32", "bfloat16"], device: str, acceleration: Acceleration) -> Family:
    """Raises CheckpointError. On a CPU one thread computes: its figures are those of one core."""
    kind = _class(folder)
    if kind not in STEPWISE and acceleration.context_parallel > 1:
        raise CheckpointError(
            f"{folder}: {kind} with video.acceleration.context_parallel {acceleration.context_parallel}; ranks share "
            f"steps of {', '.join(STEPWISE)}; set it to 1"
        )
    pipe = _read(folder, dtype, device, acceleration)
    if kind in STEPWISE:
        return STEPWISE[kind](pipe, device, acceleration)
    log.warning("%s: %s has no adapter: jobs run by its own call, share no step and resume from none", folder, kind)
    return Whole(pipe, device)


def load_transformers(
    folder: Path, dtype: Literal["float32", "bfloat16"], device: str, acceleration: Acceleration
) -> dict[str, Any]:
    """What a rank beside the first computes with: transformers by name, as `load` prepares them, and nothing else."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    others = {name: None for name, part in index.items() if isinstance(part, list) and name not in TRANSFORMERS}
    acceleration = acceleration.model_copy(update={"tiled_decode": False})
    models = transformers(_read(folder, dtype, device, acceleration, others))
    for model in models.values() if device == "cpu" else ():
        if hasattr(model, "condition_embedder"):
            embed_alone(model)
    return models


def transformers(pipe: Any) -> dict[str, Any]:
    return {name: model for name in TRANSFORMERS if (model := getattr(pipe, name, None)) is not None}


def _read(
    folder: Path, dtype: str, device: str, acceleration: Acceleration, given: dict[str, Any] | None = None
) -> Any:
    """A pipeline on its device, settings applied. `given`: parts in place of the folder's."""
    import torch
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from deployments.video import codec, positioned  # noqa: F401  # diffusers reads parts of ours once imported

    if device == "cpu":
        torch.set_num_threads(1)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    dtypes = {"vae": torch.float32, "default": getattr(torch, dtype)}
    options = quantized(acceleration) | (given or {})
    try:
        read = DiffusionPipeline.from_pretrained
        pipe = read(folder, local_files_only=True, dtype=dtypes, **options)
    except Exception as error:  # whatever a broken folder provokes in three libraries
        raise CheckpointError(
            f"{folder}: {type(error).__name__}: {error}; a folder that save_pretrained of a diffusers video pipeline "
            "wrote is allowed; write it again"
        ) from error
    _check_parts(folder, pipe)
    pipe = pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    accelerate(folder, pipe, acceleration)
    return pipe


def quantized(acceleration: Acceleration) -> dict[str, Any]:
    """Options of from_pretrained. Raises CheckpointError without torchao."""
    if acceleration.precision not in ("int8", "fp8"):
        return {}
    try:
        from torchao import quantization
    except ImportError as error:
        raise CheckpointError(
            f"video.acceleration.precision: {acceleration.precision}: {error}; with torchao installed it is allowed; "
            "install torchao==0.18.0, or take fp8-storage"
        ) from error
    from diffusers import TorchAoConfig
    from diffusers.quantizers.pipe_quant_config import PipelineQuantizationConfig

    kind = {"int8": "Int8WeightOnlyConfig", "fp8": "Float8WeightOnlyConfig"}[acceleration.precision]
    each: Any = TorchAoConfig(getattr(quantization, kind)())
    return {"quantization_config": PipelineQuantizationConfig(quant_mapping=dict.fromkeys(TRANSFORMERS, each))}


TRANSFORMERS = ("transformer", "transformer_2")


def accelerate(folder: Path, pipe: Any, acceleration: Acceleration) -> None:
    """Through diffusers' own calls. Raises CheckpointError where a part has no such call, or refuses it."""
    import torch

    try:
        for model in transformers(pipe).values():
            if acceleration.precision == "fp8-storage":
                model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=model.dtype)
            if acceleration.first_block_cache is not None:
                from diffusers import FirstBlockCacheConfig

                config = FirstBlockCacheConfig(threshold=acceleration.first_block_cache)
                model.enable_cache(config)
        if acceleration.tiled_decode:
            pipe.vae.enable_tiling()
    except (AttributeError, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"{folder}: {error}; settings that {type(pipe).__name__} has are allowed; mend video.acceleration"
        ) from error


def _class(folder: Path) -> str:
    """The name of a video pipeline of diffusers."""
    index = folder / "model_index.json"
    try:
        raw = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{index}: {error}; the folder of a diffusers pipeline is allowed; mend video.checkpoint in the family file"
        ) from error
    given = raw.get("_class_name") if isinstance(raw, dict) else None
    if not (isinstance(given, str) and makes_video(given)):
        raise CheckpointError(
            f"{index}: the pipeline is {given!r}; a pipeline of diffusers whose call takes num_frames and "
            "callback_on_step_end is allowed; give another checkpoint"
        )
    return given


def makes_video(name: str) -> bool:
    """Whether diffusers has a pipeline of this name that takes a number of frames and can be stopped at a step."""
    import inspect

    import diffusers

    found = getattr(diffusers, name, None)
    needed = {"num_frames", "callback_on_step_end"}
    return inspect.isclass(found) and needed <= set(inspect.signature(found.__call__).parameters)


def _check_parts(folder: Path, pipe: Any) -> None:
    """diffusers leaves a weight that is missing from the files on the meta device and goes on."""
    from torch import nn

    if all(getattr(pipe, name, None) is None for name in (*TRANSFORMERS, "unet")):
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
