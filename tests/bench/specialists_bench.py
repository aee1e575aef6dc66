"""What specialists are worth to batches: decode steps of one domain against mixed ones, and what routing could gain.

`torch`: a step of the torch engine on a checkpoint whose experts exceed the cache (specialists_checkpoint), for batches
of one domain and of four, beside the share of experts that they touch, counted and as specialists_model predicts it.
`ultra`: the same on the checkpoint that ships, which lies in the cache. `loads`, `capacity`: see specialists_world.

CPU time of the whole process, per step while all sequences decode. One domain and mixed take turns, with the order
reversed from pass to pass; medians. Experts are counted in a pass of its own, over the same tokens.
"""

import asyncio
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from bench import specialists_checkpoint, specialists_world
from bench.specialists_checkpoint import EXPERTS, TOP_K, domain_tokens
from bench.specialists_model import DOMAINS, touched

from cluster.family import StepCost
from cluster.request import Generation, Message, Piece, Sampling
from deployments.demo.corpus import TASKS
from deployments.demo.shapes import SPECIALISTS
from deployments.demo.task import draw
from deployments.engines.torch_engine.engine import TorchEngine
from deployments.engines.torch_engine.moe import MoeLayer
from deployments.engines.torch_engine.spec import EngineSpec

CONCENTRATION = 0.8
CACHES = 1.2  # one layer's experts, in last-level caches
MOST_LAYER_BYTES = 650e6
BATCHES = (1, 4, 8, 16, 32, 64)
PASSES = 5
MIXES = ("one", "mixed")
ULTRA = Path(__file__).parents[2] / "deployments" / "demo" / "checkpoints" / "ultra"

Prompts = list[list[int]]


def run(part: str = "torch,ultra,loads,capacity", quick: bool = False, seeds: int = 3) -> dict[str, Any]:
    """No aim: it asks whether something pays."""
    numbers = range(1, 2 if quick else 1 + seeds)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "torch": partial(_large, quick),
        "ultra": _shipped,
        "loads": partial(specialists_world.loads, numbers, quick),
        "capacity": partial(specialists_world.capacities, numbers, quick),
    }
    figures = {name: parts[name]() for name in part.split(",")}
    return {"figures": figures, "aim": {}, "met": None, "runs": PASSES}


def _large(quick: bool) -> dict[str, Any]:
    cache = _cache_bytes()
    ffn = specialists_checkpoint.expert_ffn(min(CACHES * cache, MOST_LAYER_BYTES) if not quick else 50e6)
    with tempfile.TemporaryDirectory() as name:
        specialists_checkpoint.save(Path(name), ffn, CONCENTRATION)
        rng = np.random.default_rng(0)

        def prompts(batch: int, mix: str) -> Prompts:
            return [rng.choice(domain_tokens(d).numpy(), 4).tolist() for d in _domains(batch, mix)]

        table = _table(Path(name), {(b, m): prompts(b, m) for b in BATCHES for m in MIXES}, 8)
    own = [np.arange(EXPERTS) // (EXPERTS // DOMAINS) == d for d in range(DOMAINS)]
    layer = EXPERTS * 3 * specialists_checkpoint.HIDDEN * ffn * 4
    return {"cache_bytes": cache, "layer_bytes": layer} | _figures(table, own, _cost(EXPERTS, TOP_K))


def _shipped() -> dict[str, Any]:
    """Answers to the evaluation's questions, each domain's in turn; they go on when they would have ended."""
    raw = json.loads((ULTRA / "config.json").read_text())
    experts, top_k = raw["n_routed_experts"], raw["num_experts_per_tok"]
    own = [np.isin(np.arange(experts), raw["expert_domains"][name]) for name in SPECIALISTS]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ULTRA, folder, dirs_exist_ok=True)
        for file in (folder / "config.json", folder / "generation_config.json"):
            file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": None}))
        table = _table(folder, {(b, m): _questions(_domains(b, m)) for b in BATCHES for m in MIXES}, 24)
    return _figures(table, own, _cost(experts, top_k))


def _questions(domains: Sequence[int]) -> list[Message]:
    rng = Random(0)
    return [
        Message(role="user", content=draw(rng.choice(own), rng, "evaluation").question)
        for d in domains
        for own in [[task for task in TASKS if task.domain == SPECIALISTS[d]]]
    ]


def _domains(batch: int, mix: str) -> list[int]:
    """Batches of one domain are all of the first."""
    return [0 if mix == "one" else i % DOMAINS for i in range(batch)]


def _cost(experts: int, top_k: int) -> StepCost:
    zero = dict.fromkeys(("a_ms", "b_ms_per_seq", "c_ms_per_ktok"), 0.0)
    return StepCost(**zero, experts=experts, top_k=top_k, prefill_us_per_token={1: 1.0}, source="counted here")


