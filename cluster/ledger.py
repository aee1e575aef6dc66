"""Where the time of one request went: stages that follow each other, none counted twice, together its whole time.

The gateway notes Marks on its own clock; a replica reports durations, since clocks of two machines differ.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

STAGES: Mapping[str, str] = MappingProxyType(
    {
        "gateway": "read, checked and measured by the gateway",
        "queue": "held by the gateway until it was sent to a replica",
        "lost": "spent on replicas that were lost, and until another one was found",
        "router": "on the way to the replica, and first bytes on their way back",
        "wait": "in the engine's queue, until the first step that had a place for it",
        "prefill": "until the first token",
        "decode": "from the first token to the last",
        "stream": "gathered, sent and taken by the client, beyond the time of decoding",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """Instants of one clock, seconds, in this order. `sent_s`: to the first replica; `last_sent_s`: to the last one.

    `first_s`: the first bytes of the answer came; None where it came whole.
    """

    arrived_s: float
    asked_s: float
    sent_s: float
    last_sent_s: float
    first_s: float | None
    ended_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """On the last replica, seconds from acceptance: to the first step with a place, the first token, the end."""

    wait_s: float = 0.0
    first_s: float = 0.0
    total_s: float = 0.0


def ledger(marks: Marks, spent: Spent) -> Mapping[str, float]:
    """Seconds by stage, in the order of STAGES. None is negative; their sum is the time from arrival to end.

    A stage gets what it claims, or what those before it have left: durations of two clocks need not fit exactly.
    What nobody claims is the stream's, or the router's where the answer came whole.
    """
    left_s = max(0.0, marks.ended_s - marks.arrived_s)
    rest = "router" if marks.first_s is None else "stream"
    there_s = marks.first_s - marks.last_sent_s - spent.first_s if marks.first_s is not None else 0.0
    claims = {
        "gateway": marks.asked_s - marks.arrived_s,
        "queue": marks.sent_s - marks.asked_s,
        "lost": marks.last_sent_s - marks.sent_s,
        "router": there_s,
        "wait": spent.wait_s,
        "prefill": spent.first_s - spent.wait_s,
        "decode": spent.total_s - spent.first_s,
        "stream": 0.0,
    }
    stages = {}
    for stage, claim_s in claims.items():
        stages[stage] = min(left_s, max(0.0, claim_s))
        left_s -= stages[stage]
    stages[rest] += left_s
    return stages


def server_timing(stages: Mapping[str, float]) -> str:
    """As the response header of that name has it, milliseconds: https://www.w3.org/TR/server-timing/."""
    return ", ".join(f"{stage};dur={seconds * 1e3:.1f}" for stage, seconds in stages.items())
