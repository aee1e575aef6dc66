from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cluster.checkpoint import GIB, VLLM_BALANCES, Shape, faults, shape
from cluster.errors import CheckpointError
from cluster.experts import even
from cluster.family import Tier, load

QWEN3_30B: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 48,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "hidden_act": "silu",
    "vocab_size": 151_936,
    "tie_word_embeddings": False,
    "max_position_embeddings": 40_960,
}
QWEN3_235B = QWEN3_30B | {
    "num_hidden_layers": 94,
    "hidden_size": 4096,
    "num_attention_heads": 64,
    "moe_intermediate_size": 1536,
}
QWEN3_8B = QWEN3_30B | {
    "model_type": "qwen3",
    "num_hidden_layers": 36,
    "hidden_size": 4096,
    "intermediate_size": 12_288,
    "num_key_value_heads": 8,
    "num_experts": None,
}
QWEN2_MOE = QWEN3_30B | {
    "model_type": "qwen2_moe",
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
}
QWEN3_NEXT = QWEN3_30B | {
    "model_type": "qwen3_next",
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "full_attention_interval": 4,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
}
MIXTRAL = {
    "model_type": "mixtral",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "hidden_act": "silu",
    "vocab_size": 32_000,
    "tie_word_embeddings": False,
    "max_position_embeddings": 32_768,
}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 61,
    "first_k_dense_replace": 3,
    "moe_layer_freq": 1,
    "hidden_size": 7168,
    "intermediate_size": 18_432,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "hidden_act": "silu",
    "vocab_size": 129_280,
    "tie_word_embeddings": False,
    "max_position_embeddings": 163_840,
    "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
    "quantization_config": {"quant_method": "fp8"},
}
DEEPSEEK_V2_LITE = DEEPSEEK_V3 | {
    "model_type": "deepseek_v2",
    "num_hidden_layers": 27,
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 10_944,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "num_attention_heads": 16,
    "q_lora_rank": None,
    "vocab_size": 102_400,
    "quantization_config": None,
}
# What the family h200 serves, with its contexts and quantisations.
H200: dict[str, dict[str, Any]] = {
    "ultra": DEEPSEEK_V3,
    "pro": QWEN3_235B | {"max_position_embeddings": 262_144, "quantization_config": {"quant_method": "fp8"}},
    "turbo": QWEN3_30B | {"max_position_embeddings": 262_144, "quantization_config": {"quant_method": "fp8"}},
    "mini": QWEN3_8B | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "max_position_embeddings": 131_072},
}
GLM_45_AIR = {
    "model_type": "glm4_moe",
    "num_hidden_layers": 46,
    "first_k_dense_replace": 1,
    "hidden_size": 4096,
    "intermediate_size": 10_944,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "vocab_size": 151_552,
    "tie_word_embeddings": False,
    "max_position_embeddings": 131_072,
}
SMALL = GLM_45_AIR | {"num_hidden_layers": 3, "n_routed_experts": 8, "num_attention_heads": 8, "num_key_value_heads": 2}


def read(raw: dict[str, Any], **changes: Any) -> Shape:
    return shape(raw | changes, "config.json")


def tier(**changes: Any) -> Tier:
    """The laptop's ultra: engine torch, two ranks, no copies."""
    return Tier.model_validate(load("laptop").tiers["ultra"].model_dump() | {"experts": {}} | changes)


def told(seen: Shape | None, gpu_gib: float | None = None, **changes: Any) -> tuple[str, ...]:
    gpu_bytes = None if gpu_gib is None else int(gpu_gib * GIB)
    return faults(tier(**changes), seen, accelerator="cuda", gpu_bytes=gpu_bytes)


@pytest.mark.parametrize(
    ("config", "published_billions", "experts", "moe_layers", "top_k"),
    [
        (QWEN3_235B, 235.1, 128, 94, 8),
        (QWEN3_30B, 30.53, 128, 48, 8),
        (QWEN3_8B, 8.19, 0, 0, 0),
        (QWEN2_MOE, 14.32, 60, 24, 4),
        (QWEN3_NEXT, 79.67, 512, 48, 10),
        (MIXTRAL, 46.7, 8, 32, 2),
        (DEEPSEEK_V3, 671.0, 256, 58, 8),
        (DEEPSEEK_V2_LITE, 15.71, 64, 26, 6),
        (GLM_45_AIR, 106.9, 128, 45, 8),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else None,
)
def test_a_known_architecture_is_counted_to_its_published_size_and_not_above(
    config: dict[str, Any], published_billions: float, experts: int, moe_layers: int, top_k: int
) -> None:
    seen = read(config, quantization_config=None)
    assert (seen.experts, seen.moe_layers, seen.top_k) == (experts, moe_layers, top_k)
    assert 0.97 <= seen.weight_bytes("bfloat16") / 2 / (published_billions * 1e9) <= 1.002


def test_a_nested_language_model_is_read_and_keeps_the_outer_name() -> None:
    nested = {"model_type": "qwen3_vl_moe", "text_config": QWEN3_30B | {"model_type": "qwen3_vl_moe_text"}}
    assert read(nested).model_type == "qwen3_vl_moe"
    assert read(nested).weight_bytes("bfloat16") == read(QWEN3_30B).weight_bytes("bfloat16")


def test_layers_without_experts_are_told_by_each_familys_own_fields() -> None:
    assert read(QWEN2_MOE, mlp_only_layers=[0, 5]).moe_layers == 22
    assert read(QWEN2_MOE, decoder_sparse_step=2).moe_layers == 12
    assert read(DEEPSEEK_V3, moe_layer_freq=2).moe_layers == 29  # layers 4, 6 .. 60
    assert read(GLM_45_AIR, mlp_layer_types=["dense"] * 2 + ["sparse"] * 44).moe_layers == 44


def test_a_sliding_window_costs_no_weights() -> None:
    windows = read(MIXTRAL, layer_types=["sliding_attention", "full_attention"] * 16)
    assert windows.other_weights == read(MIXTRAL).other_weights


@pytest.mark.parametrize(
    ("given", "bits"),
    [
        (None, 16),
        ({"quant_method": "fp8"}, 8),
        ({"quant_method": "awq", "bits": 4}, 4),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8}}}}, 8),
        ({"quant_method": "new"}, 4),  # nobody knows: the least
    ],
)
def test_weights_take_the_bits_of_their_quantisation_or_of_the_tiers_dtype(given: Any, bits: int) -> None:
    seen = read(MIXTRAL, quantization_config=given)
    assert seen.expert_bytes("bfloat16") == 3 * 4096 * 14_336 * bits // 8


@pytest.mark.parametrize(
    ("config", "kv_values"),
    [
        (MIXTRAL, 32 * 2 * 8 * 128),
        (DEEPSEEK_V3, 61 * (512 + 64)),  # one latent for all heads
        (QWEN3_NEXT, 12 * 2 * 2 * 256),  # every fourth layer
        (QWEN3_NEXT | {"layer_types": ["linear_attention"] * 47 + ["full_attention"]}, 2 * 2 * 256),
        (MIXTRAL | {"layer_types": ["sliding_attention", "full_attention"] * 16}, 16 * 2 * 8 * 128),
        (MIXTRAL | {"sliding_window": 4096}, 0),
        (MIXTRAL | {"sliding_window": 4096, "use_sliding_window": False}, 32 * 2 * 8 * 128),
    ],
)
def test_a_token_keeps_what_the_layers_keep_that_attend_to_all(config: dict[str, Any], kv_values: int) -> None:
    assert read(config).kv_values == kv_values


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        (MIXTRAL, 32_768),
        (DEEPSEEK_V3, 163_840),
        (QWEN3_8B | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 40_960),
        (QWEN3_8B | {"model_max_length": 131_072}, 131_072),
        (MIXTRAL | {"rope_scaling": {"type": "linear", "factor": 4.0}}, 131_072),
        (MIXTRAL | {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, 32_768),
        (MIXTRAL | {"rope_parameters": {"rope_type": "default"}}, 32_768),
    ],
)
def test_the_context_is_that_of_its_rotary_embedding(config: dict[str, Any], tokens: int) -> None:
    assert read(config).context_tokens == tokens


@pytest.mark.parametrize(
    "raw", [{}, {"model_type": "llama"}, MIXTRAL | {"hidden_size": "wide"}, MIXTRAL | {"text_config": 1}]
)
def test_a_config_without_the_fields_is_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"^config.json: .*; the fields that transformers saves are needed;"):
        read(raw)


