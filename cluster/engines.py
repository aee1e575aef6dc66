"""What a tier tells its engine beyond the checkpoint: where experts lie, and the settings of single engines."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

Engine = Literal["torch", "simulated", "vllm", "deepspeed"]


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Experts(Closed):
    """The routed experts of one expert group. `redundant`: slots per layer, over all ranks, beyond one per expert.

    Loads are counted over the last `window_s`; with `rebalance`, experts move while requests run, where that pays.
    """

    redundant: int = Field(default=0, ge=0)
    rebalance: bool = True
    window_s: PositiveFloat = 60.0


class Vllm(Closed):
    """How vLLM splits a tier over its ranks: `tensor_parallel` * `data_parallel` of them.

    With `expert_parallel`, routed experts are split over all of them and balanced by vLLM's own EPLB. `kv_dtype` of the
    KV cache: the tier's dtype, or 8 bits per value, which hold more tokens and may cost accuracy. `tool_parser`: the
    name of vLLM's parser of the model's tool calls.
    """

    tensor_parallel: PositiveInt = 1
    data_parallel: PositiveInt = 1
    expert_parallel: bool = False
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    kv_dtype: Literal["auto", "fp8"] = "auto"
    tool_parser: str | None = None

    @property
    def executor(self) -> Literal["uni", "mp", "ray"]:
        """Who runs the ranks. Ray, one in each bundle of the replica's placement group, on one node or several.

        Where ranks are copies of the model, processes of the replica, on its node: each copy would ask Ray for the same
        bundles.
        """
        if self.data_parallel > 1:
            return "mp"
        return "ray" if self.tensor_parallel > 1 else "uni"


class Offload(Closed):
    """Where DeepSpeed keeps the weights that no GPU holds now.

    An idle engine waits `gather_s` for others to share a batch with the first. A request that takes longer than
    `limit_s` fails.
    """

    to: Literal["cpu", "nvme"] = "cpu"
    folder: str | None = None
    gather_s: NonNegativeFloat = 0.5
    limit_s: PositiveFloat = 600.0

    @model_validator(mode="after")
    def reachable(self) -> Self:
        if (self.to == "nvme") != (self.folder is not None):
            raise ValueError(f"to is {self.to!r}, folder is {self.folder!r}; nvme needs a folder on it, cpu takes none")
        return self
