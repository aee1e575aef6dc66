"""The engine's model is the model: logits equal transformers' own, in chunks and step by step."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_checkpoint import save_checkpoint
from transformers import Glm4MoeForCausalLM

from cluster.request import Sampling
from deployments.engines.torch_engine.kv import BLOCK_TOKENS
from deployments.engines.torch_engine.rank import Arrival, Order, Rank, load_rank
from deployments.engines.torch_engine.schedule import Limits, Scheduler
from deployments.engines.torch_engine.spec import EngineSpec

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "qk_norm": {"use_qk_norm": True},
    "tied": {"tie_word_embeddings": True},
    "bias": {"attention_bias": True, "use_qk_norm": True},
    "groups": {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5},
    "unnormalised": {"norm_topk_prob": False, "n_shared_experts": 2, "first_k_dense_replace": 2},
    "all experts": {"first_k_dense_replace": 0, "num_key_value_heads": 4},
    "whole rotation": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 1.0}},
}
PROMPTS = {"a": 70, "b": 5, "c": 33}  # across, within and just beyond a KV block
CHUNK, NEW = 24, 40


def prompt(tokens: int) -> tuple[int, ...]:
    return tuple((7 * i + tokens) % 317 + 3 for i in range(tokens))


def generate(rank: Rank) -> tuple[dict[str, list[int]], dict[str, list[torch.Tensor]]]:
    """All prompts at once, greedily: the tokens and the logits they were chosen from."""
    scheduler = Scheduler(Limits(ranks=1, blocks=16, block_tokens=BLOCK_TOKENS, max_running=4, chunk_tokens=CHUNK))
    for key, length in PROMPTS.items():
        scheduler.submit(key, length, NEW)
    tokens: dict[str, list[int]] = {key: [] for key in PROMPTS}
    logits: dict[str, list[torch.Tensor]] = {key: [] for key in PROMPTS}
    at: dict[int, str] = {}
    with torch.inference_mode():
        while scheduler.busy:
            plan = scheduler.plan()
            at.update({admission.place: admission.key for admission in plan.admissions})
            greedy = Sampling(temperature=0, max_tokens=NEW)
            arrivals = tuple(Arrival(prompt=prompt(PROMPTS[a.key]), sampling=greedy) for a in plan.admissions)
            rows = rank.compute(Order(plan=plan, arrivals=arrivals))
            places = rank.yields(plan, 0)
            for place, row, chosen in zip(places.tolist(), rows, rank.sample(rows, places)[:, 0], strict=True):
                logits[at[place]].append(row)
                tokens[at[place]].append(int(chosen))
                if len(tokens[at[place]]) == NEW:
                    scheduler.remove(at[place])
    return tokens, logits


def test_half_precision_stays_near(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, use_qk_norm=True)
    spec = EngineSpec(checkpoint=str(folder), context_tokens=512, kv_tokens=512, max_running=4)
    _, exact = generate(load_rank(spec, 0))
    _, near = generate(load_rank(replace(spec, dtype="bfloat16"), 0))
    for key in PROMPTS:  # the first: later ones may follow another token
        assert (near[key][0] - exact[key][0]).abs().mean() < 0.1 * exact[key][0].std()


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_those_of_transformers(tmp_path: Path, shape: str) -> None:
    folder = save_checkpoint(tmp_path, **SHAPES[shape])
    spec = EngineSpec(checkpoint=str(folder), context_tokens=512, kv_tokens=512, max_running=4)
    tokens, logits = generate(load_rank(spec, 0))
    reference = Glm4MoeForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for key, length in PROMPTS.items():
        with torch.no_grad():
            theirs = reference(torch.tensor([[*prompt(length), *tokens[key][:-1]]])).logits[0, length - 1 :]
        assert theirs.std() > 0.5
        torch.testing.assert_close(torch.stack(logits[key]), theirs, atol=1e-4, rtol=1e-4)
