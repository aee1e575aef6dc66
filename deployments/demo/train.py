"""Train one tier: python -m deployments.demo.train TIER [--seconds N | --tokens N] [--out DIR] [--unguided]

loss = cross entropy + BALANCE * balance + GUIDE * guide, the last two averaged over mixture layers. With p the softmax
of the router's logits, and as a token's group the experts of its domain (the general ones where the tier has no such
specialist): guide = mean(-log(sum of p over the group)); balance = size * sum over the group's experts of (share of its
picks * mean p within the group). Unguided: one group of all experts, and no guide loss.
"""

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import GenerationConfig, Glm4MoeForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from deployments.demo.batches import Batch, batches, tokenizer
from deployments.demo.corpus import DOMAINS
from deployments.demo.growth import grow
from deployments.demo.optimiser import Optimiser, schedule
from deployments.demo.routing import Routed, router_logits
from deployments.demo.shapes import SHAPES, Shape, configuration, stops

CHECKPOINTS = Path(__file__).parent / "checkpoints"
RECORD = "training.json"
GUIDE, BALANCE = 0.05, 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a checkpoint records of its training. `cpu_s` is processor time of one thread, data preparation included."""

    tier: str
    guided: bool
    seed: int
    parameters: int
    tokens: int
    steps: int
    cpu_s: float
    loss: float
    expert_domains: dict[str, list[int]]
    grown_from: str | None


class WeightedLoss(torch.autograd.Function):
    """sum(weight * cross entropy); on a CPU several times faster than log_softmax and its backward pass."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        top = logits.amax(-1, keepdim=True)
        p = (logits - top).float().exp_()
        total = p.sum(-1, keepdim=True)
        chosen = (logits.gather(1, targets[:, None]) - top).float()
        loss = (weight * (total.log() - chosen)[:, 0]).sum()
        p *= weight[:, None] / total
        p.scatter_add_(1, targets[:, None], -weight[:, None])
        ctx.save_for_backward(p.to(logits.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * scale.to(gradient.dtype), None, None


def cross_entropy(model: Glm4MoeForCausalLM, batch: Batch) -> torch.Tensor:
    """Weighted mean over the targets."""
    hidden = model.model(input_ids=batch.ids, position_ids=batch.position, use_cache=False).last_hidden_state
    weight = batch.weight[:, 1:].flatten()
    wanted = weight > 0
    logits = model.lm_head(hidden[:, :-1].flatten(0, 1)[wanted])
    share = weight[wanted] / weight.sum()
    loss: torch.Tensor = WeightedLoss.apply(logits, batch.ids[:, 1:].flatten()[wanted], share)  # type: ignore[no-untyped-call]
    return loss


def all_experts(experts: Any, hidden: torch.Tensor, picks: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Every expert on every token, those not picked with weight 0.

    The sum is that of the usual way; a CPU with matrix units computes few large products faster than many small ones.
    """
    number = len(experts.gate_up_proj)
    both = F.linear(hidden, experts.gate_up_proj.flatten(0, 1)).view(len(hidden), number, -1)
    gate, up = both.chunk(2, dim=-1)
    share = torch.zeros(len(hidden), number, dtype=hidden.dtype).scatter(1, picks, weights.to(hidden.dtype))
    inner = F.silu(gate) * up * share.unsqueeze(-1)
    mixed: torch.Tensor = inner.flatten(1) @ experts.down_proj.transpose(1, 2).flatten(0, 1)
    return mixed


def groups(shape: Shape, guided: bool) -> list[tuple[list[int], list[int]]]:
    """Pairs of (domains by number, their experts)."""
    if not guided:
        return [(list(range(len(DOMAINS))), list(range(shape.experts)))]
    owned = shape.expert_domains
    own = [([DOMAINS.index(name)], owned[name]) for name in shape.specialists]
    return [*own, ([i for i, name in enumerate(DOMAINS) if name not in shape.specialists], owned["general"])]


def routing_loss(
    seen: Sequence[Routed], domain: torch.Tensor, wanted: Sequence[tuple[list[int], list[int]]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Guide and balance, averaged over layers, each group weighted by its tokens."""
    guide = balance = torch.zeros(())
    tokens = (domain >= 0).sum()
    for domains, experts in wanted:
        here = torch.isin(domain, torch.tensor(domains))
        if not here.any():
            continue
        share = here.sum() / tokens / len(seen)
        for logits, picks in seen:
            p = logits[here].float().softmax(-1)[:, experts]
            inside = p.sum(-1).clamp_min(1e-6)
            counts = torch.bincount(picks[here].flatten(), minlength=logits.shape[1])[experts].float()
            shares = counts / counts.sum().clamp_min(1.0)
            guide = guide - share * inside.log().mean()
            balance = balance + share * len(experts) * (shares * (p / inside[:, None]).mean(0)).sum()
    return guide, balance


def train(
    tier: str, *, cpu_s: float, tokens: int | None = None, guided: bool = True, smaller: Path | None = None
) -> tuple[Glm4MoeForCausalLM, Run]:
    """Until `tokens` tokens without padding are read or, where that is None, `cpu_s` of processor time are spent."""
    shape, begun, seed = SHAPES[tier], time.process_time(), 1 + list(SHAPES).index(tier)
    torch.manual_seed(seed)
    ALL_EXPERTS_FUNCTIONS.register("all_experts", all_experts)
    model = Glm4MoeForCausalLM._from_config(configuration(shape), experts_implementation="all_experts")
    if smaller:
        grow(Glm4MoeForCausalLM.from_pretrained(smaller), model)
    optimiser, wanted = Optimiser(model), groups(shape, guided)
    done, steps, loss = 0, 0, 0.0
    with router_logits(model) as seen:
        for batch in batches(seed, shape.rows):
            progress = done / tokens if tokens else (time.process_time() - begun) / cpu_s
            if progress >= 1:
                break
            seen.clear()
            ce = cross_entropy(model, batch)
            guide, balance = routing_loss(seen, batch.domain.flatten(), wanted)
            (ce + (GUIDE * guide if guided else 0.0) + BALANCE * balance).backward()  # type: ignore[no-untyped-call]
            optimiser.step(shape.learning_rate * schedule(progress))
            done, steps = done + int((batch.domain >= 0).sum()), steps + 1
            loss = ce.item() if steps == 1 else 0.98 * loss + 0.02 * ce.item()
            if steps % 50 == 0:
                print(
                    f"{tier} {progress:.1%} tokens {done} loss {loss:.3f} guide {guide:.3f} balance {balance:.3f}",
                    flush=True,
                )
    spent, parameters = time.process_time() - begun, sum(p.numel() for p in model.parameters())
    run = Run(
        tier=tier, guided=guided, seed=seed, parameters=parameters, tokens=done, steps=steps, cpu_s=round(spent, 1),
        loss=round(loss, 4), expert_domains=shape.expert_domains, grown_from=shape.grown_from,
    )  # fmt: skip
    return model, run


def save(model: Glm4MoeForCausalLM, run: Run, folder: Path) -> None:
    """Write beside the folder, then swap, so that a reader never meets half a checkpoint."""
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    model.generation_config = GenerationConfig(eos_token_id=stops(), pad_token_id=stops()[1])
    model.save_pretrained(fresh)
    tokenizer().save_pretrained(fresh)
    (fresh / RECORD).write_text(json.dumps(asdict(run), indent=2) + "\n", encoding="utf-8")
    for file in fresh.iterdir():
        file.chmod(0o644)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tier", choices=SHAPES)
    parser.add_argument("--seconds", type=float, help="processor time; the tier's own budget where absent")
    parser.add_argument("--tokens", type=int, help="stop after so many tokens instead")
    parser.add_argument("--out", type=Path, help="checkpoint folder; the one that ships where absent")
    parser.add_argument("--unguided", action="store_true", help="without the guide loss, for comparison")
    given = parser.parse_args()
    torch.set_num_threads(1)
    shape, out = SHAPES[given.tier], given.out or CHECKPOINTS / given.tier
    smaller = out.parent / shape.grown_from if shape.grown_from else None
    cpu_s = given.seconds or shape.cpu_s
    model, run = train(given.tier, cpu_s=cpu_s, tokens=given.tokens, guided=not given.unguided, smaller=smaller)
    save(model, run, out)
    print(json.dumps(asdict(run)))


if __name__ == "__main__":
    main()
