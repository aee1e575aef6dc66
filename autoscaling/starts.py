"""How long replicas take from the wish for them to readiness, from what a control loop sees of them at each tick.

    mean = replica-seconds spent starting / replicas that became ready          the last 16 or so weigh most

By Little's law, without knowing any replica by name. A start that waits for GPUs counts with its wait, but none counts
more than LONGEST_S: demand is held for a cold start, so a night in which nothing could start would be paid for all day.
One that begins and ends between two looks counts as half the time between them.
"""

from dataclasses import dataclass

MOST = 16.0
LONGEST_S = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Starts:
    """`ready`, `starting`: replicas at `at_s`. `waited_s` over `started`, both faded alike."""

    at_s: float
    ready: int
    starting: int
    waited_s: float = 0.0
    started: float = 0.0

    @property
    def mean_s(self) -> float | None:
        """None before the first start."""
        return self.waited_s / self.started if self.started else None


def looked(before: Starts | None, ready: int, starting: int, now_s: float) -> Starts:
    """With another look, at `now_s`."""
    if before is None:
        return Starts(at_s=now_s, ready=ready, starting=starting)
    passed_s = max(0.0, now_s - before.at_s)
    risen = max(0, ready - before.ready)
    unseen = max(0, risen - before.starting)
    waited_s = before.waited_s + passed_s * ((before.starting + starting) / 2 + unseen / 2)
    started = before.started + risen
    waited_s = min(waited_s, LONGEST_S * (started + starting))
    fade = min(1.0, MOST / started) if started else 1.0
    return Starts(at_s=now_s, ready=ready, starting=starting, waited_s=waited_s * fade, started=started * fade)
