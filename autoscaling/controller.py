"""The live control loop: look and observe, decide, lend, act, record; every `tick_s`, and at once when woken.

What the policies decide is decided in autoscaling.policy and cluster.lending; here it is only carried from one to the
next. A part that fails is counted and logged, and the last targets stay.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from autoscaling.parameters import Parameters
from autoscaling.policy import VIDEO, Memory, step
from autoscaling.readings import Count, Fleet, Reading, asked_for, read
from autoscaling.record import Lending, Record, Scaling
from autoscaling.series import Look
from autoscaling.series import Memory as Series
from autoscaling.signals import Decision, JobSeen, Seen, Spec
from autoscaling.starts import Starts, looked
from cluster.lending import Awaiting, Moves, Room, Wish, WorkerHeld, lend

PART_S = 5.0  # no part of a tick may take longer
REST_S = 0.5  # between a tick and one that was woken
Part = Literal["look", "step", "apply", "lend", "record"]
log = logging.getLogger("moray.control")


class Source(Protocol):
    """Where samples come from: autoscaling.sources. `look` does not raise."""

    async def look(self) -> Look: ...
    async def close(self) -> None: ...


class Observed(Protocol):
    """What the cluster says. `gpus_held`: by tier and video, starting and draining ones too. `nodes_of`: by tier."""

    @property
    def fleet(self) -> Fleet: ...
    @property
    def rooms(self) -> tuple[Room, ...]: ...
    @property
    def awaiting(self) -> tuple[Awaiting, ...]: ...
    @property
    def gpus_held(self) -> Mapping[str, int]: ...
    @property
    def nodes_of(self) -> Mapping[str, tuple[str, ...]]: ...


class Pool(Protocol):
    """The video replicas. `cold_start_s`: measured, None before the first start."""

    @property
    def cold_start_s(self) -> float | None: ...
    def count(self) -> Count: ...
    def held(self) -> tuple[WorkerHeld, ...]: ...
    async def apply(self, moves: Moves) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What the loop acts on. `jobs`: unfinished video jobs, None where nobody knows them. `wish`: where so many video

    replicas may be. `record` keeps a decision. `clock`: Unix time.
    """

    source: Source
    observe: Callable[[], Awaitable[Observed]]
    jobs: Callable[[], tuple[JobSeen, ...] | None]
    pool: Pool | None
    wish: Callable[[int, Observed], Wish]
    record: Callable[[Record], None]
    clock: Callable[[], float]


@dataclass(slots=True, kw_only=True)
class Shown:
    """What the metrics of the loop say; what is counted only grows. `tick_s`: what the last tick took."""

    ticked_at_s: float = 0.0
    tick_s: float = 0.0
    targets: Mapping[str, int] = field(default_factory=dict)
    wanted: Mapping[str, int] = field(default_factory=dict)
    counts: Mapping[str, Count] = field(default_factory=dict)
    gpus: int = 0
    gpus_held: Mapping[str, int] = field(default_factory=dict)
    ages_s: Mapping[str, float] = field(default_factory=dict)
    gpu_s: dict[str, float] = field(default_factory=dict)
    decisions: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: Counter[tuple[str, str]] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)


