"""How much of a tier is left over for work that may wait a day, and when such work may wait no longer. Pure.

Nothing is left over where a request waits, at the desk or at a replica. Otherwise a share of the places that nobody
uses is: the rest stays free for who comes next, and is seen again before more begins. No replica starts or stays for
such work, but where it would be late else: where the time that is left is at most MARGIN times what one replica needs
for it, and what it takes to start.
"""

from collections.abc import Sequence
from dataclasses import dataclass

PRIORITY = -1  # below every plan
SHARE = 0.5  # of the free places
MARGIN = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """One replica: requests that run there and wait there, as far as its gateway knows."""

    running: int
    waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TierLoad:
    """`held`: requests at the desk that wait. `places`: requests that one replica runs at once.

    `rps`: what one replica answers in a second when it is full. `start_s`: what one takes to start, at most.
    """

    held: int
    replicas: Sequence[Busy]
    places: int
    rps: float
    start_s: float


def spare(tier: TierLoad) -> int:
    """How many requests more may begin now."""
    if tier.held or any(replica.waiting for replica in tier.replicas):
        return 0
    free = sum(max(0, tier.places - replica.running) for replica in tier.replicas)
    return int(SHARE * free)


def due(tier: TierLoad, left_requests: int, left_s: float) -> bool:
    """Whether so many requests, which must have ended in so long, are work like any other by now: they may wake a tier

    that sleeps, and keep one awake.
    """
    return left_requests > 0 and left_s <= MARGIN * (tier.start_s + left_requests / max(tier.rps, 1e-9))
