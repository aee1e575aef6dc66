"""Which replica: every candidate, in the order in which a request should try them, with the reason.

On a replica with a fresh report the first token and the pace after it are predicted. In ms; q = prefill tokens queued
ahead, B = sequences there with this one, K = KV tokens reserved with this one and its expected output:

    step  = measured/model * step_ms(B, K)                the family's model, corrected by what the replica measured
    ttft  = (q + prompt)*us + ceil((q + prompt)/chunk)*step + wait for a place + 1 ms per KV token that does not fit
    score = ttft/TTFT + 0.5*step/TPOT + 10*max(0, ttft/TTFT - 1) + 10*max(0, step/TPOT - 1)

TTFT and TPOT are the promises of the tier; what this router sent since the report is counted in. The order: replicas
predicted to keep both promises, lowest score first; replicas without a fresh report, by power of two choices on the
requests that this router has there; replicas predicted to break a promise, lowest score first; dead ones. Equal scores
are drawn, so that several routers do not run to the same idle replica. Total: no input makes it raise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from cluster.cost import prefill_us_per_token, step_ms, ttft_ms
from cluster.family import Tier
from cluster.fleet import Candidate, ReplicaReport

KV_SPARE_TOKENS = 300
STALE_S = 2.0
Method = Literal["predicted", "two_choices", "mixed", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request as routing sees it, and the tier it asks. Its true output length is unknown, so it brings a guess."""

    prompt_tokens: int
    expected_output_tokens: int
    tier: Tier


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Predicted time to first token, and per token after it, of a request on one replica."""

    ttft_ms: float
    tpot_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Replica ids, best first, and why.

    `keep`, `miss`: scores of those predicted to keep the SLO, and to miss it. `blind`: how many have no fresh report.
    """

    ids: tuple[str, ...]
    keep: tuple[float, ...] = ()
    miss: tuple[float, ...] = ()
    blind: int = 0
    dead: int = 0
    stale_s: float = STALE_S

    @property
    def method(self) -> Method:
        if self.keep or self.miss:
            return "mixed" if self.blind else "predicted"
        return "two_choices" if self.blind else "none"

    @property
    def reason(self) -> str:
        parts = []
        if self.keep:
            parts.append(f"{len(self.keep)} predicted to keep the SLO, lowest score {self.keep[0]:.2f} first")
        if self.blind:
            parts.append(f"{self.blind} without a report younger than {self.stale_s:g} s, by power of two choices")
        if self.miss:
            parts.append(f"{len(self.miss)} predicted to miss the SLO, lowest score {self.miss[0]:.2f} first")
        if self.dead:
            parts.append(f"{self.dead} dead, last")
        return "; ".join(parts) or "no replica"


def predict(candidate: Candidate, report: ReplicaReport, asked: Ask) -> Latency | None:
    """What the request would see there, None where the numbers make no sense."""
    try:
        latency = _latency(candidate, report, asked)
    except (ArithmeticError, ValueError):
        return None
    return latency if math.isfinite(latency.ttft_ms) and math.isfinite(latency.tpot_ms) else None


def _latency(candidate: Candidate, report: ReplicaReport, asked: Ask) -> Latency:
    tier = asked.tier
    ahead = report.running + report.waiting + candidate.sent_requests
    prefill = report.waiting_prefill_tokens + candidate.sent_prefill_tokens + asked.prompt_tokens
    kv = report.kv_used_tokens + prefill + asked.expected_output_tokens
    step = _correction(report, tier) * step_ms(tier.cost, min(ahead + 1, tier.max_running), kv)
    us = report.prefill_us_per_token or prefill_us_per_token(tier.cost, asked.prompt_tokens)
    # Beyond max_running a request waits until enough have finished; one does every output/max_running steps.
    place = max(0, ahead + 1 - tier.max_running) * asked.expected_output_tokens / tier.max_running * step
    overflow = max(0, kv + KV_SPARE_TOKENS - report.kv_capacity_tokens)
    first = ttft_ms(prefill, us, step, tier.prefill_chunk_tokens) + place + overflow
    return Latency(ttft_ms=first, tpot_ms=step)


def _correction(report: ReplicaReport, tier: Tier) -> float:
    # An idle replica measured some earlier batch: taken as is, it would look as slow as it was when full.
    if report.running == 0 or report.step_ms == 0:
        return 1.0
    return report.step_ms / step_ms(tier.cost, report.running, report.kv_used_tokens)


def order(replicas: Sequence[Candidate], asked: Ask, *, now_s: float, rng: Random, stale_s: float = STALE_S) -> Ranking:
    """Every candidate exactly once. The same arguments and generator state give the same ranking."""
    slo = asked.tier.slo
    kept: list[tuple[float, float, str]] = []
    broken: list[tuple[float, float, str]] = []
    blind: list[Candidate] = []
    dead = [candidate.replica_id for candidate in replicas if candidate.dead]
    for candidate in replicas:
        if candidate.dead:
            continue
        report = candidate.report
        fresh = report is not None and now_s - report.at_s <= stale_s
        latency = predict(candidate, report, asked) if report is not None and fresh else None
        if latency is None:
            blind.append(candidate)
            continue
        ttft, tpot = latency.ttft_ms / 1000 / slo.ttft_s, latency.tpot_ms / slo.tpot_ms
        excess = max(0.0, ttft - 1) + max(0.0, tpot - 1)
        (broken if excess > 0 else kept).append((ttft + 0.5 * tpot + 10 * excess, rng.random(), candidate.replica_id))
    kept.sort()
    broken.sort()
    return Ranking(
        ids=(*(key[2] for key in kept), *_two_choices(blind, rng), *(key[2] for key in broken), *dead),
        keep=tuple(key[0] for key in kept),
        miss=tuple(key[0] for key in broken),
        blind=len(blind),
        dead=len(dead),
        stale_s=stale_s,
    )


def _two_choices(pool: Sequence[Candidate], rng: Random) -> list[str]:
    """Two drawn at random, the one with fewer requests goes; again among the rest."""
    left, ids = list(pool), []
    rng.shuffle(left)
    while len(left) > 1:
        # After the shuffle the last two are a random pair; the loser returns to a random place.
        first, second = left.pop(), left.pop()
        winner, loser = (first, second) if first.ongoing_requests <= second.ongoing_requests else (second, first)
        ids.append(winner.replica_id)
        left.insert(rng.randint(0, len(left)), loser)
    return ids + [candidate.replica_id for candidate in left]
