"""Which video replicas make room for expert groups, and where new ones start.

A group that waits and fits nowhere gets the node of its cells where the fewest video replicas must stop, then where the
least work is lost; the node is kept for it until it has started. A group that fits somewhere already needs nobody to
stop, but the GPUs that it will take are not lent. A group larger than any node gets the GPUs of several.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """One node. `free_gpus`: that nobody holds now. `cell`: the cell that it belongs to."""

    node: str
    cell: str
    gpus: int
    free_gpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerHeld:
    """A video replica. `lost_gpu_s`: work since its last saved step that is lost when it stops now; 0 when idle."""

    worker_id: str
    node: str
    gpus: int
    leaving: bool
    idle: bool
    lost_gpu_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Awaiting:
    """An expert group that waits for GPUs: `ranks` on one node of `cells` (of several nodes where none is so large)."""

    tier: str
    ranks: int
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How many video replicas there should be, of `gpus` each, in `cells`. `beside`: nodes that they like best."""

    target: int
    gpus: int
    cells: tuple[str, ...]
    beside: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """Nodes on which a video replica starts (once per replica), workers that stop at their next step, and why."""

    start: tuple[str, ...] = ()
    vacate: tuple[str, ...] = ()
    reason: str = ""


@dataclass(slots=True, kw_only=True)
class _Place:
    """A node while it is planned. `soon_gpus`: of workers that leave. `kept`: for a group that waits."""

    room: Room
    free_gpus: int
    soon_gpus: int
    staying: list[WorkerHeld]
    kept: bool = False

    @property
    def coming_gpus(self) -> int:
        return self.free_gpus + self.soon_gpus

    @property
    def clearable_gpus(self) -> int:
        return self.coming_gpus + sum(worker.gpus for worker in self.staying)

    def stops(self, gpus: int) -> list[WorkerHeld]:
        """The fewest workers, then the least work lost, until `gpus` are free; all of them where that is too few."""
        chosen: list[WorkerHeld] = []
        short = gpus - self.coming_gpus
        for worker in sorted(self.staying, key=lambda one: (-one.gpus, _loss(one))):
            if short <= 0:
                break
            chosen.append(worker)
            short -= worker.gpus
        return chosen

    def stop(self, workers: Iterable[WorkerHeld]) -> None:
        for worker in workers:
            self.staying.remove(worker)
            self.soon_gpus += worker.gpus

    def claim(self, gpus: int) -> None:
        now = min(gpus, self.free_gpus)
        self.free_gpus -= now
        self.soon_gpus -= gpus - now


@dataclass(slots=True, kw_only=True)
class _Plan:
    places: dict[str, _Place]
    vacate: list[WorkerHeld] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def stop(self, place: _Place, workers: Sequence[WorkerHeld]) -> None:
        place.stop(workers)
        self.vacate.extend(workers)


def lend(rooms: Sequence[Room], workers: Sequence[WorkerHeld], awaiting: Sequence[Awaiting], video: Wish) -> Moves:
    """Free GPUs of the rooms must not include those that a starting worker will take.

    Workers on nodes that are not in `rooms` stop: one that was to start on a node that is lost would wait for ever.
    """
    plan = _Plan(places=_places(rooms, workers))
    _leave_lost(plan, workers)
    for group in sorted(awaiting, key=lambda one: -one.ranks):
        _make_room(plan, group)
    gone = {worker.worker_id for worker in plan.vacate}
    staying = [worker for worker in workers if not worker.leaving and worker.worker_id not in gone]
    surplus = _surplus(plan, staying, video.target)
    start = _starts(plan, video, video.target - len(staying))
    return Moves(
        start=start,
        vacate=tuple(worker.worker_id for worker in [*plan.vacate, *surplus]),
        reason="; ".join([*plan.reasons, *_said(len(surplus), start, video.target, len(staying))]),
    )


def _leave_lost(plan: _Plan, workers: Sequence[WorkerHeld]) -> None:
    lost = [worker for worker in workers if not worker.leaving and worker.node not in plan.places]
    plan.vacate.extend(lost)
    if lost:
        plan.reasons.append(f"{len(lost)} video replicas of lost nodes stop")


