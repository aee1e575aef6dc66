"""Three times more than can be served, for a minute: what is still served in time, how the rest is turned away, memory.

The capacity is the best goodput (requests per second that keep their promises) of a short ramp around the fluid bound
of the cost model. Replicas are fixed: scaling would be another question.
"""

import json
import sys
from collections.abc import Mapping
from typing import Any

from bench.live_world import fixed, goodput_rps, memory_mb, plain, sent, served, tier

from cluster.cost import fluid_rps
from cluster.family import Tier

REPLICAS = 3
PROMPT, OUTPUT = 400, 64
RAMP = (0.6, 0.8, 0.95)
RAMP_S, OVER_S = 20, 60
TIMES = 3.0
AIM = {"goodput_ratio": 0.9, "late_past_patience": 0, "refused_with_retry_after": 1.0, "broken": 0, "grown_mb": 100}
AT_LEAST = ("goodput_ratio", "refused_with_retry_after")


def run(quick: bool = False) -> dict[str, Any]:
    with served({"turbo": tier("turbo", replicas=fixed(REPLICAS))}, 1, REPLICAS) as (server, family):
        turbo = family.tiers["turbo"]
        bound_rps = fluid_rps(turbo, PROMPT, OUTPUT) * REPLICAS
        sent(server, *_words(0.3 * bound_rps, 5))  # what is loaded lazily must not count as growth
        ramp = {share: sent(server, *_words(share * bound_rps, RAMP_S)) for share in RAMP}
        goodput = {share: goodput_rps(found) for share, found in ramp.items()}
        best = max(goodput, key=lambda share: goodput[share])
        before = memory_mb(server)
        over = sent(server, *_words(TIMES * best * bound_rps, OVER_S / 4 if quick else OVER_S))
        after = memory_mb(server)
    late = _late(over, turbo)
    refused = sum(over["all"]["refused"].values())
    figures = {
        "goodput_ratio": round(goodput_rps(over) / goodput[best], 3),
        "late_past_patience": late["past_patience"],
        "refused_with_retry_after": over["all"]["refused_with_retry_after"] / refused if refused else 1.0,
        "broken": sum(over["all"]["failed"].values()),
        "grown_mb": round(after["pss"] - before["pss"], 1),
    }
    met = all(figures[name] >= aim if name in AT_LEAST else figures[name] <= aim for name, aim in AIM.items())
    table = {
        "fluid_bound_rps": round(bound_rps, 2),
        "goodput_rps": {str(share): round(value, 2) for share, value in goodput.items()},
        "over": plain(over) | {"goodput_rps": round(goodput_rps(over), 2), "late": late},
        "memory_mb": {"before": before, "after": after},
    }
    print(json.dumps(table), file=sys.stderr, flush=True)
    return {"figures": figures, "aim": AIM, "met": met, "runs": 1, "table": table}


def _words(rate_rps: float, seconds: float) -> tuple[str, ...]:
    return "--synthetic", f"{rate_rps:.3f}:{PROMPT}:{OUTPUT}", "--duration-s", f"{seconds:g}"


def _late(found: Mapping[str, Any], tier: Tier) -> dict[str, int]:
    """Completed answers whose first token came too late: work that helped nobody."""
    waits_s = [
        one["first_s"] - one["due_s"]
        for one in found["answers"]
        if one["first_s"] is not None and one["refused"] is None and one["failure"] is None
    ]
    return {
        "past_promise": sum(wait > tier.slo.ttft_s for wait in waits_s),
        "past_patience": sum(wait > tier.patience_s for wait in waits_s),
    }
