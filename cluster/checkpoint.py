"""What a family must know of a checkpoint before anything starts, and what a tier cannot do with it.

Sizes are read from config.json under the names that transformers gives them. Norms and biases are left out, as is what
no field tells: no checkpoint is smaller than counted here, so what is refused as too large never fits.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cluster.engines import Vllm
from cluster.errors import CheckpointError
from cluster.tier import Tier

Dtype = Literal["float32", "bfloat16"]
Accelerator = Literal["cpu", "cuda"]
BITS: dict[Dtype, int] = {"float32": 32, "bfloat16": 16}
QUANTISED_BITS = {"fp8": 8, "fbgemm_fp8": 8, "mxfp4": 4}
LEAST_BITS = 4  # of a quantisation that does not say
GIB = 2**30

# The architectures that implement MixtureOfExperts in vLLM 0.32; Qwen2-MoE does not.
VLLM_BALANCES = (
    *("deepseek_v2", "deepseek_v3", "deepseek_v32", "ernie4_5_moe", "gemma4", "glm4_moe", "glm4_moe_lite", "kimi_k2"),
    *("llama4", "mixtral", "qwen3_5_moe", "qwen3_moe", "qwen3_next", "qwen3_vl_moe"),
)

# Rotary embeddings whose max_position_embeddings is that of the stretched one.
STATED_STRETCHED = ("default", "su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """`experts`: routed ones of each of the `moe_layers`; 0 of both in a dense model.

    `expert_weights` are those of one routed expert, `other_weights` all that are no routed expert's. `kv_values`: what
    one token keeps over all layers, in `kv_heads` parts. `bits` per weight where the checkpoint is quantised.
    """

    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    moe_layers: int
    experts: int
    top_k: int
    expert_ffn: int
    expert_weights: int
    other_weights: int
    kv_values: int
    context_tokens: int
    bits: int | None = None

    @property
    def dense(self) -> bool:
        return self.experts * self.moe_layers == 0

    def bytes_of(self, weights: int, dtype: Dtype) -> int:
        """Weights of a quantised checkpoint stay as they are, others are kept in the tier's dtype."""
        return weights * (self.bits or BITS[dtype]) // 8

    def expert_bytes(self, dtype: Dtype) -> int:
        """One routed expert."""
        return self.bytes_of(self.expert_weights, dtype)

    def weight_bytes(self, dtype: Dtype) -> int:
        return self.bytes_of(self.other_weights + self.moe_layers * self.experts * self.expert_weights, dtype)


def shape(config: Mapping[str, Any], where: str) -> Shape:
    """The shape in a config.json: of GLM-4, Qwen2, Qwen3 and Qwen3-Next MoE, DeepSeek V2 and V3, Mixtral and the like,
    and of dense models. Raises CheckpointError where a field is missing or no number.
    """
    try:
        return _shape(config, {**config, **(config.get("text_config") or {})})
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{where}: {error!r}; the fields that transformers saves are needed; fetch the checkpoint again"
        ) from error


def _shape(top: Mapping[str, Any], raw: Mapping[str, Any]) -> Shape:
    layers, hidden, heads = int(raw["num_hidden_layers"]), int(raw["hidden_size"]), int(raw["num_attention_heads"])
    experts = _first(raw, "n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")
    expert_ffn = _first(raw, "moe_intermediate_size", "intermediate_size") if experts else 0
    moe_layers = _moe_layers(raw, layers) if experts else 0
    attention, kv_values, kv_heads = _attention(raw, hidden, heads)
    attending, keeping = _attending(raw, layers)
    matrices = 3 if raw.get("hidden_act") == "silu" else 2  # gated, or perhaps not
    dense_ffn = _first(raw, "intermediate_size_mlp", "intermediate_size")
    shared_ffn = expert_ffn * _first(raw, "n_shared_experts", "moe_num_shared_experts")
    shared_ffn = shared_ffn or _first(raw, "shared_expert_intermediate_size")
    ffn = (layers - moe_layers) * dense_ffn + moe_layers * shared_ffn
    ends = int(raw["vocab_size"]) * (1 if raw.get("tie_word_embeddings", True) else 2)
    return Shape(
        model_type=str(top["model_type"]),
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        moe_layers=moe_layers,
        experts=experts,
        top_k=_first(raw, "num_experts_per_tok", "top_k_experts", "moe_k") if experts else 0,
        expert_ffn=expert_ffn,
        expert_weights=matrices * hidden * expert_ffn,
        other_weights=attending * attention + hidden * (matrices * ffn + moe_layers * experts + ends),
        kv_values=keeping * kv_values,
        context_tokens=_context(raw),
        bits=_bits(top.get("quantization_config")),
    )


def _first(raw: Mapping[str, Any], *names: str) -> int:
    """The first of these fields that is given; 0 where none is."""
    return next((int(raw[name]) for name in names if raw.get(name) is not None), 0)


def _moe_layers(raw: Mapping[str, Any], layers: int) -> int:
    if kinds := raw.get("mlp_layer_types"):
        return sum(kind == "sparse" for kind in kinds)
    dense = set(raw.get("mlp_only_layers") or ())
    first = _first(raw, "first_k_dense_replace", "moe_layer_start_index")
    step = _first(raw, "decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_interval") or 1
    frequency = _first(raw, "moe_layer_freq") or 1  # DeepSeek counts from 0, the others from 1
    return sum(i not in dense and (i + 1) % step == 0 and i % frequency == 0 for i in range(first, layers))


def _attending(raw: Mapping[str, Any], layers: int) -> tuple[int, int]:
    """Layers with attention, and those of them that keep every token: not those of a sliding window or a chunk.

    The others of hybrids keep a state instead, which is left out.
    """
    types = raw.get("layer_types")
    if types is None:
        attending = layers // (_first(raw, "full_attention_interval") or 1)
        windowed = raw.get("sliding_window") and raw.get("use_sliding_window", True)
        return attending, 0 if windowed else attending
    keeping = sum(each in ("full_attention", "attention") for each in types)
    return keeping + sum(each in ("sliding_attention", "chunked_attention") for each in types), keeping


def _attention(raw: Mapping[str, Any], hidden: int, heads: int) -> tuple[int, int, int]:
    """Of one layer: weights, values that a token keeps, and into how many parts these can be split.

    Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434) keeps one latent for all heads.
    """
    if latent := _first(raw, "kv_lora_rank"):
        rope, nope, value = (int(raw[name]) for name in ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"))
        queries, q_latent = heads * (nope + rope), _first(raw, "q_lora_rank")
        q = q_latent * (hidden + queries) if q_latent else hidden * queries
        kv = hidden * (latent + rope) + latent * heads * (nope + value)
        return q + kv + heads * value * hidden, latent + rope, 1
    kv_heads = _first(raw, "num_key_value_heads") or heads
    head_dim = _first(raw, "head_dim") or hidden // heads
    return hidden * head_dim * 2 * (heads + kv_heads), 2 * kv_heads * head_dim, kv_heads


def _context(raw: Mapping[str, Any]) -> int:
    """As vLLM 0.32 reads it: a stretched rotary embedding is counted by its factor, but where the length has it."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    stretched = rope.get("rope_type", rope.get("type")) not in (None, *STATED_STRETCHED)
    held = int(raw["max_position_embeddings"])
    held = int(held * float(rope.get("factor") or 1)) if stretched else held
    return max(held, _first(raw, "model_max_length"))


def _bits(given: Mapping[str, Any] | None) -> int | None:
    if not given:
        return None
    groups = (given.get("config_groups") or {}).values()
    stated = [int(group["weights"]["num_bits"]) for group in groups if group.get("weights")]
    bits = _first(given, "bits", "w_bit") or min(stated, default=0)
    return bits or QUANTISED_BITS.get(str(given.get("quant_method")), LEAST_BITS)


def faults(tier: Tier, shape: Shape | None, *, accelerator: Accelerator, gpu_bytes: int | None) -> tuple[str, ...]:
    """What is wrong with a tier, each as `path: given; allowed; mend`; without a shape, what needs no checkpoint.

    `gpu_bytes`: the memory of each of its GPUs, where it is known. The simulated engine takes the settings of every
    other, since a rehearsal puts it in their place, and reads no checkpoint.
    """
    found = [*_settings(tier, accelerator)]
    if shape is None or tier.engine == "simulated":
        return tuple(found)
    if tier.engine == "torch" and shape.model_type != "glm4_moe":
        mend = "choose vllm, or another checkpoint"
        return (*found, f"engine: torch with model_type {shape.model_type}; it computes glm4_moe alone; {mend}")
    found += _split(tier, shape)
    if tier.engine == "vllm":
        found += _vllm(tier.vllm or Vllm(), shape, tier)
    if tier.context_tokens > shape.context_tokens:
        most = shape.context_tokens
        found.append(f"context_tokens: {tier.context_tokens}; at most the checkpoint's {most} are allowed; lower it")
    if gpu_bytes is not None and not found:
        found += _memory(tier, shape, gpu_bytes)
    return tuple(found)


def _settings(tier: Tier, accelerator: Accelerator) -> Iterator[str]:
    redundant, vllm = tier.experts.redundant, tier.vllm or Vllm()
    if tier.vllm is not None and tier.engine not in ("vllm", "simulated"):
        yield f"vllm: given with engine {tier.engine}; engine vllm takes it; leave it out or choose that engine"
    if redundant and tier.engine == "deepspeed":
        yield f"experts.redundant: {redundant}; 0 is allowed with engine deepspeed; choose torch or vllm for copies"
    elif redundant and tier.ranks == 1:
        yield f"experts.redundant: {redundant}; 0 is allowed on one rank, which holds every expert; raise ranks"
    elif redundant and tier.engine == "vllm" and not (vllm.expert_parallel and tier.experts.rebalance):
        yield (
            f"experts.redundant: {redundant}; 0 is allowed where vLLM balances no experts; set vllm.expert_parallel "
            "and experts.rebalance"
        )
    if tier.engine == "vllm" or (tier.engine == "simulated" and tier.vllm is not None):
        tensor, data = vllm.tensor_parallel, vllm.data_parallel
        if tensor * data != tier.ranks:
            yield (
                f"vllm: tensor_parallel {tensor} x data_parallel {data}; their product is the ranks, {tier.ranks}; "
                "mend one of the three"
            )
    if tier.engine == "vllm" and accelerator == "cpu" and tier.ranks > 1:
        yield f"ranks: {tier.ranks}; vLLM computes with 1 on accelerator cpu; set ranks to 1 or choose engine torch"


def _split(tier: Tier, shape: Shape) -> Iterator[str]:
    """Each rank holds as many experts as the others, and never two copies of one."""
    redundant, ranks, experts = tier.experts.redundant, tier.ranks, shape.experts
    if shape.dense:
        if redundant:
            yield f"experts.redundant: {redundant}; 0 is allowed, as the checkpoint has no routed experts; set it to 0"
        return
    if ranks == 1 or not (tier.engine == "torch" or (tier.vllm or Vllm()).expert_parallel):
        return
    if ranks > experts:
        yield f"ranks: {ranks}; at most the checkpoint's {experts} routed experts; lower it"
    elif redundant > experts * (ranks - 1):
        most = experts * (ranks - 1)
        yield f"experts.redundant: {redundant}; at most {most}, which put every expert on every rank; lower it"
    elif (experts + redundant) % ranks:
        divisor = next(n for n in range(ranks, 0, -1) if experts % n == 0)
        yield (
            f"ranks: {ranks}; {experts} routed experts and {redundant} redundant slots must split evenly over them; "
            f"set experts.redundant to {-experts % ranks}, or ranks to {divisor} with 0"
        )


def _vllm(vllm: Vllm, shape: Shape, tier: Tier) -> Iterator[str]:
    tensor = vllm.tensor_parallel
    if shape.heads % tensor:
        yield f"vllm.tensor_parallel: {tensor}; a divisor of the checkpoint's {shape.heads} heads; choose one"
    elif shape.kv_heads > 1 and shape.kv_heads % tensor and tensor % shape.kv_heads:
        yield (
            f"vllm.tensor_parallel: {tensor}; a divisor or a multiple of the checkpoint's {shape.kv_heads} KV heads; "
            "choose one"
        )
    if shape.dense:
        return
    balanced = vllm.expert_parallel and tier.experts.rebalance and tier.ranks > 1
    if balanced and shape.model_type not in VLLM_BALANCES:
        known = ", ".join(VLLM_BALANCES)
        yield (
            f"experts.rebalance: true with {shape.model_type}; vLLM balances {known}; set it to false, and "
            "experts.redundant to 0"
        )
    if not vllm.expert_parallel and shape.expert_ffn % tier.ranks:
        yield f"ranks: {tier.ranks}; a divisor of moe_intermediate_size {shape.expert_ffn}; set vllm.expert_parallel"


def _memory(tier: Tier, shape: Shape, gpu_bytes: int) -> Iterator[str]:
    """torch keeps all but the routed experts on every rank, and `kv_tokens` on each; vLLM splits both by tensors.

    DeepSpeed brings weights to the GPU layer by layer: nothing here says how much memory it needs.
    """
    if tier.engine == "deepspeed":
        return
    vllm = Vllm(gpu_memory_utilization=1) if tier.engine == "torch" else tier.vllm or Vllm()
    routed = shape.moe_layers * (shape.experts + tier.experts.redundant) * shape.expert_weights // tier.ranks
    weights = shape.bytes_of(routed + shape.other_weights // vllm.tensor_parallel, tier.dtype)
    parts = min(vllm.tensor_parallel, shape.kv_heads) * vllm.data_parallel
    bits = 8 if vllm.kv_dtype == "fp8" else BITS[tier.dtype]
    kv = tier.kv_tokens * shape.kv_values * bits // 8 // parts
    allowed = int(vllm.gpu_memory_utilization * gpu_bytes)
    if weights + kv > allowed:
        yield (
            f"ranks: {tier.ranks}; on each {weights / GIB:.1f} GiB of weights and {kv / GIB:.1f} GiB for kv_tokens "
            f"{tier.kv_tokens}; {allowed / GIB:.1f} GiB are allowed; raise ranks, lower kv_tokens, or let engine "
            "deepspeed offload"
        )
