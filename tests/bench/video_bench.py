"""`loop`: the engine's own loop over steps against the stock pipeline's call, one job at a time, by turns. `mixed`:

short jobs beside long ones in a whole replica, see video_mixed.py. `--part` one or both.

Text encoder, denoising and decoder are in both; weights are random, which costs the same. `wall` and `cpu` are medians
over rounds of a round's ratio, ours to stock's; on a busy machine `cpu` is the one to read.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bench import video_mixed
from diffusers import DiffusionPipeline, WanTransformer3DModel
from tiny_pipelines import wan

from deployments.video.engine import VideoEngine
from deployments.video.spec import RenderSpec

ROUNDS = 9
AIM = 1.03
ASKED = RenderSpec(
    job_id="video_1", prompt="a red ball rises", negative_prompt="dark", width=96, height=64, frames=17, fps=8,
    steps=20, guidance=5.0, seed=7,
)  # fmt: skip


def run(part: str = "loop,mixed", quick: bool = False) -> dict[str, Any]:
    parts = {"loop": _loop, "mixed": _mixed}
    rows = {name: parts[name](quick) for name in part.split(",")}
    whole: dict[str, Any] = {key: {name: row[key] for name, row in rows.items()} for key in ("figures", "aim")}
    return whole | {"met": all(row["met"] for row in rows.values())}


def _mixed(quick: bool) -> dict[str, Any]:
    figures = video_mixed.run(quick)
    aim = video_mixed.AIM
    return {"figures": figures, "aim": f"times_better >= {aim}", "met": figures["times_better"] >= aim}


def _loop(quick: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        engine, stock = _engine(Path(folder)), _stock(Path(folder))
        rounds = [_round(engine, stock, seed) for seed in range(1 + (3 if quick else ROUNDS))][1:]  # the first warms up
    wall, cpu = ([ours[at] / theirs[at] for ours, theirs in rounds] for at in (0, 1))
    ratio = statistics.median(cpu)
    return {
        "figures": {
            "ours_to_stock": {"wall": round(statistics.median(wall), 4), "cpu": round(ratio, 4)},
            "cpu_spread": [round(min(cpu), 4), round(max(cpu), 4)],
            "rounds": len(rounds),
            "stock_cpu_s": round(statistics.median(theirs[1] for _, theirs in rounds), 3),
            "job": f"{ASKED.width}x{ASKED.height}, {ASKED.frames} frames, {ASKED.steps} steps with guidance",
        },
        "aim": f"cpu <= {AIM}",
        "met": ratio <= AIM,
    }


def _engine(folder: Path) -> VideoEngine:
    pipe = wan()
    config = dict(pipe.transformer.config) | {"attention_head_dim": 48, "num_attention_heads": 4, "ffn_dim": 576}
    taken = {name: value for name, value in config.items() if not name.startswith("_")} | {"num_layers": 5}
    pipe.register_modules(transformer=WanTransformer3DModel(**taken))
    pipe.save_pretrained(folder)
    engine = VideoEngine(folder, "float32", "cpu")
    engine.load()
    return engine


def _stock(folder: Path) -> Any:
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _round(engine: VideoEngine, stock: Any, seed: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Wall and CPU seconds, ours and stock's; who begins changes."""
    asked = replace(ASKED, seed=seed)

    def ours() -> None:
        engine.render(asked)

    def theirs() -> None:
        stock(
            asked.prompt, asked.negative_prompt, height=asked.height, width=asked.width, num_frames=asked.frames,
            num_inference_steps=asked.steps, guidance_scale=asked.guidance,
            max_sequence_length=stock.tokenizer.model_max_length,
            output_type="np",
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip

    if seed % 2:
        stocks = _timed(theirs)
        return _timed(ours), stocks
    return _timed(ours), _timed(theirs)


def _timed(work: Callable[[], None]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu
