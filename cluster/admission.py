"""Whether a request goes to its best replica now, waits in the router, or is refused early; and which held one is next.

Where every promise holds at the best replica: dispatch. Otherwise the first of these that applies, with

    waited = now - arrived                     first = waited + min(ttft there, wait until a place appears)

    refuse     first > patience                better a refusal that says when to come back than a wait in vain
    hold       waited + wait <= TTFT           a place may yet appear in time for the promise
    dispatch   the best replica is calm        little work is ahead of it there: late is better than never
    postpone   otherwise                       its promise is lost: it waits behind all that can still be in time

    calm       ttft - own prefill <= TTFT*(CALM + h), pace <= TPOT, h = HURRY*(waited/patience)^2

Why postpone: in an overload served in order, a queue longer than the promise makes everybody late. Sent only where it
is calm, those who are late already cost few others a promise; and never the pace, which all who run there share: in a
long overload everybody is late, and would slow everybody down. A refused caller is told to come back when the wait will
have shrunk to the patience. Held requests: highest priority, then the tenant served least, then the earliest deadline.
Times in seconds. Ignored: what a held request costs others.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cluster.loads import Choice

LEAST_RETRY_S = 1.0
CALM_SHARE = 0.25  # of the promised first token: work ahead of it for so long still counts as calm
HURRY = 0.5  # of the promised first token more work may be ahead of a request at the end of its patience


@dataclass(frozen=True, slots=True)
class Verdict:
    """`retry_after_s` comes with a refusal only: finite, at least 1."""

    action: Literal["dispatch", "hold", "postpone", "refuse"]
    reason: str
    retry_after_s: float | None = None


IN_TIME = Verdict("dispatch", "every promise there holds")
LATE = Verdict("dispatch", "no place in time: goes late to a replica that is calm")
BEHIND = Verdict("postpone", "no place in time: behind all that can still be in time")


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """What a request was promised, and its times. `ttft_s` and `patience_s` (above 0) count from its arrival.

    `wait_s`: from now until a place is expected, say on a replica that starts; inf where none is coming.
    """

    now_s: float
    arrived_s: float
    ttft_s: float
    tpot_ms: float
    patience_s: float
    wait_s: float


def decide(best: Choice | None, due: Due) -> Verdict:
    """`best`: the choice of routing. Ask again for a held or postponed request when the loads have changed."""
    here_s = math.inf
    if best is not None and best.index is not None:
        if best.feasible:
            return IN_TIME
        here_s = best.ttft_s
    waited_s = due.now_s - due.arrived_s
    first_s = min(here_s, due.wait_s)
    if waited_s + first_s > due.patience_s:
        return _refusal(waited_s, first_s, due.patience_s)
    if waited_s + due.wait_s <= due.ttft_s:
        left_s = due.ttft_s - waited_s
        return Verdict("hold", f"a place is expected in {due.wait_s:.2f} s, {left_s:.2f} s before the deadline")
    if best is not None and here_s < math.inf and _calm(best, due, waited_s):
        return LATE
    return BEHIND


def _calm(best: Choice, due: Due, waited_s: float) -> bool:
    hurry = HURRY * (waited_s / due.patience_s) ** 2
    quick = best.ttft_s - best.own_s <= due.ttft_s * (CALM_SHARE + hurry)
    return quick and best.tpot_ms <= due.tpot_ms


def _refusal(waited_s: float, first_s: float, patience_s: float) -> Verdict:
    if math.isinf(first_s):
        # Nothing is starting and nothing drains: the patience is the only measure of time there is.
        return Verdict("refuse", "no replica, and none is starting", retry_after_s(first_s, patience_s))
    reason = f"first token expected in {first_s:.1f} s after {waited_s:.1f} s of waiting; patience is {patience_s:g} s"
    return Verdict("refuse", reason, retry_after_s(first_s, patience_s))


def retry_after_s(wait_s: float, patience_s: float) -> float:
    """When a wait so long will have shrunk to the patience: finite, at least 1."""
    return max(LEAST_RETRY_S, patience_s if math.isinf(wait_s) else wait_s - patience_s)


def queue_wait_s(ahead: int, replicas: int, replica_rps: float) -> float:
    """Until `ahead` others have gone to replicas that each take so many per second; inf where none does."""
    rps = replicas * replica_rps
    return ahead / rps if rps > 0 else math.inf


def patience_from_s(patience_s: float, asked_s: float, awake_s: float | None) -> float:
    """Of a request, from `asked_s` on. A tier that sleeps is not saturated: nobody is shed for its cold start.

    `awake_s`: since when the tier has replicas; None: it has none.
    """
    return math.inf if awake_s is None else patience_s + max(0.0, awake_s - asked_s)


def overdue_s(now_s: float, ttft_s: float, patience_s: float, awake_s: float | None) -> float:
    """Held requests whose first token was due before that have lost their patience; `awake_s` as above."""
    return -math.inf if awake_s is None or now_s - patience_s <= awake_s else now_s - patience_s + ttft_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The most urgent held request of one tenant. `cost_gpu_s`: expected, what its tenant is charged when it goes."""

    tenant: str
    priority: int
    deadline_s: float
    cost_gpu_s: float


def next_head(heads: Sequence[Head], served_gpu_s: Mapping[str, float]) -> int:
    """The index of the one to go next. `served_gpu_s`: counters of fair share, 0 for a tenant without one."""

    def order(index: int) -> tuple[int, float, float]:
        head = heads[index]
        return -head.priority, served_gpu_s.get(head.tenant, 0.0), head.deadline_s

    return min(range(len(heads)), key=order)