def _loss(worker: WorkerHeld) -> tuple[bool, float, str]:
    return not worker.idle, worker.lost_gpu_s, worker.worker_id


def _places(rooms: Sequence[Room], workers: Sequence[WorkerHeld]) -> dict[str, _Place]:
    return {
        room.node: _Place(
            room=room,
            free_gpus=room.free_gpus,
            soon_gpus=sum(worker.gpus for worker in workers if worker.node == room.node and worker.leaving),
            staying=[worker for worker in workers if worker.node == room.node and not worker.leaving],
        )
        for room in rooms
    }


def _make_room(plan: _Plan, group: Awaiting) -> None:
    places = [place for place in plan.places.values() if place.room.cell in group.cells]
    if group.ranks > max((place.room.gpus for place in places), default=0):
        _gather(plan, group, places)
        return
    fitting = [place for place in places if place.free_gpus >= group.ranks]
    if fitting:
        min(fitting, key=lambda place: (place.free_gpus, place.room.node)).claim(group.ranks)
        return
    enough = [place for place in places if place.clearable_gpus >= group.ranks]
    if enough:
        _clear(plan, group, min(enough, key=lambda place: _price(place, group.ranks)), group.ranks)


def _price(place: _Place, ranks: int) -> tuple[int, float, str]:
    stops = place.stops(ranks)
    return len(stops), sum(worker.lost_gpu_s for worker in stops), place.room.node


def _clear(plan: _Plan, group: Awaiting, place: _Place, gpus: int) -> None:
    stops = place.stops(gpus)
    plan.stop(place, stops)
    place.claim(gpus)
    place.kept = True
    made = f"{len(stops)} video replicas of it stop" if stops else "video replicas of it are leaving"
    plan.reasons.append(f"{group.tier} waits for {group.ranks} GPUs: {place.room.node} is kept for it, {made}")


def _gather(plan: _Plan, group: Awaiting, places: list[_Place]) -> None:
    """GPUs of several nodes: what is free first, then what is about to be, then the nodes with the most to clear."""
    if sum(place.clearable_gpus for place in places) < group.ranks:
        return
    short = group.ranks
    if sum(place.free_gpus for place in places) >= short:
        for place in places:
            taken = min(short, place.free_gpus)
            place.claim(taken)
            short -= taken
        return
    coming = {place.room.node: place.coming_gpus for place in places}
    short -= sum(coming.values())
    for place in sorted(places, key=lambda one: (-one.clearable_gpus, one.room.node)):
        more = min(max(short, 0), place.clearable_gpus - place.coming_gpus)
        short -= more
        if wanted := coming[place.room.node] + more:
            _clear(plan, group, place, wanted)


def _surplus(plan: _Plan, staying: Sequence[WorkerHeld], target: int) -> list[WorkerHeld]:
    """Those on nodes that are kept first, then the idle, then those that lose least."""

    def order(worker: WorkerHeld) -> tuple[bool, bool, float, str]:
        return not plan.places[worker.node].kept, *_loss(worker)

    return sorted(staying, key=order)[: max(len(staying) - target, 0)]


def _starts(plan: _Plan, video: Wish, count: int) -> tuple[str, ...]:
    """One node per replica: those liked best first, then the fullest that has room."""
    places = [place for place in plan.places.values() if place.room.cell in video.cells and not place.kept]
    start: list[str] = []
    while len(start) < count and (roomy := [place for place in places if place.free_gpus >= video.gpus]):
        best = min(roomy, key=lambda one: (one.room.node not in video.beside, one.free_gpus, one.room.node))
        best.claim(video.gpus)
        start.append(best.room.node)
    return tuple(start)


def _said(surplus: int, start: tuple[str, ...], target: int, staying: int) -> list[str]:
    said = [f"{surplus} video replicas beyond {target} stop"] if surplus else []
    if start:
        said.append(f"video replicas start on {', '.join(start)}")
    if (short := target - staying - len(start)) > 0:
        said.append(f"{short} video replicas wait for free GPUs")
    return said
