"""A replica that fails gets no new requests for a while; then one on trial, whose end decides.

    out for LEAST_S * 2^(failures - 1), at most MOST_S

A failure while it is out is of the same fault and not counted: of a crowd that fails together, only the first is.
A value per replica; whoever keeps it forgets it with the replica.
"""

import math
from dataclasses import dataclass
from typing import Literal

LEAST_S = 2.0
MOST_S = 60.0
Event = Literal["sent", "done", "failed", "left"]


@dataclass(frozen=True, slots=True)
class Breaker:
    """`failures`: in a row, 0 is closed. `until_s`: out until then. `trial`: one request is on its way since."""

    failures: int = 0
    until_s: float = -math.inf
    trial: bool = False

    def allows(self, now_s: float) -> bool:
        return self.failures == 0 or (now_s >= self.until_s and not self.trial)


CLOSED = Breaker()


def after(state: Breaker, event: Event, now_s: float) -> Breaker:
    """`event`: a request was sent there, was answered, failed there, or left without telling anything."""
    if event == "failed":
        if state.failures and now_s < state.until_s:
            return state
        failures = state.failures + 1
        return Breaker(failures, now_s + min(MOST_S, LEAST_S * 2.0 ** min(failures - 1, 10)))
    if state.failures == 0:
        return state
    if event == "sent":
        return Breaker(state.failures, state.until_s, now_s >= state.until_s)
    if event == "done" and state.trial:
        return CLOSED
    return Breaker(state.failures, state.until_s) if event == "left" else state
