"""On a GPU the engine computes what it computes on a CPU: its parts, and the checkpoints that ship."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from cluster.request import Sampling
from deployments.engines.torch_engine.kv import BLOCK_TOKENS, PagedKV, decode_attention
from deployments.engines.torch_engine.moe import Experts
from deployments.engines.torch_engine.rank import Arrival, Order, Rank, load_rank
from deployments.engines.torch_engine.sampling import choose, uniform
from deployments.engines.torch_engine.schedule import Limits, Scheduler
from deployments.engines.torch_engine.spec import EngineSpec

CHECKPOINTS = Path(__file__).parents[2] / "deployments" / "demo" / "checkpoints"
TIERS = ("ultra", "pro", "turbo", "mini")
PROMPTS = (5, 33, 70)  # tokens: within, just beyond and across KV blocks
NEW = 48
Note = Callable[..., None]


def spec(tier: str, device: Literal["cpu", "cuda"], dtype: Literal["float32", "bfloat16"] = "float32") -> EngineSpec:
    return EngineSpec(
        checkpoint=str(CHECKPOINTS / tier),
        context_tokens=2048,
        kv_tokens=16_384,
        max_running=64,
        prefill_chunk_tokens=24,
        dtype=dtype,
        device=device,
    )


def generated(
    of: EngineSpec, lengths: tuple[int, ...] = PROMPTS, new: int = NEW
) -> tuple[list[list[int]], list[Tensor]]:
    """All prompts at once, greedily: the tokens of each, and the logits [new, vocab] behind them, on the CPU."""
    logits: list[list[Tensor]] = [[] for _ in lengths]
    tokens = stepped(load_rank(of, 0), of, lengths, new, lambda index, row: logits[index].append(row.cpu()))
    return tokens, [torch.stack(each) for each in logits]


def stepped(
    rank: Rank, of: EngineSpec, lengths: tuple[int, ...], new: int, see: Callable[[int, Tensor], None]
) -> list[list[int]]:
    """The tokens of all prompts. `see` gets the number of the prompt and the logits of each."""
    limits = Limits(
        ranks=1,
        blocks=of.kv_tokens // BLOCK_TOKENS,
        block_tokens=BLOCK_TOKENS,
        max_running=of.max_running,
        chunk_tokens=of.prefill_chunk_tokens,
    )
    scheduler = Scheduler(limits)
    for index, length in enumerate(lengths):
        scheduler.submit(str(index), length, new)
    tokens: list[list[int]] = [[] for _ in lengths]
    at: dict[int, int] = {}
    with torch.inference_mode():
        while scheduler.busy:
            plan = scheduler.plan()
            at.update({admission.place: int(admission.key) for admission in plan.admissions})
            arrivals = tuple(
                Arrival(prompt=prompt(lengths[int(each.key)]), sampling=Sampling(temperature=0))
                for each in plan.admissions
            )
            rows = rank.compute(Order(plan=plan, arrivals=arrivals))
            places = rank.yields(plan, 0)
            chosen = rank.sample(rows, places)[:, 0].tolist()
            for place, row, token in zip(places.tolist(), rows, chosen, strict=True):
                tokens[at[place]].append(int(token))
                see(at[place], row)
                if len(tokens[at[place]]) == new:
                    scheduler.remove(str(at[place]))
    return tokens


def prompt(tokens: int) -> tuple[int, ...]:
    return tuple((7 * i + tokens) % 317 + 3 for i in range(tokens))


def shared(first: list[int], second: list[int]) -> int:
    """How many tokens are the same from the beginning."""
    pairs = zip(first, second, strict=True)
    return next((index for index, (one, other) in enumerate(pairs) if one != other), len(first))


@pytest.mark.parametrize("tier", TIERS)
def test_a_checkpoint_that_ships_gives_the_same_greedy_tokens_but_for_ties(tier: str, note: Note) -> None:
    (tokens, logits), (theirs, exact) = generated(spec(tier, "cuda")), generated(spec(tier, "cpu"))
    apart = 0.0
    for mine, right, on_gpu, on_cpu in zip(tokens, theirs, logits, exact, strict=True):
        same = shared(mine, right)
        compared = min(same + 1, NEW)  # the next logits still follow the same tokens
        here, there = (each[:compared].log_softmax(-1) for each in (on_gpu, on_cpu))
        apart = max(apart, float((here - there).abs().max()))
        if same < NEW:
            best = there[same].topk(2).values
            assert best[0] - best[1] < 1e-3, f"token {same} differs where none was near"
    note("parity", tier=tier, dtype="float32", tokens=NEW * len(PROMPTS), largest_logprob_difference=apart)
    assert apart < 1e-3


@pytest.mark.parametrize("tier", TIERS)
def test_half_precision_stays_as_near_on_a_gpu_as_on_a_cpu(tier: str, note: Note) -> None:
    """Compared at each prompt's first token alone: later ones may follow another."""
    exact, here, there = (
        torch.stack([each[0] for each in generated(of, new=1)[1]]).log_softmax(-1)
        for of in (spec(tier, "cpu"), spec(tier, "cuda", "bfloat16"), spec(tier, "cpu", "bfloat16"))
    )
    on_gpu, on_cpu = ((each.exp() * (each - exact)).sum(-1).mean().item() for each in (here, there))
    note("half precision", tier=tier, kl_gpu_nats=on_gpu, kl_cpu_nats=on_cpu)
    assert on_gpu < 2 * on_cpu + 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "counts", [[3, 1, 7, 5], [0, 16, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]], ids=["all", "one", "last", "none"]
)
def test_experts_compute_their_own_rows_whatever_their_number(
    gpu: torch.device, counts: list[int], dtype: torch.dtype
) -> None:
    """A rank may hold experts, or copies of some, to which a batch sends no row."""
    generator = torch.Generator().manual_seed(5)
    gate_up = torch.randn(4, 32, 96, generator=generator).to(gpu, dtype)
    down = torch.randn(4, 48, 32, generator=generator).to(gpu, dtype)
    rows = torch.randn(sum(counts), 32, generator=generator).to(gpu, dtype)
    out = Experts(gate_up=gate_up, down=down)(rows, torch.tensor(counts, device=gpu))
    alone = [
        (torch.nn.functional.silu(gate) * up) @ down[expert]
        for expert, own in enumerate(torch.split(rows, counts))
        for gate, up in [(own @ gate_up[expert]).chunk(2, -1)]
    ]
    near = 1e-4 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(out, torch.cat(alone), atol=near * 32, rtol=near)


def test_decoding_attends_as_on_a_cpu(gpu: torch.device) -> None:
    tables, lengths = np.array([[39, 0, 0], [3, 9, 0], [20, 8, 31]]), np.array([1, 33, 96])
    kv = PagedKV((1, 40, 2, 16), torch.float32, "cpu")
    kv.pool.normal_(generator=torch.Generator().manual_seed(3))
    q = torch.randn(3, 2, 4, 16, generator=torch.Generator().manual_seed(4))
    pool = kv.pool.to(gpu)
    on_cpu = decode_attention(tables, lengths, kv.pool)(q, kv.pool[0], 0.25)
    on_gpu = decode_attention(tables, lengths, pool)(q.to(gpu), pool[0], 0.25)
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=1e-5, rtol=1e-5)


def test_a_seed_and_a_position_choose_the_same_token_on_both(gpu: torch.device) -> None:
    logits = torch.randn(256, 2048, generator=torch.Generator().manual_seed(6)) * 3
    temperature, top_p = torch.tensor([0.0, 0.7, 1.0, 1.3] * 64), torch.tensor([1.0, 0.9] * 128)
    u = torch.from_numpy(uniform(np.arange(256, dtype=np.uint64), np.full(256, 9, np.uint64)))
    right = choose(logits, temperature, top_p, u)
    given = choose(*(each.to(gpu) for each in (logits, temperature, top_p, u))).cpu()
    assert (given != right).sum() <= 2  # where a draw falls on the border between two tokens


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("streams", [1, 8, 64])
@pytest.mark.parametrize("tier", TIERS)
def test_speed_and_memory_are_noted(
    gpu: torch.device, note: Note, tier: str, streams: int, dtype: Literal["float32", "bfloat16"]
) -> None:
    """Prompts of 64 tokens; 64 new ones beyond the first 8, whose steps are taken off with the prompts'."""
    of = replace(spec(tier, "cuda", dtype), prefill_chunk_tokens=512)
    torch.cuda.reset_peak_memory_stats(gpu)
    rank = load_rank(of, 0)
    timed(rank, of, streams, 8)  # the first run chooses kernels
    few_s, many_s = timed(rank, of, streams, 8), timed(rank, of, streams, 72)
    note(
        "speed",
        tier=tier,
        dtype=dtype,
        streams=streams,
        decoded_tokens_per_s=streams * 64 / (many_s - few_s),
        peak_memory_mib=torch.cuda.max_memory_allocated(gpu) / 2**20,
    )


def timed(rank: Rank, of: EngineSpec, streams: int, new: int) -> float:
    torch.cuda.synchronize()
    began_s = time.perf_counter()
    tokens = stepped(rank, of, (64,) * streams, new, lambda *_: None)
    assert [len(each) for each in tokens] == [new] * streams
    torch.cuda.synchronize()
    return time.perf_counter() - began_s
