"""A causal language model of transformers under ZeRO-Inference: its weights lie in host memory or on NVMe.

Each layer's weights come to the device for the time that it computes and go again, so that a step costs one pass over
all weights, however few tokens it has. Rajbhandari et al., "ZeRO-Infinity" (2021); Aminabadi et al., "DeepSpeed
Inference" (2022), section VI. Written for GPUs, and never run on one.

Nothing is compiled here: a build that was cut off leaves a lock that every later one waits for without a word. Ops that
were not built when DeepSpeed was installed count as missing.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import deepspeed
import torch
import torch.distributed as dist
import transformers
from deepspeed.git_version_info import installed_ops
from torch import Tensor
from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

from cluster.errors import CheckpointError
from cluster.family import Tier
from deployments.engines.deepspeed_engine.nvme import check_nvme, own_folder
from deployments.engines.torch_engine.checkpoint import check_memory


class OffloadedModel:
    """`vocab` tokens, of which `end_tokens` end an answer."""

    def __init__(self, tier: Tier, device: Literal["cpu", "cuda"]) -> None:
        """Raises CheckpointError where the checkpoint cannot be served so. One per process."""
        assert tier.offload is not None
        self.device = torch.device(device)
        self._stack = ExitStack()
        dtype: torch.dtype = getattr(torch, tier.dtype)
        folder = Path(tier.checkpoint)
        config = _config(folder)
        if tier.offload.to == "nvme":
            check_nvme(tier.offload.folder)
        else:
            check_memory(folder, _weights(config) * dtype.itemsize, "cpu")
        if tier.context_tokens > config.max_position_embeddings:
            raise CheckpointError(
                f"{folder}: context_tokens is {tier.context_tokens}; at most the checkpoint's "
                f"{config.max_position_embeddings} are allowed; lower context_tokens"
            )
        try:
            builds = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="deepspeed-"))
            self._stack.enter_context(_environment(LOCAL_RANK="0", TORCH_EXTENSIONS_DIR=builds))
            self._model = self._load(folder, dtype, self._settings(tier))
        except Exception as error:  # three libraries, which raise what they like
            self.close()
            raise CheckpointError(
                f"{folder}: {error}; a checkpoint that transformers loads is allowed, and the memory for it is needed; "
                "save it anew, or give it more"
            ) from error
        self.vocab: int = config.vocab_size
        end = self._model.generation_config.eos_token_id
        self.end_tokens = frozenset([end] if isinstance(end, int) else end or ())

    def __call__(self, tokens: Tensor, mask: Tensor, cache: transformers.DynamicCache) -> Tensor:
        """Float32 logits [rows, vocab] of the last column.

        tokens [rows, new], mask [rows, held + new]: 0 where a row has no token. The cache grows by the new ones.
        """
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        out = self._model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = out.logits[:, -1]
        return logits.float()

    def close(self) -> None:
        """Frees the weights, the process group, and the files on NVMe."""
        self._model = None
        if dist.is_initialized():
            deepspeed.comm.destroy_process_group()
            deepspeed.comm.comm.cdb = None
        self._stack.close()

    def _settings(self, tier: Tier) -> dict[str, Any]:
        """DeepSpeed's own configuration: stage 3 without an optimizer is ZeRO-Inference."""
        assert tier.offload is not None
        offload: dict[str, Any] = {"device": tier.offload.to, "pin_memory": self.device.type == "cuda"}
        if tier.offload.folder is not None:
            offload["nvme_path"] = str(self._stack.enter_context(own_folder(Path(tier.offload.folder))))
        return {
            "zero_optimization": {
                "stage": 3,
                "offload_param": offload,
                # Small weights stay where they are used by default; a tier that does not fit has none to spare.
                "stage3_param_persistence_threshold": 0,
            },
            "bf16": {"enabled": tier.dtype == "bfloat16"},
            "train_micro_batch_size_per_gpu": 1,  # demanded, and of no meaning here
        }

    def _load(self, folder: Path, dtype: torch.dtype, settings: dict[str, Any]) -> Any:
        deepspeed.ops.__compatible_ops__ = installed_ops
        backend = "gloo" if self.device.type == "cpu" else "cpu:gloo,cuda:nccl"
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
        deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)
        split = HfDeepSpeedConfig(settings)  # while it lives, weights load split
        try:
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, local_files_only=True, output_loading_info=True
            )
        finally:
            unset_hf_deepspeed_config()
            del split
        model, told = loaded
        if told["missing_keys"]:  # they would be random
            raise ValueError(f"no tensors {', '.join(sorted(told['missing_keys'])[:4])}")
        return deepspeed.initialize(model=model, config=settings)[0].module.eval()


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """What DeepSpeed asks of a launcher, for as long as it runs: other libraries, too, look for these."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _config(folder: Path) -> Any:
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such directory; a checkpoint directory is allowed; train or fetch it first"
        )
    try:
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: {error}; a model that transformers knows is allowed; save it anew") from error


def _weights(config: Any) -> int:
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    return sum(weight.numel() for weight in model.parameters())
