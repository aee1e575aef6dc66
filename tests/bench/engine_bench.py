"""What a token costs the torch engine: generated tokens per CPU-second, beside transformers' continuous batching.

Same checkpoint (the `pro` that ships), dtype float32, one thread, prompts, KV and prefill budget for both; greedy, end
tokens ignored, so that both do the same work. Each candidate runs in a process of its own, loads, serves each load once
unmeasured and once measured; CPU time is that of the whole process between the first request and the last token.
Passes are interleaved; medians, with the lowest and highest in `spread`.
"""

import asyncio
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

CHECKPOINT = Path(__file__).parents[2] / "deployments" / "demo" / "checkpoints" / "pro"
STREAMS = (1, 16, 64)
PROMPT_TOKENS, NEW_TOKENS = 48, 64
KV_TOKENS, PREFILL_TOKENS, PAGE_TOKENS = 16384, 256, 32
PASSES = 3
MEMORY_BYTES = 12_000_000_000
AIM = {"times_transformers_at_16": 1.5, "times_transformers_at_64": 1.5}

Prompts = list[list[int]]
Serve = Callable[[Prompts], list[str]]
Result = tuple[dict[int, dict[str, float]], list[str]]


def run() -> dict[str, Any]:
    """`met` only where every figure keeps its aim."""
    with tempfile.TemporaryDirectory() as name:
        folder = _endless(Path(name))
        order = [("engine", "transformers"), ("transformers", "engine")]
        passes = [_measured(candidate, folder) for number in range(PASSES) for candidate in order[number % 2]]
    rows = {
        f"{candidate}_{streams}": [p["rows"][str(streams)] for p in passes if p["candidate"] == candidate]
        for candidate in order[0]
        for streams in STREAMS
    }
    medians = {name: statistics.median(row["tokens_per_cpu_s"] for row in given) for name, given in rows.items()}
    figures = {f"times_transformers_at_{s}": medians[f"engine_{s}"] / medians[f"transformers_{s}"] for s in STREAMS}
    figures |= {f"tokens_per_cpu_s_{name}": median for name, median in medians.items()}
    figures["same_text_share"] = _agreement(passes)
    spread = {n: [min(v), max(v)] for n, given in rows.items() if (v := [row["tokens_per_cpu_s"] for row in given])}
    met = all(figures[name] >= aim for name, aim in AIM.items())
    return {"figures": figures, "aim": AIM, "met": met, "runs": PASSES, "spread": spread}


def _endless(folder: Path) -> Path:
    """The checkpoint without its end tokens."""
    for file in CHECKPOINT.iterdir():
        shutil.copy(file, folder)
    for file in (folder / "config.json", folder / "generation_config.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": None}))
    return folder


def _measured(candidate: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, candidate, str(folder)]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _agreement(passes: list[dict[str, Any]]) -> float:
    """The share of streams for which both candidates wrote the same text."""
    ours, theirs = (next(p["texts"] for p in passes if p["candidate"] == c) for c in ("engine", "transformers"))
    same: int = sum(a == b for a, b in zip(ours, theirs, strict=True))
    return same / len(ours)


def _prompts(streams: int) -> Prompts:
    return [[(31 * i + 17 * s) % 1500 + 300 for i in range(PROMPT_TOKENS)] for s in range(streams)]


def _load(serve: Serve) -> tuple[dict[int, dict[str, float]], list[str]]:
    """The figures of each load, and the texts of the last."""
    rows, texts = {}, []
    for streams in STREAMS:
        serve(_prompts(streams))
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        texts = serve(_prompts(streams))
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
        tokens = streams * NEW_TOKENS
        rows[streams] = {"tokens_per_cpu_s": tokens / cpu_s, "tokens_per_wall_s": tokens / wall_s}
    return rows, texts


def _engine(folder: Path) -> Result:
    from cluster.request import Generation, Piece, Sampling
    from deployments.engines.torch_engine.engine import TorchEngine
    from deployments.engines.torch_engine.spec import EngineSpec

    sampling = Sampling(temperature=0, max_tokens=NEW_TOKENS)

    async def stream(engine: TorchEngine, index: int, prompt: list[int]) -> str:
        pieces: list[Piece] = []
        ended = asyncio.Event()

        def emit(piece: Piece) -> None:
            pieces.append(piece)
            if piece.last:
                ended.set()

        engine.submit(Generation(request_id=str(index), prompt=tuple(prompt), sampling=sampling), emit)
        await ended.wait()
        assert sum(piece.tokens for piece in pieces) == NEW_TOKENS
        return "".join(piece.text for piece in pieces)

    async def serve(engine: TorchEngine, prompts: Prompts) -> list[str]:
        return await asyncio.gather(*(stream(engine, *numbered) for numbered in enumerate(prompts)))

    spec = EngineSpec(
        checkpoint=str(folder),
        context_tokens=2048,
        kv_tokens=KV_TOKENS,
        max_running=max(STREAMS),
        prefill_chunk_tokens=PREFILL_TOKENS,
    )
    with asyncio.Runner() as runner:
        engine = TorchEngine(spec)
        runner.run(engine.start())
        result = _load(lambda prompts: runner.run(serve(engine, prompts)))
        runner.run(engine.stop())
    return result


def _transformers(folder: Path) -> Result:
    from tokenizers import Tokenizer
    from transformers import ContinuousBatchingConfig, GenerationConfig, Glm4MoeForCausalLM

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = Glm4MoeForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    generation = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=0)
    batching = ContinuousBatchingConfig(
        page_size=PAGE_TOKENS,
        num_blocks=KV_TOKENS // PAGE_TOKENS,
        max_batch_tokens=PREFILL_TOKENS,
        use_cuda_graph=False,
    )

    def serve(prompts: Prompts) -> list[str]:
        ids = {manager.add_request(prompt, max_new_tokens=NEW_TOKENS): i for i, prompt in enumerate(prompts)}
        texts = [""] * len(prompts)
        while ids:
            result = manager.get_result(timeout=120)
            assert result is not None, manager.background_thread_status.fatal_error
            assert len(result.generated_tokens) == NEW_TOKENS
            texts[ids.pop(result.request_id)] = tokenizer.decode(result.generated_tokens)
        return texts

    with (
        torch.no_grad(),
        model.continuous_batching_context_manager(
            generation_config=generation, continuous_batching_config=batching
        ) as manager,
    ):
        return _load(serve)


def _candidate(name: str, folder: Path) -> None:
    """Runs in its own process; bounded, since an unbounded cache would take the machine's memory."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    torch.set_num_threads(1)
    rows, texts = {"engine": _engine, "transformers": _transformers}[name](folder)
    print(json.dumps({"candidate": name, "rows": rows, "texts": texts}))


if __name__ == "__main__":
    _candidate(sys.argv[1], Path(sys.argv[2]))
