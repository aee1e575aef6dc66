"""The command line of vLLM for a tier, and what a replica reserves for it. Needs no vLLM."""

import json
import shlex

import pytest
from vllm_engine.tiers import tier

from cluster.family import load
from cluster.placement import bundles, own_share
from deployments.engines.vllm_engine.arguments import arguments, environment, shown

H200 = load("h200").tiers


def value(words: tuple[str, ...], name: str) -> str:
    return words[words.index(name) + 1]


def test_a_tier_becomes_the_words_that_vllm_serve_takes() -> None:
    words = arguments(tier(names=("a", "b"), max_running=8, prefill_chunk_tokens=256, context_tokens=1024), "cpu")
    assert words[words.index("--served-model-name") :][:3] == ("--served-model-name", "a", "b")
    assert value(words, "--max-model-len") == "1024"
    assert value(words, "--max-num-seqs") == "8"
    assert value(words, "--max-num-batched-tokens") == "264"  # 256 of prompts, and one of each running stream
    assert {"--enable-chunked-prefill", "--enable-prefix-caching", "--enforce-eager"} < set(words)


def test_the_cache_on_cpu_is_as_large_as_the_family_file_says() -> None:
    words = arguments(tier(kv_tokens=4000), "cpu")
    assert value(words, "--num-gpu-blocks-override") == "126"  # 125 of 32 tokens, and vLLM's own


def test_a_prompt_may_have_as_many_inputs_as_a_request_and_the_frames_of_its_clips() -> None:
    assert "--limit-mm-per-prompt" not in arguments(tier(), "cpu")
    seen = value(arguments(tier(inputs=("image", "audio")), "cpu"), "--limit-mm-per-prompt")
    assert json.loads(seen) == {"image": 32, "audio": 32}
    assert json.loads(value(arguments(tier(inputs=("video",)), "cpu"), "--limit-mm-per-prompt")) == {"image": 4 * 60}


def test_a_kv_cache_of_8_bits_is_asked_for_by_name() -> None:
    assert value(arguments(tier(), "cuda"), "--kv-cache-dtype") == "auto"
    assert value(arguments(tier(vllm={"kv_dtype": "fp8"}), "cuda"), "--kv-cache-dtype") == "fp8"


def test_experts_split_over_ranks_are_balanced_in_windows_of_steps_at_the_promised_pace() -> None:
    split = {"tensor_parallel": 4, "expert_parallel": True}
    words = arguments(tier(ranks=4, vllm=split, experts={"redundant": 8, "window_s": 60}), "cuda")
    assert "--enable-expert-parallel" in words
    eplb = json.loads(value(words, "--eplb-config"))  # tpot_ms 50
    assert eplb == {"window_size": 1200, "step_interval": 1200, "num_redundant_experts": 8, "policy": "default"}
    still = arguments(tier(ranks=4, vllm=split, experts={"rebalance": False}), "cuda")
    assert "--enable-eplb" not in still


def test_what_is_shown_of_a_tier_is_one_line_that_a_shell_reads_as_the_arguments() -> None:
    line = shown(H200["ultra"], "cuda")
    assert "\n" not in line
    assert shlex.split(line)[2:] == list(arguments(H200["ultra"], "cuda"))[1:]  # the model comes first, bare


@pytest.mark.parametrize("key", ["ultra", "pro"])
def test_ranks_on_ray_find_the_gpu_of_every_bundle_free(key: str) -> None:
    served = H200[key]
    assert bundles(served, "cuda") == [{"GPU": 1, "CPU": 1}] * served.ranks
    assert own_share(served, "cuda") == {"CPU": 1}
    assert value(arguments(served, "cuda"), "--distributed-executor-backend") == "ray"


def test_a_single_rank_is_a_process_of_the_replica_which_holds_its_gpu() -> None:
    assert own_share(H200["turbo"], "cuda") == {"GPU": 1, "CPU": 1}
    assert value(arguments(H200["turbo"], "cuda"), "--distributed-executor-backend") == "uni"


def test_copies_of_a_model_are_processes_of_the_replica_which_holds_all_their_gpus() -> None:
    served = tier(ranks=8, vllm={"tensor_parallel": 4, "data_parallel": 2})
    assert bundles(served, "cuda") == [{"GPU": 8, "CPU": 8}]
    assert own_share(served, "cuda") == {"GPU": 8, "CPU": 8}
    assert value(arguments(served, "cuda"), "--distributed-executor-backend") == "mp"


def test_replicas_on_cpu_neither_compile_nor_bind_themselves_to_cores() -> None:
    assert environment(tier(), "cpu").items() - environment(tier(), "cuda").items() == {
        ("TORCH_COMPILE_DISABLE", "1"),
        ("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
    }


def test_vllm_may_take_as_long_to_start_as_the_family_file_allows() -> None:
    assert environment(H200["ultra"], "cuda")["VLLM_ENGINE_READY_TIMEOUT_S"] == "1200"
