"""What a live rebalance costs the streams that run through it, and what two ranks cost beside one on a CPU.

The `ultra` that ships, its end tokens ignored, serves greedy streams. Three candidates: `one` rank; `two` ranks;
`moving`, two ranks of which every expert moves to the other once while all streams decode, the most that one rebalance
can move. The plan is forced, the move is the engine's own. `stall_steps` is the time that streams waited for it, in
median steps; `worst_gap_steps` the longest time between two tokens of a stream around the move, and
`worst_gap_steps_unmoved` that between the same tokens of `two`, which says how noisy the machine was.

`times_one_rank` is the tokens per second of two ranks beside one. On a CPU it says nothing about GPUs: ranks share
cores and memory, and gloo copies every row. `exchange_share` is the part of rank 0's time in which rows and counts
travel or wait for the other rank.

Each candidate runs in processes of its own; passes are interleaved; medians, with the lowest and highest in `spread`.
"""

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

CHECKPOINT = Path(__file__).parents[2] / "deployments" / "demo" / "checkpoints" / "ultra"
STREAMS, PROMPT_TOKENS, NEW_TOKENS = 16, 16, 192
PASSES = 5
CANDIDATES = ("one", "two", "moving")
AIM = {"stall_steps": 5.0}  # at most


def run() -> dict[str, Any]:
    """`met` only where the median stall keeps its aim and all candidates wrote the same tokens."""
    with tempfile.TemporaryDirectory() as name:
        folder = _endless(Path(name))
        passes = [{candidate: _measured(candidate, folder) for candidate in CANDIDATES} for _ in range(PASSES)]
    rows = [_figures(given) for given in passes]
    figures = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    spread = {name: [min(row[name] for row in rows), max(row[name] for row in rows)] for name in rows[0]}
    met = figures["stall_steps"] <= AIM["stall_steps"] and figures["same_tokens"] == 1
    return {"figures": figures, "aim": AIM, "met": met, "runs": PASSES, "spread": spread}


def _figures(given: dict[str, dict[str, Any]]) -> dict[str, float]:
    one, two, moving = (given[candidate] for candidate in CANDIDATES)
    step_s = statistics.median(moving["gaps_s"])
    return {
        "stall_steps": moving["stall_s"] / step_s,
        "stall_ms": moving["stall_s"] * 1e3,
        "worst_gap_steps": max(moving["gaps_s"][gap] for gap in moving["around_moves"]) / step_s,
        "worst_gap_steps_unmoved": max(two["gaps_s"][gap] for gap in moving["around_moves"])
        / statistics.median(two["gaps_s"]),
        "moved_copies": moving["moved"],
        "step_ms_one": statistics.median(one["gaps_s"]) * 1e3,
        "step_ms_two": statistics.median(two["gaps_s"]) * 1e3,
        "times_one_rank": two["tokens_per_s"] / one["tokens_per_s"],
        "exchange_share": two["exchange_share"],
        "same_tokens": float(one["tokens"] == two["tokens"] == moving["tokens"]),
    }


def _endless(folder: Path) -> Path:
    """The checkpoint without its end tokens."""
    for file in CHECKPOINT.iterdir():
        shutil.copy(file, folder)
    for file in (folder / "config.json", folder / "generation_config.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": None}))
    return folder


def _measured(candidate: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, candidate, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment, timeout=300)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _swap_once() -> None:
    """In place of a judgement: every expert goes to the next rank, once."""
    from cluster.experts import Placement
    from cluster.rebalance import Judgement, Terms, Window
    from deployments.engines.torch_engine import balance

    made: list[Placement] = []

    def swap(_window: Window, placement: Placement, _terms: Terms) -> Judgement:
        slots = tuple((*layer[placement.room :], *layer[: placement.room]) for layer in placement.slots)
        made.append(replace(placement, slots=slots))
        return Judgement(placement=made[0] if len(made) == 1 else None, reason="forced")

    balance.judge = swap  # type: ignore[attr-defined, assignment]


def _timed_exchange() -> Callable[[], float]:
    """What rank 0 spent in exchanges, without the experts and what runs meanwhile."""
    from torch import Tensor

    from deployments.engines.torch_engine.exchange import AllToAll, Watch

    spent = [0.0]

    def timed(function: Callable[..., Any], sign: int) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            began_s = time.perf_counter()
            try:
                return function(*given)
            finally:
                spent[0] += sign * (time.perf_counter() - began_s)

        return call

    carry = AllToAll._carry

    def with_meanwhile(self: AllToAll, sent: Any, experts: Any, rows: Tensor, meanwhile: Any) -> Tensor:
        return carry(self, sent, experts, rows, timed(meanwhile, -1))

    AllToAll.__call__ = timed(AllToAll.__call__, 1)  # type: ignore[method-assign]
    AllToAll._carry = timed(with_meanwhile, 1)  # type: ignore[method-assign]
    Watch.run = timed(Watch.run, -1)  # type: ignore[method-assign]
    return lambda: spent[0]


async def _serve(candidate: str, folder: Path) -> dict[str, Any]:
    from torch_group import running

    from cluster.request import Generation, Piece, Sampling
    from deployments.engines.torch_engine.engine import TorchEngine
    from deployments.engines.torch_engine.spec import EngineSpec

    moves = candidate == "moving"
    spec = EngineSpec(
        checkpoint=str(folder),
        context_tokens=1024,
        kv_tokens=16384,
        ranks=1 if candidate == "one" else 2,
        rebalance=moves,
        window_s=1e-3,
    )
    moving_tokens, known = list[int](), [0]

    async def stream(engine: TorchEngine, index: int, watched: list[float]) -> tuple[int, ...]:
        pieces: list[Piece] = []
        ended = asyncio.Event()

        def emit(piece: Piece) -> None:
            pieces.append(piece)
            if index == 0:
                watched.append(time.perf_counter())
                if (moved := _moved(engine)) > known[-1]:
                    known.append(moved)
                    moving_tokens.append(len(watched) - 1)
            if piece.last:
                ended.set()

        prompt = tuple((31 * i + 17 * index) % 1500 + 300 for i in range(PROMPT_TOKENS))
        sampling = Sampling(temperature=0, max_tokens=NEW_TOKENS)
        engine.submit(Generation(request_id=f"{index}", prompt=prompt, sampling=sampling), emit)
        await ended.wait()
        return tuple(id for piece in pieces for id in piece.ids)

    async with running(spec) as (engine, _):
        spent_s = _timed_exchange()
        if moves:
            _swap_once()
        times: list[float] = []
        began_s = time.perf_counter()
        tokens = await asyncio.gather(*(stream(engine, index, times) for index in range(STREAMS)))
        wall_s = time.perf_counter() - began_s
        experts = engine.report().experts
        assert experts is not None
        assert experts.rebalances == moves
    around = {gap for token in moving_tokens for gap in (token - 2, token - 1, token)}
    return {
        "tokens": tokens,
        "tokens_per_s": STREAMS * NEW_TOKENS / wall_s,
        "exchange_share": spent_s() / wall_s,
        "gaps_s": [later - earlier for earlier, later in pairwise(times)],
        "around_moves": sorted(gap for gap in around if 0 <= gap < NEW_TOKENS - 1),
        "stall_s": experts.stall_s,
        "moved": experts.moved,
    }


def _moved(engine: Any) -> int:
    moved: int = engine.report().experts.moved
    return moved


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_serve(sys.argv[1], Path(sys.argv[2])))))
