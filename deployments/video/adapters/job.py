"""One job inside an engine: its latents, its scheduler and what is held fixed; and its state as bytes."""

import copy
import io
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from deployments.video.spec import RenderSpec

if TYPE_CHECKING:
    from torch import Tensor

Prompt = tuple["Tensor", ...]  # embeddings [1, length, width], then masks [1, length] where the model takes them
Way = Literal["full", "per-token", "per-token-fast", "blended", "conditioned", "pipeline"]


@dataclass(kw_only=True, eq=False)
class Job:
    """`latents` [1, C, F, H, W] in float32. `begin`: index of the first timestep, above 0 for a remix.

    `clean`: latents that are held outside `mask` [1, 1, F, H, W], true where they are computed; `tokens`: the same
    mask [f, h, w] of tokens. `way`: how what is held is held. full: nothing is. per-token: it enters every step clean,
    at time 0; per-token-fast: most steps compute the marked tokens alone. blended: it is laid over each step, noised
    alike, for models with one time for all. conditioned: the model takes it as an input of its own. pipeline: the
    pipeline's own call runs, which shares no step with other jobs and goes on from no saved state.
    """

    spec: RenderSpec
    total: int
    latents: "Tensor"
    noise: "Tensor"
    scheduler: Any
    positive: Prompt
    negative: Prompt | None
    folder: Path
    done: int = 0
    begin: int = 0
    way: Way = "full"
    clean: "Tensor | None" = None
    mask: "Tensor | None" = None
    tokens: NDArray[np.bool_] | None = None
    conditions: dict[str, "Tensor"] = field(default_factory=dict)
    memory: Any = None

    @property
    def timestep(self) -> "Tensor":
        return self.scheduler.timesteps[self.begin + self.done]  # type: ignore[no-any-return]

    @property
    def sigma(self) -> float:
        """The share of noise in the latents as they stand: 1 before a first step, 0 after the last."""
        return float(self.scheduler.sigmas[self.begin + self.done])


def own_scheduler(scheduler: Any) -> Any:
    """A scheduler keeps the history of one job."""
    return copy.deepcopy(scheduler)


def to_bytes(job: Job) -> bytes:
    import torch

    file = io.BytesIO()
    state = {"spec": _words(job.spec), "kind": type(job.scheduler).__name__, "done": job.done}
    torch.save(state | {"latents": job.latents, "scheduler": _history(job.scheduler)}, file)
    return file.getvalue()


def resume(job: Job, raw: bytes) -> None:
    """Raises ValueError where the state is not that of this job."""
    import torch

    try:
        state = torch.load(io.BytesIO(raw), weights_only=True)  # tensors where they were: sigmas stay on the CPU
        if (state["spec"], state["kind"]) != (_words(job.spec), type(job.scheduler).__name__):
            raise ValueError("a state of another job or another scheduler")
        job.done, job.latents = int(state["done"]), state["latents"]
        vars(job.scheduler).update(state["scheduler"])
    except Exception as error:  # whatever torch makes of broken bytes
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _words(spec: RenderSpec) -> str:
    return json.dumps(asdict(spec), sort_keys=True)


def _history(scheduler: Any) -> dict[str, Any]:
    """All that a scheduler keeps but its configuration, which comes with the checkpoint."""
    return {name: value for name, value in vars(scheduler).items() if name != "_internal_dict"}
