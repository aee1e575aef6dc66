"""Score checkpoints on held-out questions: python -m deployments.demo.evaluate DIR... [--per-task N] [--out FILE]

Cross entropy of the answers per domain (nats per token); exact match of greedy answers per task (JSON: same value);
share of a domain's routed picks that fall on its own experts, prompts included; I(domain; expert) in bits per layer.
"""

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AutoTokenizer, Glm4MoeForCausalLM, PreTrainedTokenizerBase

from deployments.demo.corpus import DOMAINS, TASKS, evaluation
from deployments.demo.routing import expert_domains, router_logits
from deployments.demo.task import Sample

SEED, BATCH, ANSWER_TOKENS = 20_000, 32, 200


@dataclass(slots=True)
class Scores:
    """Sums over samples; counts[layer][domain][expert] are routed picks."""

    loss: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    answer_tokens: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    right: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    valid: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    stopped: int = 0
    asked: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    counts: torch.Tensor | None = None


def prompt(tokenizer: PreTrainedTokenizerBase, sample: Sample) -> list[int]:
    said = [{"role": "user", "content": sample.question}]
    text = tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def padded(rows: Sequence[Sequence[int]], pad: int, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask [rows, longest]."""
    longest = max(map(len, rows))
    ids, mask = torch.full((len(rows), longest), pad), torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        here = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[i, here], mask[i, here] = torch.tensor(row), 1
    return ids, mask


def read(model: Any, tokenizer: PreTrainedTokenizerBase, samples: Sequence[Sample], scores: Scores) -> None:
    """Cross entropy of the answers and the routing of whole chats."""
    prompts = [prompt(tokenizer, sample) for sample in samples]
    answers: list[list[int]] = [
        tokenizer.encode(f"{sample.answer}{tokenizer.eos_token}", add_special_tokens=False) for sample in samples
    ]
    ids, mask = padded([p + a for p, a in zip(prompts, answers, strict=True)], 0, left=False)
    domain = torch.tensor([DOMAINS.index(sample.task.domain) for sample in samples])
    with router_logits(model) as seen:
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2).float(), ids[:, 1:], reduction="none")
    for i, (sample, start, answer) in enumerate(zip(samples, prompts, answers, strict=True)):
        here = losses[i, len(start) - 1 : len(start) + len(answer) - 1]
        scores.loss[sample.task.domain] += here.sum().item()
        scores.answer_tokens[sample.task.domain] += len(answer)
    count(seen, domain[:, None].expand_as(ids)[mask > 0], mask.flatten() > 0, scores)


def count(
    seen: Sequence[tuple[torch.Tensor, torch.Tensor]], domain: torch.Tensor, wanted: torch.Tensor, scores: Scores
) -> None:
    experts = seen[0][0].shape[1]
    if scores.counts is None:
        scores.counts = torch.zeros(len(seen), len(DOMAINS), experts)
    for layer, (_, picks) in enumerate(seen):
        chosen = picks[wanted]
        pair = domain[:, None] * experts + chosen
        scores.counts[layer] += torch.bincount(pair.flatten(), minlength=len(DOMAINS) * experts).view(-1, experts)


def same_json(given: str, wanted: str) -> tuple[bool, bool]:
    """(it parses, it is the same value)."""
    try:
        value = json.loads(given)
    except ValueError:
        return False, False
    return True, value == json.loads(wanted)


def answer(model: Any, tokenizer: PreTrainedTokenizerBase, samples: Sequence[Sample], scores: Scores) -> None:
    """Greedy answers against the reference."""
    ids, mask = padded([prompt(tokenizer, sample) for sample in samples], 0, left=True)
    out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=ANSWER_TOKENS, do_sample=False)
    for sample, row in zip(samples, out[:, ids.shape[1] :], strict=True):
        task = sample.task
        scores.stopped += int(tokenizer.eos_token_id in row.tolist())
        if not (task.exact or task.json):
            continue
        scores.asked[task.name] += 1
        said = str(tokenizer.decode(row, skip_special_tokens=True))
        if task.json:
            valid, right = same_json(said, sample.answer)
            scores.valid[task.name] += valid
            scores.right[task.name] += right
        else:
            scores.right[task.name] += said == sample.answer


def information(counts: torch.Tensor) -> float:
    """I(domain; expert) in bits of a table of counts [domain, expert]."""
    p = counts / counts.sum()
    independent = p.sum(1, keepdim=True) * p.sum(0, keepdim=True)
    return float((p * (p / independent).clamp_min(1e-12).log2()).sum())


def own_share(counts: torch.Tensor, owned: dict[str, list[int]]) -> dict[str, list[float]]:
    """Per domain with specialists, per layer: the share of its picks that its own experts got."""
    shares: dict[str, list[float]] = {}
    for name in (name for name in DOMAINS if name in owned):
        picks = counts[:, DOMAINS.index(name)]
        shares[name] = [round(float(row[owned[name]].sum() / row.sum()), 3) for row in picks]
    return shares


def chunks(samples: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
    """Samples of like length together, so that little is padding."""
    ordered = sorted(samples, key=lambda sample: len(sample.question) + len(sample.answer))
    return (ordered[i : i + BATCH] for i in range(0, len(ordered), BATCH))


@torch.inference_mode()
def evaluate(folder: Path, per_task: int) -> dict[str, Any]:
    """The scores of one checkpoint, ready for JSON."""
    model = Glm4MoeForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    samples, scores = list(evaluation(SEED, per_task)), Scores()
    for some in chunks(samples):
        read(model, tokenizer, some, scores)
    for some in chunks(samples):
        answer(model, tokenizer, some, scores)
    if scores.counts is None:
        raise ValueError(f"{folder}: a model without mixture layers; give a checkpoint of this family")
    entropy = -sum(p * math.log2(p) for p in (scores.counts[0].sum(1) / scores.counts[0].sum()).tolist())
    return {
        "samples_per_task": per_task,
        "cross_entropy": {name: round(scores.loss[name] / scores.answer_tokens[name], 4) for name in DOMAINS},
        "exact_match": {task: round(scores.right[task] / n, 3) for task, n in scores.asked.items()},
        "exact_match_domain": by_domain(scores),
        "json_valid": {task: round(n / scores.asked[task], 3) for task, n in scores.valid.items()},
        "stopped": round(scores.stopped / len(samples), 4),
        "own_expert_share": own_share(scores.counts, expert_domains(model.config)),
        "mutual_information_bits": [round(information(layer), 3) for layer in scores.counts],
        "domain_entropy_bits": round(entropy, 3),
    }


def by_domain(scores: Scores) -> dict[str, float]:
    """Unweighted mean over a domain's tasks that have one right answer."""
    rates: dict[str, list[float]] = defaultdict(list)
    for task in (task for task in TASKS if task.name in scores.asked):
        rates[task.domain].append(scores.right[task.name] / scores.asked[task.name])
    return {name: round(sum(rates[name]) / len(rates[name]), 3) for name in DOMAINS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR")
    parser.add_argument("--per-task", type=int, default=32)
    parser.add_argument(
        "--out", type=Path, help="where one checkpoint's scores go; scores.json beside its weights if absent"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    for folder in given.folders:
        scores = evaluate(folder, given.per_task)
        text = json.dumps(scores, indent=2) + "\n"
        (given.out or folder / "scores.json").write_text(text, encoding="utf-8")
        print(folder, text)


if __name__ == "__main__":
    main()
