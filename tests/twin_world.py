"""Small worlds for the twin: families whose arithmetic is easy, workloads of a few requests, plain policies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autoscaling.signals import Decision, Scaler, Seen, Target
from autoscaling.twin import Scenario, _Twin
from cluster.cost import Chunking, Service, service
from cluster.family import Cell, ColdStart, Family, Price, Replicas, Slo, StepCost, Tier, Video, VideoCost, VideoPrice
from cluster.family import VideoSlo as VideoPromise
from cluster.loads import Ask, Choice, Loads, Router
from cluster.workload import Jobs, Workload

COST: Mapping[str, Any] = {
    # A step takes 10 ms + 1 ms per sequence; a prompt token 100 us.
    "a_ms": 10.0,
    "b_ms_per_seq": 1.0,
    "c_ms_per_ktok": 0.0,
    "prefill_us_per_token": {1000: 100.0},
    "source": "a test",
}


def tier(name: str = "pro", *, cost: Mapping[str, Any] | None = None, first: int = 1, **changed: Any) -> Tier:
    given: dict[str, Any] = {
        "names": (f"model-{name}",),
        "checkpoint": "none",
        "engine": "simulated",
        "context_tokens": 10_000,
        "kv_tokens": 100_000,
        "max_running": 16,
        "prefill_chunk_tokens": 500,
        "slo": Slo(ttft_s=1, tpot_ms=50),
        "price": Price(input_usd_per_mtok=1, output_usd_per_mtok=2),
        "replicas": Replicas(min=0, max=100, initial=first),
        "cold_start": ColdStart(p50_s=10, p99_s=10),
        "patience_s": 10.0,
        "cost": StepCost(**{**COST, **(cost or {})}),
    }
    return Tier(**{**given, **changed})


def one_service(chunking: Chunking = "slack", *, cost: Mapping[str, Any] | None = None, **changed: Any) -> Service:
    return service(tier(cost=cost, **changed), "pro", chunking=chunking)


def video(gpus: int = 1, first: int = 1) -> Video:
    return Video(
        names=("film",),
        checkpoint="none",
        gpus=gpus,
        sizes=("64x64",),
        seconds=(1,),
        fps=16,
        steps=10,
        slo=VideoPromise(deadline_s=600),
        price=VideoPrice(usd_per_second=1),
        replicas=Replicas(min=0, max=100, initial=first),
        cold_start=ColdStart(p50_s=10, p99_s=10),
        cost=VideoCost(base_s=1, linear_s_per_mtok=0, quadratic_s_per_mtok2=0, source="a test"),
    )


def family(*tiers: Tier, node_gpus: int = 8, **changed: Any) -> Family:
    """The key of a tier is its first name without "model-". By default one tier `pro` with one replica."""
    given: dict[str, Any] = {
        "name": "tested",
        "accelerator": "cuda",
        "gpu_budget_gpus": 1000,
        "gpu_usd_per_hour": 3.6,
        "cells": (Cell(name="node", count=4, gpus=node_gpus),),
        "tiers": {one.names[0].removeprefix("model-"): one for one in tiers or (tier(),)},
    }
    return Family(**{**given, **changed})


def workload(
    *rows: tuple[float, int, int], models: Sequence[str] = ("pro",), model: Sequence[int] | None = None, **changed: Any
) -> Workload:
    """Rows of arrival, prompt and output tokens."""
    arrival_s, prompt, output = zip(*rows, strict=True) if rows else ((), (), ())
    given: dict[str, Any] = {
        "arrival_s": np.array(arrival_s, dtype=float),
        "prompt_tokens": np.array(prompt, dtype=np.int64),
        "output_tokens": np.array(output, dtype=np.int64),
        "model": np.zeros(len(rows), dtype=np.int64) if model is None else np.array(model, dtype=np.int64),
        "tenant": np.zeros(len(rows), dtype=np.int64),
        "models": tuple(models),
    }
    return Workload(**{**given, **changed})


def jobs(*rows: tuple[float, int, float, float]) -> Jobs:
    """Rows of arrival, steps, seconds per step and deadline; each pays 1 USD in time."""
    arrival_s, steps, step_s, deadline_s = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Jobs(
        arrival_s=np.array(arrival_s, dtype=float),
        steps=np.array(steps, dtype=np.int64),
        step_s=np.array(step_s, dtype=float),
        deadline_s=np.array(deadline_s, dtype=float),
        value_usd=np.ones(len(rows)),
    )


def decision(video: int | None = None, **replicas: int) -> Decision:
    def target(count: int) -> Target:
        return Target(replicas=count, wanted=count, cause="hold", reason="")

    return Decision(
        tiers={name: target(count) for name, count in replicas.items()}, video=None if video is None else target(video)
    )


@dataclass
class Planned:
    """A scaler that does from each time on what is planned, whatever it sees; it remembers what it saw."""

    plan: Mapping[float, Decision]
    tick_s: float = 1.0
    seen: list[Seen] = field(default_factory=list)

    def __call__(self, seen: Seen, memory: Any) -> tuple[Decision, Any]:
        self.seen.append(seen)
        return self.plan[max(at_s for at_s in self.plan if at_s <= seen.now_s)], memory


def steady(video: int | None = None, **replicas: int) -> Planned:
    return Planned({0.0: decision(video, **replicas)})


def shortest(loads: Loads, ask: Ask, service: Service, now_s: float, packing: bool) -> Choice:
    """A router: fewest sequences first, the lowest index among equals; it never says no where a replica is open."""
    if not loads.open.any():
        return Choice(None, np.inf, np.inf, False, "none")
    index = int(np.argmin(np.where(loads.open, loads.sequences, np.inf)))
    return Choice(index, 0.0, 0.0, True, "peer")


def played(
    work: Workload,
    scaler: Scaler,
    given: Family | None = None,
    *,
    router: Router = shortest,
    jobs: Jobs | None = None,
    **changed: Any,
) -> _Twin:
    twin = _Twin(Scenario(family=given or family(), **changed), work, jobs, scaler, router)
    twin.run(None)
    return twin


def first_s(twin: _Twin) -> list[float]:
    """When each request got its first token."""
    return [float(at_s + ttft_s) for at_s, ttft_s in zip(twin.workload.arrival_s, twin.tally.ttft_s, strict=True)]


ONE = workload((0.0, 100, 101))  # the first token after 20 ms, the last after 1.12 s
