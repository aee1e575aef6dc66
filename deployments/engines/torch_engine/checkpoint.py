"""A GLM-4-MoE checkpoint on disk: its shape as a frozen value, and its tensors, checked by name and shape.

The layout is the one that transformers saves for `Glm4MoeForCausalLM`: config.json, and model.safetensors or an index
of shards. Tensors are read one by one, so that the peak is the weights in their final dtype plus one tensor.
Every fault is a CheckpointError that names the file.
"""

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open

from cluster.errors import CheckpointError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The shape of the model. `rotary_dim` of each `head_dim` are rotated; the first `dense_layers` have no experts.

    `domains`: the experts that were trained for each domain; None where the checkpoint does not say.
    """

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    rope_theta: float
    norm_eps: float
    qk_norm: bool
    attention_bias: bool
    tied_head: bool
    dense_layers: int
    dense_ffn: int
    experts: int
    top_k: int
    expert_ffn: int
    shared_experts: int
    groups: int
    top_groups: int
    norm_top_k: bool
    routed_scale: float
    context_tokens: int
    end_tokens: frozenset[int]
    domains: dict[str, tuple[int, ...]] | None

    @property
    def moe_layers(self) -> int:
        return self.layers - self.dense_layers

    def weights(self, experts: int) -> int:
        """How many weights a rank holds that has so many routed experts over all its layers."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        dense = self.dense_layers * 3 * self.hidden * self.dense_ffn
        always = self.moe_layers * self.hidden * (3 * self.expert_ffn * self.shared_experts + self.experts)
        routed = experts * 3 * self.hidden * self.expert_ffn
        ends = self.vocab * self.hidden * (1 if self.tied_head else 2)
        return self.layers * attention + dense + always + routed + ends


def read_config(folder: Path) -> ModelConfig:
    """The model's shape, from config.json and, for the end tokens, generation_config.json."""
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such directory; a checkpoint directory is allowed; train or fetch it first"
        )
    where = folder / "config.json"
    raw = read_json(where)
    if raw.get("model_type") != "glm4_moe":
        given = raw.get("model_type")
        raise CheckpointError(f"{where}: model_type is {given!r}; 'glm4_moe' is allowed; use another engine for it")
    try:
        config = _parsed(raw, _end_tokens(folder, raw))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: {error!r}; the fields of Glm4MoeConfig are allowed; save it anew") from error
    _check(config, raw, where)
    return config


def read_json(file: Path) -> dict[str, Any]:
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: {error}; a JSON file is allowed; save the checkpoint anew") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file}: a JSON {type(raw).__name__}; an object is allowed; save the checkpoint anew")
    return raw


def _parsed(raw: dict[str, Any], end_tokens: frozenset[int]) -> ModelConfig:
    head_dim = raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"]
    rope = {**raw, **(raw.get("rope_parameters") or {})}  # before transformers 5 the fields stood at the top
    fields = dict(
        vocab=raw["vocab_size"],
        hidden=raw["hidden_size"],
        layers=raw["num_hidden_layers"],
        heads=raw["num_attention_heads"],
        kv_heads=raw["num_key_value_heads"],
        head_dim=head_dim,
        rotary_dim=int(head_dim * rope.get("partial_rotary_factor", 0.5)),
        rope_theta=float(rope["rope_theta"]),
        norm_eps=raw["rms_norm_eps"],
        qk_norm=raw.get("use_qk_norm", False),
        attention_bias=raw.get("attention_bias", False),
        tied_head=raw.get("tie_word_embeddings", False),
        dense_layers=min(raw["first_k_dense_replace"], raw["num_hidden_layers"]),
        dense_ffn=raw["intermediate_size"],
        experts=raw["n_routed_experts"],
        top_k=raw["num_experts_per_tok"],
        expert_ffn=raw["moe_intermediate_size"],
        shared_experts=raw["n_shared_experts"],
        groups=raw.get("n_group", 1),
        top_groups=raw.get("topk_group", 1),
        norm_top_k=raw.get("norm_topk_prob", True),
        routed_scale=float(raw.get("routed_scaling_factor", 1.0)),
        context_tokens=raw["max_position_embeddings"],
        end_tokens=end_tokens,
        domains=raw.get("expert_domains"),
    )
    return TypeAdapter(ModelConfig).validate_python(fields)


def _end_tokens(folder: Path, raw: dict[str, Any]) -> frozenset[int]:
    generation = folder / "generation_config.json"
    chosen = read_json(generation).get("eos_token_id") if generation.exists() else None
    given = raw.get("eos_token_id") if chosen is None else chosen
    if given is None:
        return frozenset()
    return frozenset(given if isinstance(given, list) else [given])


def _check(config: ModelConfig, raw: dict[str, Any], where: Path) -> None:
    rope_type = (raw.get("rope_parameters") or raw.get("rope_scaling") or {}).get("rope_type", "default")
    if rope_type != "default":
        raise CheckpointError(f"{where}: rope_type is {rope_type!r}; 'default' is allowed; use another engine for it")
    if raw.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"{where}: hidden_act is {raw['hidden_act']!r}; 'silu' is allowed; use another engine")
    if config.heads % config.kv_heads or config.rotary_dim % 2 or config.experts % config.groups:
        raise CheckpointError(
            f"{where}: {config.heads} heads over {config.kv_heads} KV heads, {config.rotary_dim} rotated dimensions, "
            f"{config.experts} experts in {config.groups} groups; whole ratios and pairs are allowed; save it anew"
        )
    named = {expert for experts in (config.domains or {}).values() for expert in experts}
    if not named <= set(range(config.experts)):
        raise CheckpointError(
            f"{where}: expert_domains names experts {sorted(named)}; 0..{config.experts - 1} are allowed; correct it"
        )


def check_memory(folder: Path, needed_bytes: int, device: str) -> None:
    """Refuses before the kernel would kill the process."""
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available
    if needed_bytes > free:
        raise CheckpointError(
            f"{folder}: weights and KV cache need {needed_bytes / 1e9:.2f} GB on {device}, {free / 1e9:.2f} GB are "
            "free; less than the free memory is allowed; lower kv_tokens, add ranks, or use a larger machine"
        )


class Tensors:
    """The tensors of a checkpoint, opened once, read by name and moved to their final dtype and device."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: str) -> None:
        self._folder, self._dtype, self._device = folder, dtype, device
        self._stack = ExitStack()
        single = folder / "model.safetensors"
        index = folder / "model.safetensors.index.json"
        if not single.exists() and not index.exists():
            raise CheckpointError(f"{folder}: neither {single.name} nor {index.name}; one is needed; save it anew")
        names = {single.name} if single.exists() else set(read_json(index).get("weight_map", {}).values())
        self._file_of: dict[str, Any] = {}
        for name in sorted(names):
            opened = self._open(folder / name)
            self._file_of.update(dict.fromkeys(opened.keys(), opened))

    def _open(self, file: Path) -> Any:
        try:
            return self._stack.enter_context(safe_open(file, framework="pt"))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file}: {error}; a safetensors file is allowed; fetch or save it anew") from error

    def __enter__(self) -> "Tensors":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def get(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        if name not in self._file_of:
            raise CheckpointError(f"{self._folder}: no tensor {name}; the layout of glm4_moe is needed; save it anew")
        tensor: torch.Tensor = self._file_of[name].get_tensor(name)
        if tuple(tensor.shape) != shape:
            given = tuple(tensor.shape)
            raise CheckpointError(
                f"{self._folder}: {name} has shape {given}; config.json says {shape}; save weights and config together"
            )
        return tensor.to(device=self._device, dtype=dtype or self._dtype)
