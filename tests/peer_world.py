"""A tier as the policies of others see it, and how to lead one of them through time."""

from collections.abc import Iterable
from typing import Any

from autoscaling.signals import Scaler, Seen, Spec, Target, TierSeen, TierSpec
from cluster.family import Price, Slo, StepCost

# A step takes 10 ms + 1 ms per sequence; a prompt token 100 us.
COST = StepCost(a_ms=10, b_ms_per_seq=1, c_ms_per_ktok=0, prefill_us_per_token={1000: 100}, source="a test")


def tier(least: int = 1, most: int = 20, **changed: Any) -> TierSpec:
    given: dict[str, Any] = {
        "ranks": 1,
        "cost": COST,
        "slo": Slo(ttft_s=1, tpot_ms=50),
        "price": Price(input_usd_per_mtok=1, output_usd_per_mtok=1),
        "max_running": 10,
        "kv_tokens": 1_000_000,
        "cold_start_s": 30.0,
    }
    return TierSpec(min=least, max=most, **{**given, **changed})


def spec(least: int = 1, most: int = 20, **changed: Any) -> Spec:
    return Spec(tiers={"pro": tier(least, most, **changed)})


def look(now_s: float, **tier_seen: Any) -> Seen:
    return Seen(now_s=now_s, gpus=1000, tiers={"pro": TierSeen(**tier_seen)})


def lead(scaler: Scaler, looks: Iterable[Seen], memory: Any = None) -> list[Target]:
    """The tier's target after each look."""
    targets = []
    for seen in looks:
        decision, memory = scaler(seen, memory)
        targets.append(decision.tiers["pro"])
    return targets


def counts(scaler: Scaler, looks: Iterable[Seen]) -> list[int]:
    return [target.replicas for target in lead(scaler, looks)]
