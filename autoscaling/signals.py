"""What the scaling policies see and say: frozen values, the same from a live cluster and from the twin.

Counters only grow, from the start of the cluster, as Prometheus counts; a policy takes differences of its own. They
count demand where it arrives, so they survive zero replicas. A tier whose signals are missing or stale is None: never
read as zero demand.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from cluster.family import Family, Price, Slo, StepCost

Cause = Literal["rise", "fall", "hold", "blind", "budget"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TierSeen:
    """One tier at a moment. Replicas that start or drain hold their GPUs too.

    `arrived_*`: all requests that asked for the tier, refused and held ones included; `arrived_prompt_tokens` after
    known prefix hits. `finished_context_token_steps`: over finished requests, output times the context at its middle;
    it tells how much KV cache a running sequence holds, as mean lengths do not where lengths vary. `kept`, `missed`:
    requests that ended with both promises kept, or not (refused: missed). `ongoing_requests`: on replicas.
    `held_requests`: on no replica yet. `waiting_prefill_tokens`: of both, not yet computed. `ttft_s_sum`, `tpot_s_sum`,
    `duration_s_sum`: over finished requests. `cold_start_s`: measured mean, None before the first measurement.
    """

    ready: int
    starting: int = 0
    draining: int = 0
    arrived_requests: int = 0
    arrived_prompt_tokens: int = 0
    finished_requests: int = 0
    finished_output_tokens: int = 0
    finished_context_token_steps: int = 0
    kept: int = 0
    missed: int = 0
    ongoing_requests: int = 0
    held_requests: int = 0
    waiting_prefill_tokens: int = 0
    ttft_s_sum: float = 0.0
    tpot_s_sum: float = 0.0
    duration_s_sum: float = 0.0
    cold_start_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSeen:
    """A video job that is not finished: GPU-seconds still to do, when it is due, and what it pays in time."""

    left_gpu_s: float
    deadline_s: float
    value_usd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoSeen:
    """`jobs`: waiting and running, the most urgent first."""

    ready: int
    starting: int = 0
    draining: int = 0
    jobs: tuple[JobSeen, ...] = ()
    cold_start_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The family at `now_s`. `gpus`: that the family may hold now, those it holds included."""

    now_s: float
    gpus: int
    tiers: Mapping[str, TierSeen | None] = field(default_factory=dict)
    video: VideoSeen | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Replicas that should exist, starting ones included and draining ones not. `wanted`: without the GPU budget."""

    replicas: int
    wanted: int
    cause: Cause
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    tiers: Mapping[str, Target]
    video: Target | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TierSpec:
    """What a scaling policy knows of a tier beforehand. `cold_start_s`: expected until one has been measured.

    `idle_s`: a tier that may sleep does so after this time without a request.
    """

    ranks: int
    min: int
    max: int
    cost: StepCost
    slo: Slo
    price: Price
    max_running: int
    kv_tokens: int
    cold_start_s: float
    idle_s: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoSpec:
    """`gpus`: of one video replica."""

    gpus: int
    min: int
    max: int
    cold_start_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """The family as a scaling policy knows it, in the order of the family file."""

    tiers: Mapping[str, TierSpec]
    video: VideoSpec | None = None


def spec_of(family: Family) -> Spec:
    tiers = {
        name: TierSpec(
            ranks=tier.ranks,
            min=tier.replicas.min,
            max=tier.replicas.max,
            cost=tier.cost,
            slo=tier.slo,
            price=tier.price,
            max_running=tier.max_running,
            kv_tokens=tier.kv_tokens,
            cold_start_s=tier.cold_start.p50_s,
            idle_s=tier.replicas.idle_s,
        )
        for name, tier in family.tiers.items()
    }
    video = family.video
    if video is None:
        return Spec(tiers=tiers)
    bounds = video.replicas
    return Spec(
        tiers=tiers,
        video=VideoSpec(gpus=video.gpus, min=bounds.min, max=bounds.max, cold_start_s=video.cold_start.p50_s),
    )


class Scaler(Protocol):
    """A policy with its parameters bound. Called every `tick_s` with the memory that it returned, at first None."""

    @property
    def tick_s(self) -> float: ...

    def __call__(self, seen: Seen, memory: Any) -> tuple[Decision, Any]: ...
