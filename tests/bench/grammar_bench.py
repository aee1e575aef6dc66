"""What a grammar costs: tokens a second of answers held to a JSON schema, beside free ones of the same engine.

Each pass serves as many streams of each kind, one kind after the other, in turns. The schema has numbers, words, a
choice and lists, as answers of applications do, and allows no end before the last token; free answers ignore their
end, so both kinds are equally long. Sampled at temperature 1; medians of tokens per second of wall time.
"""

import asyncio
import json
import statistics
import time
from pathlib import Path
from typing import Any

from torch_group import collected, running

from cluster.request import Generation, Piece, Sampling
from deployments.engines.torch_engine.engine import TorchEngine
from deployments.engines.torch_engine.spec import EngineSpec

CHECKPOINT = Path(__file__).parents[2] / "deployments" / "demo" / "checkpoints" / "pro"
STREAMS, NEW_TOKENS, PASSES = (1, 16, 64), 96, 5
ITEM = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "count": {"type": "integer", "minimum": 0, "maximum": 9999},
        "kind": {"enum": ["eel", "moray", "conger"]},
        "near": {"type": "array", "items": {"type": "number"}, "maxItems": 3},
    },
    "required": ["name", "count", "kind", "near"],
    "additionalProperties": False,
}
SCHEMA = json.dumps({"type": "array", "items": ITEM, "minItems": NEW_TOKENS})
AIM = {f"held_over_free_at_{streams}": 0.8 for streams in STREAMS}


def run() -> dict[str, Any]:
    rates = asyncio.run(_measured())
    medians = {name: statistics.median(values) for name, values in rates.items()}
    figures = {f"tokens_per_s_{name}": value for name, value in medians.items()}
    figures |= {f"held_over_free_at_{n}": medians[f"held_at_{n}"] / medians[f"free_at_{n}"] for n in STREAMS}
    spread = {name: [min(values), max(values)] for name, values in rates.items()}
    met = all(figures[name] >= aim for name, aim in AIM.items())
    return {"figures": figures, "aim": AIM, "met": met, "runs": PASSES, "spread": spread}


async def _measured() -> dict[str, list[float]]:
    spec = EngineSpec(
        checkpoint=str(CHECKPOINT), context_tokens=512, kv_tokens=64 * 256, max_running=max(STREAMS), max_waiting=1
    )
    rates: dict[str, list[float]] = {f"{kind}_at_{n}": [] for n in STREAMS for kind in ("free", "held")}
    async with running(spec) as (engine, _):
        for number in range(PASSES + 1):  # the first one warms up
            for streams in STREAMS:
                for kind in ("free", "held") if number % 2 else ("held", "free"):
                    rate = await _rate(engine, kind, streams)
                    if number:
                        rates[f"{kind}_at_{streams}"].append(rate)
    return rates


async def _rate(engine: TorchEngine, kind: str, streams: int) -> float:
    """Tokens a second of wall time."""
    schema = SCHEMA if kind == "held" else None
    began_s = time.perf_counter()
    answers = await asyncio.gather(*(collected(engine, _asked(n, schema)) for n in range(streams)))
    return sum(map(_tokens, answers)) / (time.perf_counter() - began_s)


def _asked(number: int, schema: str | None) -> Generation:
    """Free answers go on behind end tokens, so that both kinds are equally long."""
    sampling = Sampling(seed=number, max_tokens=NEW_TOKENS, json_schema=schema, ignore_eos=schema is None)
    prompt = tuple((31 * i + 17 * number) % 1500 + 300 for i in range(48))
    return Generation(request_id=f"{number}", prompt=prompt, sampling=sampling)


def _tokens(pieces: list[Piece]) -> int:
    tokens = sum(piece.tokens for piece in pieces)
    assert tokens == NEW_TOKENS, pieces[-1]
    return tokens