def _cache_bytes() -> int:
    """The last-level cache of the first core, as Linux tells it."""
    caches = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"))
    return int(max(caches, key=lambda path: int((path / "level").read_text())).joinpath("size").read_text()[:-2]) * 1024


# --- measured


def _table(folder: Path, work: dict[tuple[int, str], Any], steps: int) -> dict[tuple[int, str], Any]:
    """By batch and mix: CPU ms of a step in each pass, and which experts each row chose, [layers * steps, rows, k]."""
    spec = EngineSpec(
        checkpoint=str(folder),
        context_tokens=512,
        kv_tokens=64 * 256,
        max_running=64,
        prefill_chunk_tokens=8192,
        specialists=(),
    )
    with asyncio.Runner() as runner:
        engine = TorchEngine(spec)
        runner.run(engine.start())
        given = {
            key: [one if isinstance(one, list) else list(engine.encode([one])) for one in prompts]
            for key, prompts in work.items()
        }
        chosen = {}
        for key, prompts in given.items():
            with _counting(len(prompts)) as chosen[key]:
                runner.run(_step_ms(engine, prompts, steps))
        took: dict[tuple[int, str], list[float]] = {key: [] for key in given}
        for number in range(PASSES):
            for key in list(given)[:: 1 if number % 2 else -1]:
                took[key].append(runner.run(_step_ms(engine, given[key], steps)))
        runner.run(engine.stop())
    return {key: (took[key], np.stack(chosen[key])) for key in given}


async def _step_ms(engine: TorchEngine, prompts: Prompts, steps: int) -> float:
    """CPU ms of a step: from where all decode to where the first has ended."""
    begun: dict[str, int] = {}
    marks: list[tuple[float, int]] = []
    ended = [asyncio.Event() for _ in prompts]

    def emit(piece: Piece, index: int) -> None:
        begun[str(index)] = begun.get(str(index), 0) + piece.tokens
        if (not marks and len(begun) == len(prompts)) or (len(marks) == 1 and piece.last):
            marks.append((time.process_time(), begun["0"]))
        if piece.last:
            ended[index].set()

    for index, prompt in enumerate(prompts):
        sampling = Sampling(temperature=1.0, seed=index, max_tokens=4 + steps)
        generation = Generation(request_id=str(index), prompt=tuple(prompt), sampling=sampling)
        engine.submit(generation, partial(emit, index=index))
    for event in ended:
        await event.wait()
    (begin_s, first), (end_s, last) = marks
    return (end_s - begin_s) * 1000 / (last - first)


@contextmanager
def _counting(rows: int) -> Iterator[list[Any]]:
    """Every choice of experts for a step of so many rows."""
    route, seen = MoeLayer.route, list[Any]()

    def counted(layer: MoeLayer, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        chosen, weights = route(layer, h)
        if len(h) == rows:
            seen.append(chosen.numpy().copy())
        return chosen, weights

    with patch.object(MoeLayer, "route", counted):
        yield seen


# --- told


def _figures(table: dict[tuple[int, str], Any], own: list[Any], cost: StepCost) -> dict[str, Any]:
    concentration = float(np.mean([own[0][chosen].mean() for (_, mix), (_, chosen) in table.items() if mix == "one"]))
    rows: dict[str, Any] = {}
    for (batch, mix), (took, chosen) in table.items():
        counts = np.bincount(_domains(batch, mix), minlength=DOMAINS)
        rows[f"{mix}_{batch}"] = {
            "cpu_ms": statistics.median(took),
            "spread": [min(took), max(took)],
            "cpu_ms_per_token": statistics.median(took) / batch,
            "share": float(np.mean([len(np.unique(step)) for step in chosen])) / cost.experts,
            "predicted": float(touched(cost, counts, concentration)),
            "blind": float(1 - (1 - cost.top_k / cost.experts) ** batch),
        }
    ratios = {
        str(batch): {
            "step": statistics.median(a / b for a, b in zip(*(table[batch, mix][0] for mix in MIXES), strict=True)),
            "share": rows[f"one_{batch}"]["share"] / rows[f"mixed_{batch}"]["share"],
        }
        for batch in BATCHES
    }
    return {"concentration": concentration, "rows": rows, "one_to_mixed": ratios, "fit": _fit(rows)}


def _fit(rows: dict[str, Any]) -> dict[str, float]:
    """Least squares of ms = a + b*B + d*share, and its largest error."""
    share, ms = (np.array([row[name] for row in rows.values()]) for name in ("share", "cpu_ms"))
    batch = np.array([int(name.split("_")[1]) for name in rows], dtype=float)
    terms = np.stack([np.ones_like(share), batch, share], axis=1)
    found = np.linalg.lstsq(terms, ms)[0]
    a, b, d = found.tolist()
    return {"a_ms": a, "b_ms": b, "d_ms": d, "largest_error": float(np.max(np.abs(terms @ found / ms - 1)))}