VLLM: dict[str, Any] = {"engine": "vllm", "ranks": 2, "vllm": {"tensor_parallel": 2, "expert_parallel": True}}
DEEPSPEED: dict[str, Any] = {"engine": "deepspeed", "ranks": 1, "offload": {"to": "cpu"}}
QWEN2_OFF = {"experts": {"rebalance": False}}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"vllm": {}}, "vllm: given with engine torch; engine vllm takes it; leave it out or choose that engine"),
        (
            {"ranks": 1, "experts": {"redundant": 2}},
            "experts.redundant: 2; 0 is allowed on one rank, which holds every",
        ),
        (
            {**DEEPSPEED, "experts": {"redundant": 2}},
            "experts.redundant: 2; 0 is allowed with engine deepspeed; choose torch or vllm for copies",
        ),
        (
            {"engine": "vllm", "vllm": {"tensor_parallel": 2}, "experts": {"redundant": 2}},
            "experts.redundant: 2; 0 is allowed where vLLM balances no experts; set vllm.expert_parallel and",
        ),
        (
            {"engine": "vllm", "vllm": {"tensor_parallel": 2, "data_parallel": 2}},
            "vllm: tensor_parallel 2 x data_parallel 2; their product is the ranks, 2; mend one of the three",
        ),
        ({"engine": "vllm"}, "vllm: tensor_parallel 1 x data_parallel 1; their product is the ranks, 2;"),
    ],
)
def test_what_needs_no_checkpoint_is_told_without_one(changes: dict[str, Any], fault: str) -> None:
    (only,) = told(None, **changes)
    assert only.startswith(fault)


@pytest.mark.parametrize(
    ("seen", "changes", "fault"),
    [
        (
            read(MIXTRAL),
            {},
            "engine: torch with model_type mixtral; it computes glm4_moe alone; choose vllm, or another",
        ),
        (read(SMALL), {"ranks": 9}, "ranks: 9; at most the checkpoint's 8 routed experts; lower it"),
        (
            read(SMALL),
            {"ranks": 3},
            "ranks: 3; 8 routed experts and 0 redundant slots must split evenly over them; set experts.redundant to 1, "
            "or ranks to 2 with 0",
        ),
        (read(SMALL), {"experts": {"redundant": 1}}, "ranks: 2; 8 routed experts and 1 redundant slots must split"),
        (
            read(SMALL),
            {"experts": {"redundant": 10}},
            "experts.redundant: 10; at most 8, which put every expert on every rank; lower it",
        ),
        (
            read(SMALL, n_routed_experts=0),
            {"experts": {"redundant": 2}},
            "experts.redundant: 2; 0 is allowed, as the checkpoint has no routed experts; set it to 0",
        ),
        (
            read(SMALL),
            {"context_tokens": 131_073, "kv_tokens": 131_073},
            "context_tokens: 131073; at most the checkpoint's 131072 are allowed; lower it",
        ),
        (
            read(QWEN2_MOE),
            VLLM,
            "experts.rebalance: true with qwen2_moe; vLLM balances deepseek_v2, deepseek_v3, ",
        ),
        (
            read(QWEN2_MOE),
            {"engine": "vllm", "ranks": 3, "vllm": {"tensor_parallel": 3, "expert_parallel": True}} | QWEN2_OFF,
            "vllm.tensor_parallel: 3; a divisor of the checkpoint's 16 heads; choose one",
        ),
        (
            read(SMALL, num_attention_heads=12, num_key_value_heads=4, n_routed_experts=12),
            {"engine": "vllm", "ranks": 6, "vllm": {"tensor_parallel": 6, "expert_parallel": True}},
            "vllm.tensor_parallel: 6; a divisor or a multiple of the checkpoint's 4 KV heads; choose one",
        ),
        (
            read(SMALL, moe_intermediate_size=25),
            {"engine": "vllm", "vllm": {"data_parallel": 2}},
            "ranks: 2; a divisor of moe_intermediate_size 25; set vllm.expert_parallel",
        ),
    ],
)
def test_what_a_checkpoint_cannot_do_is_told(seen: Shape, changes: dict[str, Any], fault: str) -> None:
    (only,) = told(seen, **changes)
    assert only.startswith(fault)


@pytest.mark.parametrize(
    ("seen", "changes"),
    [
        (read(SMALL), {}),
        (read(SMALL), {"ranks": 3, "experts": {"redundant": 1}}),
        (read(SMALL), {"experts": {"redundant": 8}}),  # every expert on both ranks
        (read(SMALL), VLLM | {"experts": {"redundant": 2}}),
        (read(QWEN2_MOE), VLLM | QWEN2_OFF),
        (read(QWEN2_MOE), {"engine": "vllm", "vllm": {"tensor_parallel": 2}}),  # experts are cut, not dealt out
        (read(QWEN3_8B), {"engine": "vllm", "vllm": {"data_parallel": 2, "expert_parallel": True}}),
        (read(DEEPSEEK_V3), {"engine": "vllm", "ranks": 8, "vllm": {"tensor_parallel": 8, "expert_parallel": True}}),
        (read(MIXTRAL), DEEPSPEED),
    ],
)
def test_what_a_checkpoint_can_do_is_not_refused(seen: Shape, changes: dict[str, Any]) -> None:
    assert told(seen, **changes) == ()


