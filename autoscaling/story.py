"""What the control loop has done lately, in its own words: the last changes, and GPUs that video has lent.

Told from the records of its decisions, one after the other. Ticks that change nothing are no news; a tier that goes
blind, or that the budget holds back, is. A tier that has not been seen yet, as at the start, has not gone blind.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from autoscaling.policy import VIDEO
from autoscaling.record import Lending, Record, Scaling
from autoscaling.signals import Cause, Target

MOST = 24  # events that are kept; the record file has all
TROUBLE: frozenset[Cause] = frozenset(("blind", "budget"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """At `at_s` (Unix time) the target of a tier, or of video, went from `before` to `after` replicas. `cause`: of

    scaling decisions, or "lend" where video makes room for a group.
    """

    at_s: float
    name: str
    before: int
    after: int
    cause: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lent:
    """GPUs on a node that video gave up for groups of a tier."""

    node: str
    tier: str
    gpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """`events`: the newest first, at most MOST. `now`: the last decision, by tier and video."""

    at_s: float = 0.0
    now: Mapping[str, Target] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    lent: tuple[Lent, ...] = ()


def heard(story: Story, record: Record) -> Story:
    """The story with one more record; records of other kinds tell nothing."""
    match record:
        case Scaling():
            return _scaled(story, record)
        case Lending():
            return _lent(story, record)
        case _:
            return story


def still(lent: Iterable[Lent], holding: Iterable[tuple[str, str]], awaiting: Iterable[str]) -> tuple[Lent, ...]:
    """What of it is still lent: its tier holds GPUs of the node, or waits. `holding`: (tier, node) pairs."""
    held, waits = set(holding), set(awaiting)
    return tuple(one for one in lent if (one.tier, one.node) in held or one.tier in waits)


def _scaled(story: Story, record: Scaling) -> Story:
    decision, before = record.decision, record.memory.targets if record.memory is not None else {}
    now = dict(decision.tiers) if decision.video is None else {**decision.tiers, VIDEO: decision.video}
    at_s = record.seen.now_s
    news = [
        Event(
            at_s=at_s,
            name=name,
            before=before.get(name, target.replicas),
            after=target.replicas,
            cause=target.cause,
            reason=target.reason,
        )
        for name, target in now.items()
        if before.get(name, target.replicas) != target.replicas or _new_trouble(story.now.get(name), target)
    ]
    return replace(story, at_s=at_s, now=now, events=(*news, *story.events)[:MOST])


def _new_trouble(last: Target | None, target: Target) -> bool:
    """A decision that goes on as it was is not told again. Who has never been seen cannot go blind."""
    unseen = last is None and target.cause == "blind"
    return target.cause in TROUBLE and not unseen and (last is None or last.cause != target.cause)


def _lent(story: Story, record: Lending) -> Story:
    """Moves that lend nothing follow from a target that was told already."""
    moves, there = record.moves, len(record.workers)
    cells = {room.node: room.cell for room in record.rooms}
    leaving = [worker for worker in record.workers if worker.worker_id in moves.vacate]
    kept = [one for one in story.lent if one.node not in moves.start]
    lent = []
    for worker in leaving:
        cell = cells.get(worker.node)
        tier = next((group.tier for group in record.awaiting if cell in group.cells), None)
        if tier is not None:
            lent.append(Lent(node=worker.node, tier=tier, gpus=worker.gpus))
    if not lent:
        return replace(story, lent=tuple(kept))
    event = Event(
        at_s=story.at_s,
        name=VIDEO,
        before=there,
        after=there - len(leaving) + len(moves.start),
        cause="lend",
        reason=moves.reason,
    )
    return replace(story, lent=tuple([*kept, *lent][-MOST:]), events=(event, *story.events)[:MOST])
