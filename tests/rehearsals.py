"""Builders of rehearsals that nobody ran."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from autoscaling.report import Course, Figures, Report
from deployments.report_table import Rehearsal


def figures(**changes: Any) -> Figures:
    given: dict[str, Any] = {
        "requests": 1000,
        "completed": 990,
        "rejected": {"overloaded": 8},
        "failed": {"node_lost": 2},
        "attainment": 0.9875,
        "ttft_p50_s": 0.3,
        "ttft_p99_s": 1.8,
        "tpot_p50_ms": 22.0,
        "tpot_p99_ms": 44.0,
        "bad_minutes": 0.05,
        "gpu_hours": 12.0,
        "gpu_hours_floor": 8.0,
        "spilled": 3,
        "jobs": 0,
        "jobs_in_time": 0,
        "cost_usd": 36.0,
        "value_usd": 1234.5,
    }
    return Figures(**given | changes)


def course(minutes: int = 10, missing: int | None = None) -> Course:
    """A tick every 10 s; of one minute nothing is known, where `missing` says which."""
    now_s = np.arange(0.0, 60.0 * minutes + 1, 10.0)
    minute_s = np.delete(np.arange(0.0, 60.0 * minutes, 60.0), [] if missing is None else [missing])
    ready = {"pro": 1.0 + now_s // 100, "mini": np.zeros(len(now_s)), "video": np.ones(len(now_s))}
    return Course(
        now_s=now_s,
        arrivals_per_s={"pro": 3.0 + np.sin(now_s), "mini": np.zeros(len(now_s))},
        replicas=ready,
        held={name: np.zeros(len(now_s)) for name in ready},
        gpus=4 * ready["pro"] + 1,
        minute_s=minute_s,
        missed_share=np.linspace(0.0, 0.3, len(minute_s)),
    )


def rehearsal(
    name: str = "moray",
    *,
    tiers: Mapping[str, Figures] | None = None,
    conditions: Mapping[str, Any] | None = None,
    minutes: int = 10,
    missing: int | None = None,
    **changes: Any,
) -> Rehearsal:
    report = Report(figures=figures(**changes), course=course(minutes, missing), tiers=tiers or {})
    return Rehearsal(name=name, conditions=conditions or {"family": "tested"}, report=report, wall_s=0.5)