def test_the_simulated_engine_takes_the_settings_of_vllm_and_reads_no_checkpoint() -> None:
    given: dict[str, Any] = {"engine": "simulated", "ranks": 3, "vllm": {"tensor_parallel": 3, "expert_parallel": True}}
    assert told(read(QWEN2_MOE), 0.001, **given) == ()


def test_vllm_has_one_rank_on_a_cpu() -> None:
    (only,) = faults(tier(**VLLM), None, accelerator="cpu", gpu_bytes=None)
    assert only == "ranks: 2; vLLM computes with 1 on accelerator cpu; set ranks to 1 or choose engine torch"


@pytest.mark.parametrize("model_type", VLLM_BALANCES)
def test_what_vllm_balances_may_have_copies(model_type: str) -> None:
    assert told(read(SMALL, model_type=model_type), **VLLM, experts={"redundant": 2}) == ()


# GLM-4.5-Air in bfloat16: 45 layers of 128 experts of 3 * 4096 * 1408 weights are 185.6 GiB, all else 13.4 GiB.
@pytest.mark.parametrize(
    ("changes", "gpu_gib", "weights_gib", "kv_gib", "allowed_gib"),
    [
        ({"ranks": 2}, 100, 106.2, 0.4, 100.0),
        ({"ranks": 2, "experts": {"redundant": 32}}, 110, 129.4, 0.4, 110.0),
        ({"ranks": 4, "kv_tokens": 1_000_000}, 100, 59.8, 175.5, 100.0),
        ({"engine": "vllm", "ranks": 2, "vllm": {"tensor_parallel": 2}}, 110, 99.5, 0.2, 99.0),
        ({"engine": "vllm", "ranks": 2, "vllm": {"data_parallel": 2}}, 110, 106.2, 0.2, 99.0),
    ],
)
def test_weights_and_kv_beyond_the_memory_of_a_rank_are_refused_with_the_sum(
    changes: dict[str, Any], gpu_gib: float, weights_gib: float, kv_gib: float, allowed_gib: float
) -> None:
    changes = {"dtype": "bfloat16", "kv_tokens": 2400} | changes
    (only,) = told(read(GLM_45_AIR), gpu_gib, **changes)
    assert only == (
        f"ranks: {changes['ranks']}; on each {weights_gib} GiB of weights and {kv_gib} GiB for kv_tokens "
        f"{changes['kv_tokens']}; {allowed_gib} GiB are allowed; raise ranks, lower kv_tokens, or let engine deepspeed "
        "offload"
    )
    assert told(read(GLM_45_AIR), None, **changes) == ()


@pytest.mark.parametrize("key", H200)
def test_the_h200_family_fits_the_checkpoints_it_names_on_the_gpus_it_names(key: str) -> None:
    family = load("h200")
    served = family.tiers[key]
    gpu_bytes = family.gpu_bytes(served)
    assert gpu_bytes is not None
    assert faults(served, read(H200[key]), accelerator="cuda", gpu_bytes=gpu_bytes) == ()
    more = served.model_copy(update={"kv_tokens": round(1.2 * served.kv_tokens)})
    assert faults(more, read(H200[key]), accelerator="cuda", gpu_bytes=gpu_bytes) != ()


@pytest.mark.parametrize(("kv_dtype", "kv_gib"), [("auto", 17.5), ("fp8", 8.8)])
def test_a_kv_cache_of_8_bits_takes_half(kv_dtype: str, kv_gib: float) -> None:
    changes: dict[str, Any] = {"engine": "vllm", "ranks": 2, "dtype": "bfloat16", "kv_tokens": 200_000}
    (only,) = told(read(GLM_45_AIR), 80, **changes, vllm={"tensor_parallel": 2, "kv_dtype": kv_dtype})
    assert f" and {kv_gib} GiB for kv_tokens 200000;" in only


def test_an_offload_needs_no_gpu_that_holds_the_weights() -> None:
    assert told(read(GLM_45_AIR), 24, **DEEPSPEED) == ()


@settings(deadline=None)
@given(experts=st.integers(1, 40), ranks=st.integers(1, 12), redundant=st.integers(0, 60))
def test_a_tier_without_faults_can_be_split_evenly(experts: int, ranks: int, redundant: int) -> None:
    asked = tier(ranks=ranks, experts={"redundant": redundant})
    assume(not faults(asked, read(SMALL, n_routed_experts=experts), accelerator="cpu", gpu_bytes=None))
    placed = even(layers=2, experts=experts, ranks=ranks, redundant=redundant)
    for slots in placed.slots:
        held = [slots[rank * placed.room : (rank + 1) * placed.room] for rank in range(ranks)]
        assert all(len(set(own)) == len(own) == placed.room for own in held)
        assert set(slots) == set(range(experts))