class Controller:
    """One loop. `initial`: replicas before the first decision. `last`: the decision that a restart goes on from."""

    def __init__(
        self, world: World, spec: Spec, initial: Mapping[str, int], last: Scaling | None, parameters: Parameters
    ) -> None:
        self.world = world
        self.shown = Shown()
        self._parameters = parameters
        self._memory = Memory() if last is None else last.after
        self._now_s = 0.0 if last is None else last.seen.now_s
        self._moved_s: float | None = None  # when time was last told, on the loop's clock
        self._series: Series | None = None
        self._starts: dict[str, Starts] = {}
        self._gpus = 0 if last is None else last.seen.gpus
        self._said: frozenset[tuple[str, str]] = frozenset()
        self._failing: set[str] = set()
        self._ticking = asyncio.Lock()
        self._woken = asyncio.Event()
        self._asked: set[str] = set()
        self.adopt(spec, initial)

    def adopt(self, spec: Spec, initial: Mapping[str, int]) -> None:
        """Another family, from the next tick on. Tiers that are new to it begin with their initial replicas."""
        bounds = {name: (tier.min, tier.max) for name, tier in spec.tiers.items()}
        if spec.video is not None:
            bounds[VIDEO] = (spec.video.min, spec.video.max)
        last = self._memory.targets
        targets = {name: max(least, min(most, last.get(name, initial[name]))) for name, (least, most) in bounds.items()}
        tiers = {name: tier for name, tier in self._memory.tiers.items() if name in spec.tiers}
        self._spec = spec
        self._memory = Memory(tiers=tiers, targets=targets)

    @property
    def targets(self) -> Mapping[str, int]:
        """By tier and video."""
        return self._memory.targets

    def wake(self, tier: str = "") -> None:
        """Tick now, or as soon as the last tick is REST_S ago. `tier`: a request waits for it."""
        self._asked.add(tier)
        self._woken.set()

    async def run(self, ticked: Callable[[Shown], None]) -> None:
        """Until cancelled, `ticked` after every tick. Ticks are due at multiples of tick_s after the start."""
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        while True:
            self._woken.clear()
            await self.tick()
            with self._part("record", "showing"):
                ticked(self.shown)
            rested_s = loop.time() + REST_S
            tick_s = self._parameters.tick_s
            due_s = begun_s + tick_s * ((loop.time() - begun_s) // tick_s + 1)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due_s):
                    await self._woken.wait()
                    await asyncio.sleep(rested_s - loop.time())

    async def tick(self) -> None:
        """One decision, if anything is known. Raises nothing."""
        async with self._ticking:
            begun_s = asyncio.get_running_loop().time()
            look, observed = await asyncio.gather(self._look(), self._observe())
            elapsed_s = self._move_on()
            reading = self._read(look, observed)
            decision = None if reading is None else self._step(reading.seen)
            if observed is not None:
                await self._lend(observed)
                self.shown.gpus_held = dict(observed.gpus_held)
            for name, gpus in self.shown.gpus_held.items():
                self.shown.gpu_s[name] = self.shown.gpu_s.get(name, 0.0) + gpus * elapsed_s
            self._show(decision)
            self.shown.tick_s = asyncio.get_running_loop().time() - begun_s

    @contextlib.contextmanager
    def _part(self, part: Part, what: str) -> Iterator[None]:
        """Counts every failure, and says when failures begin and end."""
        try:
            yield
        except Exception:  # whatever it is, the next tick tries again
            self.shown.errors[part] += 1
            if what not in self._failing:
                log.exception("control: %s failed; the last targets stay", what)
            self._failing.add(what)
        else:
            if what in self._failing:
                log.warning("control: %s works again", what)
            self._failing.discard(what)

    async def _look(self) -> Look:
        with self._part("look", "the look at signals"):
            async with asyncio.timeout(PART_S):
                return await self.world.source.look()
        return Look(now_s=self._now_s, fault="the look failed")

    async def _observe(self) -> Observed | None:
        with self._part("look", "the look at the cluster"):
            async with asyncio.timeout(PART_S):
                return await self.world.observe()
        return None

    def _move_on(self) -> float:
        """Time as decisions know it; returns how far it has moved. A wall clock that was set back is met at half speed:

        time neither goes back nor stands still.
        """
        here_s = asyncio.get_running_loop().time()
        passed_s = 0.0 if self._moved_s is None else here_s - self._moved_s
        self._moved_s = here_s
        self._now_s = max(self.world.clock(), self._now_s + passed_s / 2)
        return passed_s

    def _read(self, look: Look, observed: Observed | None) -> Reading | None:
        with self._part("look", "reading"):
            fleet = self._fleet(observed)
            found = read(look, fleet, self.world.jobs(), self._series, self._spec, self._now_s)
            self._series = found.memory
            self._gpus = fleet.gpus
            self.shown.counts = fleet.counts or {}
            self._tell(found)
            seen = asked_for(found.seen, self._asked, self._memory)
            self._asked.clear()
            return replace(found, seen=self._started(seen, fleet))
        return None

    def _started(self, seen: Seen, fleet: Fleet) -> Seen:
        """With the cold starts that were measured."""
        for name, count in (fleet.counts or {}).items():
            self._starts[name] = looked(self._starts.get(name), count.ready, count.starting, self._now_s)
        tiers = {
            name: tier and replace(tier, cold_start_s=starts.mean_s) if (starts := self._starts.get(name)) else tier
            for name, tier in seen.tiers.items()
        }
        pool, video = self.world.pool, seen.video
        if pool is not None and video is not None:
            video = replace(video, cold_start_s=pool.cold_start_s)
        return replace(seen, tiers=tiers, video=video)

    def _fleet(self, observed: Observed | None) -> Fleet:
        if observed is None:
            return Fleet(counts=None, gpus=self._gpus)
        fleet, pool = observed.fleet, self.world.pool
        if pool is None or fleet.counts is None:
            return fleet
        return replace(fleet, counts={**fleet.counts, VIDEO: pool.count()})

    def _tell(self, found: Reading) -> None:
        """A fault is logged when it begins; it counts in every look."""
        self.shown.faults.update((flaw.tier, flaw.fault) for flaw in found.flaws)
        self.shown.ages_s = found.ages_s
        for flaw in found.flaws:
            if (flaw.tier, flaw.fault) not in self._said:
                log.warning("control: %s: %s signals: %s", flaw.tier, flaw.fault, flaw.detail)
        self._said = frozenset((flaw.tier, flaw.fault) for flaw in found.flaws)

    def _step(self, seen: Seen) -> Decision | None:
        """Nothing is decided before anything has been seen."""
        if not self._memory.tiers and not any((*seen.tiers.values(), seen.video)):
            return None
        with self._part("step", "the decision"):
            before = self._memory
            decision, after = step(seen, before, self._spec, self._parameters)
            self._memory = after
            parameters, spec = self._parameters, self._spec
            self._keep(
                Scaling(seen=seen, memory=before, spec=spec, parameters=parameters, decision=decision, after=after)
            )
            return decision
        return None

    async def _lend(self, observed: Observed) -> None:
        """Video replicas start, and make room, as its target and the waiting expert groups ask."""
        pool = self.world.pool
        if pool is None or self._spec.video is None:
            return
        moves = Moves()
        with self._part("lend", "lending"):
            rooms, workers, awaiting = observed.rooms, pool.held(), observed.awaiting
            wish = self.world.wish(self.targets[VIDEO], observed)
            moves = lend(rooms, workers, awaiting, wish)
            if moves.start or moves.vacate:
                log.info("control: video starts on %s, leaves %s: %s", moves.start, moves.vacate, moves.reason)
                self._keep(Lending(rooms=rooms, workers=workers, awaiting=awaiting, wish=wish, moves=moves))
        with self._part("apply", "moving video replicas"):
            async with asyncio.timeout(PART_S):
                await pool.apply(moves)

    def _keep(self, record: Record) -> None:
        with self._part("record", "the record"):
            self.world.record(record)

    def _show(self, decision: Decision | None) -> None:
        shown = self.shown
        shown.targets = self.targets
        shown.gpus = self._gpus
        shown.ticked_at_s = self._now_s
        if decision is None:
            return
        targets = dict(decision.tiers) if decision.video is None else {**decision.tiers, VIDEO: decision.video}
        shown.wanted = {name: target.wanted for name, target in targets.items()}
        shown.decisions.update((name, target.cause) for name, target in targets.items())
