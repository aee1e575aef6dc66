"""A tier of the family file as the command line of vLLM, and the environment of its processes.

Pure values, without vllm. The engine reads them with vLLM's own parser: what is shown and checked is what runs.
"""

import json
import math
from typing import Literal

from cluster.engines import Vllm
from cluster.family import Tier
from cluster.inputs import FRAMES_PER_S, MOST_CLIP_S, MOST_CLIPS, MOST_SENT
from deployments.engines.limits import MOST_LOGPROBS

Accelerator = Literal["cpu", "cuda"]
BLOCK_TOKENS = 32  # on CPU; its attention takes multiples of it
LEAST_CPU_KV_BYTES = 1 << 30  # what one context may take on CPU; blocks are counted by kv_tokens


def arguments(tier: Tier, accelerator: Accelerator) -> tuple[str, ...]:
    """What `vllm serve` would be told. The tier is one that `cluster.checkpoint` finds no fault with."""
    settings = tier.vllm or Vllm()
    return (
        *_model(tier, settings),
        *_batching(tier),
        *_ranks(tier, settings, accelerator),
        *_inputs(tier),
        *(_on_cpu(tier) if accelerator == "cpu" else _on_gpu(settings)),
    )


def shown(tier: Tier, accelerator: Accelerator) -> str:
    """One line: the command that serves this tier alone."""
    words = (f"'{word}'" if word.startswith("{") else word for word in arguments(tier, accelerator))
    return " ".join(("vllm serve", *words)).replace("vllm serve --model ", "vllm serve ")


def environment(tier: Tier, accelerator: Accelerator) -> dict[str, str]:
    """What must stand before vllm is imported; its other processes inherit it."""
    shared = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_ENGINE_READY_TIMEOUT_S": str(math.ceil(tier.start_timeout_s)),
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a replica has threads, which a fork would lose
        "HF_HUB_OFFLINE": "1",  # checkpoints are folders
    }
    if accelerator == "cuda":
        return shared
    # Compiling its first log-probabilities takes 21 s on a CPU; and every replica would bind itself to the same cores.
    return shared | {"TORCH_COMPILE_DISABLE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def _balanced(tier: Tier, settings: Vllm) -> bool:
    return settings.expert_parallel and tier.experts.rebalance and tier.ranks > 1


def _model(tier: Tier, settings: Vllm) -> tuple[str, ...]:
    return (
        *("--model", tier.checkpoint),
        *("--served-model-name", *tier.names),
        *("--dtype", tier.dtype),
        *("--kv-cache-dtype", settings.kv_dtype),
        *("--max-model-len", str(tier.context_tokens)),
        *("--max-logprobs", str(MOST_LOGPROBS)),
        # Small models may write white space without end.
        *("--structured-outputs-config", json.dumps({"backend": "xgrammar", "disable_any_whitespace": True})),
    )


def _inputs(tier: Tier) -> tuple[str, ...]:
    """How many a prompt may have; a clip is its frames."""
    if not tier.inputs:
        return ()
    pictures = MOST_SENT if "image" in tier.inputs else 0
    pictures += MOST_CLIPS * MOST_CLIP_S * FRAMES_PER_S if "video" in tier.inputs else 0
    most = {"image": pictures, "audio": MOST_SENT if "audio" in tier.inputs else 0}
    return "--limit-mm-per-prompt", json.dumps({kind: count for kind, count in most.items() if count})


def _batching(tier: Tier) -> tuple[str, ...]:
    """A step has room for one token of each running stream beside the chunk of prompts."""
    return (
        *("--max-num-seqs", str(tier.max_running)),
        *("--max-num-batched-tokens", str(tier.prefill_chunk_tokens + tier.max_running)),
        "--enable-chunked-prefill",
        "--enable-prefix-caching",
        *("--scheduling-policy", "priority"),
        "--enable-logging-iteration-details",  # what a step computed and took, for the replica's report
    )


def _ranks(tier: Tier, settings: Vllm, accelerator: Accelerator) -> tuple[str, ...]:
    words = [
        *("--tensor-parallel-size", str(settings.tensor_parallel)),
        *("--data-parallel-size", str(settings.data_parallel)),
        # The build for CPU always makes a process of its own for the worker.
        *("--distributed-executor-backend", "mp" if accelerator == "cpu" else settings.executor),
    ]
    if settings.expert_parallel:
        words.append("--enable-expert-parallel")
    if _balanced(tier, settings):
        # vLLM counts its window in steps; at the slowest promised pace, one takes tpot_ms.
        steps = max(1, round(tier.experts.window_s * 1000 / tier.slo.tpot_ms))
        eplb = {"window_size": steps, "step_interval": steps, "num_redundant_experts": tier.experts.redundant}
        words += ["--enable-eplb", "--eplb-config", json.dumps(eplb | {"policy": "default"})]
    return tuple(words)


def _on_cpu(tier: Tier) -> tuple[str, ...]:
    """One block more than kv_tokens need: vLLM keeps the first for itself."""
    return (
        "--enforce-eager",
        *("--block-size", str(BLOCK_TOKENS)),
        *("--num-gpu-blocks-override", str(-(-tier.kv_tokens // BLOCK_TOKENS) + 1)),
        *("--kv-cache-memory-bytes", str(LEAST_CPU_KV_BYTES)),
    )


def _on_gpu(settings: Vllm) -> tuple[str, ...]:
    """vLLM measures what the weights leave and fills it; kv_tokens is what placement and routing expect of it."""
    return ("--gpu-memory-utilization", str(settings.gpu_memory_utilization))
