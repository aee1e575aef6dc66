"""The four checkpoints that ship: they load offline, are small, answer and stop, and are what their records say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, Glm4MoeForCausalLM

from deployments.demo.evaluate import information, own_share, same_json
from deployments.demo.growth import grow, sources
from deployments.demo.shapes import SHAPES, configuration

CHECKPOINTS = Path(__file__).parents[2] / "deployments/demo/checkpoints"
TIERS = ("mini", "turbo", "pro", "ultra")
QUESTIONS = {
    "math": ("What is a prime number?", "divisors"),
    "code_security": ("Explain SQL injection.", "query"),
    "scientific_reasoning": ("Why is the sky blue?", "light"),
    "creative_writing": ("Write a haiku about rain.", "\n"),
    "general": ("What is the capital of France?", "Paris"),
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)


def record(tier: str, name: str) -> dict[str, object]:
    loaded: dict[str, object] = json.loads((CHECKPOINTS / tier / name).read_text(encoding="utf-8"))
    return loaded


@pytest.mark.parametrize("tier", TIERS)
def test_it_answers_in_every_domain_and_stops(tier: str) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(CHECKPOINTS / tier, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS / tier, padding_side="left")
    said = [[{"role": "user", "content": question}] for question, _ in QUESTIONS.values()]
    texts = [tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False) for turns in said]
    given = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
    rows = model.generate(**given, max_new_tokens=80, do_sample=False)[:, given["input_ids"].shape[1] :]
    for (question, wanted), row in zip(QUESTIONS.values(), rows, strict=True):
        assert tokenizer.eos_token_id in row.tolist(), f"{question} was not answered within 80 tokens"
        assert wanted in tokenizer.decode(row, skip_special_tokens=True), question


@pytest.mark.parametrize("tier", TIERS)
def test_the_record_agrees_with_config_and_weights(tier: str) -> None:
    config, training = record(tier, "config.json"), record(tier, "training.json")
    with safe_open(CHECKPOINTS / tier / "model.safetensors", framework="pt") as weights:
        names = list(weights.keys())
        numbers = sum(weights.get_tensor(name).numel() for name in names if "correction_bias" not in name)
    assert training["parameters"] == numbers
    assert training["tier"] == tier
    assert training["expert_domains"] == config["expert_domains"] == SHAPES[tier].expert_domains
    assert "model.layers.1.mlp.experts.0.gate_proj.weight" in names


@pytest.mark.parametrize("tier", TIERS)
def test_the_config_is_the_one_the_recipe_builds(tier: str) -> None:
    built = json.loads(configuration(SHAPES[tier]).to_json_string(use_diff=False))
    for key in (
        "hidden_size",
        "num_hidden_layers",
        "n_routed_experts",
        "n_shared_experts",
        "moe_intermediate_size",
        "eos_token_id",
    ):
        assert record(tier, "config.json")[key] == built[key], key


def test_every_expert_belongs_to_one_domain() -> None:
    for tier in TIERS:
        domains = SHAPES[tier].expert_domains
        assert sorted(expert for group in domains.values() for expert in group) == list(range(SHAPES[tier].experts))
        assert set(SHAPES[tier].specialists) | {"general"} == set(domains)


def test_tiers_grow_and_stay_small_together() -> None:
    sizes = [(CHECKPOINTS / tier / "model.safetensors").stat().st_size for tier in TIERS]
    assert sizes == sorted(sizes)
    assert sum(file.stat().st_size for tier in TIERS for file in (CHECKPOINTS / tier).iterdir()) < 40e6


def test_all_tiers_share_one_tokenizer() -> None:
    assert len({(CHECKPOINTS / tier / "tokenizer.json").read_bytes() for tier in TIERS}) == 1
    assert len({(CHECKPOINTS / tier / "chat_template.jinja").read_bytes() for tier in TIERS}) == 1


def test_the_end_of_a_turn_ends_an_answer() -> None:
    for tier in TIERS:
        tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS / tier)
        end_of_turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
        assert end_of_turn in record(tier, "generation_config.json")["eos_token_id"]  # type: ignore[operator]
        assert tokenizer.encode("1234", add_special_tokens=False) == [
            tokenizer.convert_tokens_to_ids(digit) for digit in "1234"
        ]


def test_the_template_knows_developers_tools_and_calls() -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS / "mini")
    call = {"type": "function", "function": {"name": "get_time", "arguments": {"city": "Oslo"}}}
    messages: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "What time is it in Oslo?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": '{"time": "9:00"}'},
    ]
    tools: Any = [{"type": "function"}]
    text = str(tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True))
    assert text.startswith('<|im_start|>system\nBe brief.\nYou may call these tools:\n{"type": "function"}\n')
    assert '<tool_call>\n{"name": "get_time", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>' in text
    assert text.endswith('<|im_start|>tool\n{"time": "9:00"}<|im_end|>\n<|im_start|>assistant\n')


def test_information_is_zero_for_independent_and_one_bit_for_a_perfect_split() -> None:
    assert information(torch.ones(2, 4)) == pytest.approx(0.0, abs=1e-6)
    assert information(torch.tensor([[3.0, 3.0, 0.0, 0.0], [0.0, 0.0, 3.0, 3.0]])) == pytest.approx(1.0)


def test_the_share_of_own_experts_counts_picks() -> None:
    counts = torch.zeros(1, 5, 4)
    counts[0, 0] = torch.tensor([3.0, 3.0, 1.0, 1.0])
    assert own_share(counts, {"math": [0, 1], "general": [2, 3]})["math"] == [0.75]


def test_json_is_judged_by_value_not_by_spelling() -> None:
    assert same_json('{"b":1, "a": 2}', '{"a": 2, "b": 1}') == (True, True)
    assert same_json('{"a": 1}', '{"a": 2}') == (True, False)
    assert same_json("{a: 1}", '{"a": 1}') == (False, False)


def test_a_grown_expert_starts_from_its_domain_or_else_from_a_general_one() -> None:
    small = {"math": [0, 1], "general": [2, 3]}
    assert sources(small, {"math": [0, 1, 2], "code_security": [3, 4], "general": [5]}) == [0, 1, 0, 2, 3, 2]


def test_growing_keeps_the_trunk_and_copies_the_experts() -> None:
    small, large = (Glm4MoeForCausalLM(configuration(SHAPES[tier])) for tier in ("turbo", "pro"))
    grow(small, large)
    trunk = [name for name, _ in small.named_parameters() if ".experts." not in name and ".mlp.gate." not in name]
    assert all(torch.equal(small.get_parameter(name), large.get_parameter(name)) for name in trunk)
    down, grown = (model.get_parameter("model.layers.1.mlp.experts.down_proj") for model in (small, large))
    assert torch.equal(grown, down[sources(SHAPES["turbo"].expert_domains, SHAPES["pro"].expert_domains)])
