"""What later edits of a clip begin from: its final latents in half precision, and how they came about, in one file.

safetensors; the metadata layer is JSON under "moray": the job's specification, its sigmas and a hash of its prompts.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import InvalidRequest
from deployments.video.spec import RenderSpec

if TYPE_CHECKING:
    from torch import Tensor

NAME = "parent.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """`latents` [1, C, F, H, W] in float32, normalised as the transformer takes them. `frames` were delivered."""

    latents: "Tensor"
    frames: int
    layer: dict[str, Any]


def to_bytes(spec: RenderSpec, latents: "Tensor", sigmas: list[float]) -> bytes:
    import torch
    from safetensors.torch import save

    prompts = hashlib.sha256(json.dumps([spec.prompt, spec.negative_prompt]).encode()).hexdigest()
    layer = {"spec": asdict(spec), "seed": spec.seed, "sigmas": sigmas, "prompt_sha256": prompts}
    held = latents.to("cpu", torch.float16).contiguous()
    return save({"latents": held}, metadata={"moray": json.dumps(layer)})


def read(folder: Path, job_id: str) -> Kept:
    """Raises InvalidRequest where there are none, or none that can be read."""
    import torch
    from safetensors import SafetensorError, safe_open

    path = folder / NAME
    try:
        with safe_open(path, "pt") as file:
            layer = json.loads(file.metadata()["moray"])
            latents = file.get_tensor("latents").to(torch.float32)
        return Kept(latents=latents, frames=int(layer["spec"]["frames"]), layer=layer)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InvalidRequest(
            f"{job_id}: {path.name}: {type(error).__name__}: {error}; a clip whose latents were kept is allowed; "
            "choose another clip, or render it again",
            param="video",
        ) from error
