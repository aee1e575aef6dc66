"""What is: frozen snapshots of replicas and cells, as the router and the planner see them.

A replica reports about once a second, as a small dict of rounded numbers, because every change of it is broadcast to
all routers. Clocks of machines differ, so a report's age is counted on the receiver's clock from when it arrived.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaReport:
    """What a replica said of itself, `at_s` on the reader's clock. A measured cost of 0: not measured yet."""

    replica_id: str
    at_s: float
    running: int
    waiting: int
    waiting_prefill_tokens: int
    kv_used_tokens: int
    kv_capacity_tokens: int
    step_ms: float
    prefill_us_per_token: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A replica that may serve a request, with what this gateway alone knows of it.

    `ongoing_requests`: sent from here and not yet finished. `sent_*`: sent from here since the report, so not in it;
    `sent_done_s`: when their prompts will be computed. `ended_*`: in the report, and finished since. `open`: takes new
    requests. `slowness`: measured over modelled step, remembered for while it is idle.
    """

    replica_id: str
    ongoing_requests: int
    report: ReplicaReport | None = None
    sent_requests: int = 0
    sent_prefill_tokens: int = 0
    sent_done_s: float = -math.inf
    ended_requests: int = 0
    ended_kv_tokens: int = 0
    open: bool = True
    slowness: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One machine of the cluster as Ray lists it. On accelerator cpu its "GPUs" are slots for ranks."""

    name: str
    gpus: int
    free_gpus: int
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CellState:
    """A node or NVLink domain. `free_gpus`: what nobody outside the family holds."""

    name: str
    gpus: int
    free_gpus: int


DEAD: Mapping[str, float] = {"dead": 1}  # instead of a report
COUNTS = ("running", "waiting", "waiting_prefill_tokens", "kv_used_tokens", "kv_capacity_tokens")
COSTS = ("step_ms", "prefill_us_per_token")


class Measured(Protocol):
    """What an engine's own report and a ReplicaReport have in common."""

    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def waiting_prefill_tokens(self) -> int: ...
    @property
    def kv_used_tokens(self) -> int: ...
    @property
    def kv_capacity_tokens(self) -> int: ...
    @property
    def step_ms(self) -> float: ...
    @property
    def prefill_us_per_token(self) -> float: ...


def report_to_stats(measured: Measured, *, beat_s: float) -> dict[str, float]:
    """What a replica hands to the routers. `beat_s`, its own clock, makes every report differ from the one before:

    that nothing else has changed is news too, and without it an idle replica's report would grow stale.
    """
    stats: dict[str, float] = {name: getattr(measured, name) for name in COUNTS}
    stats |= {name: round(getattr(measured, name), 2) for name in COSTS}
    return stats | {"beat_s": round(beat_s, 1)}


def report_from_stats(stats: object, *, replica_id: str, received_s: float) -> ReplicaReport | None:
    """The report in such a dict, None where a field is missing, not a finite number, or negative. Never raises."""
    if not isinstance(stats, dict):
        return None
    given = [_number(stats.get(name)) for name in (*COUNTS, *COSTS)]
    known = [value for value in given if value is not None]
    if len(known) < len(given):
        return None
    running, waiting, waiting_prefill, kv_used, kv_capacity, step_ms, prefill_us = known
    return ReplicaReport(
        replica_id=replica_id,
        at_s=received_s,
        running=int(running),
        waiting=int(waiting),
        waiting_prefill_tokens=int(waiting_prefill),
        kv_used_tokens=int(kv_used),
        kv_capacity_tokens=int(kv_capacity),
        step_ms=step_ms,
        prefill_us_per_token=prefill_us,
    )


def _number(value: object) -> float | None:
    """A finite number >= 0 that a double holds, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and number >= 0 else None
