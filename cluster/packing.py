"""Where one more replica goes: best fit over the free GPUs of the cells, under the GPU budget.

A unit is whole in one cell, the fullest that holds it; a video replica prefers cells that hold groups of the tier it is
to be beside, then cells that hold any. Only an expert group with more ranks than any cell has GPUs is spread, over the
emptiest; not where its ranks are processes of one replica.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.family import Family
from cluster.fleet import CellState


@dataclass(frozen=True, slots=True)
class Unit:
    """One replica to be placed: an expert group of a tier, or a video replica. `always`: it never goes away.

    `whole`: no cells together can hold it, only one.
    """

    owner: str
    replica: int
    gpus: int
    initial: bool
    always: bool
    video: bool
    whole: bool

    @property
    def what(self) -> str:
        return f"{self.owner}[{self.replica}]"


Part = tuple[str, Unit, int]


class Floor:
    """The cells while a plan grows. A part is a cell's name, the unit, and the GPUs that it takes there."""

    def __init__(self, family: Family, cells: Sequence[CellState], parts: Sequence[Part] = ()) -> None:
        self.beside = family.video.beside if family.video else None
        self.free = {cell.name: cell.free_gpus for cell in cells}
        self.tiers: dict[str, set[str]] = {cell.name: set() for cell in cells}
        self.largest = max((cell.gpus for cell in cells), default=0)
        self.budget = family.gpu_budget_gpus
        self.used_gpus = 0
        self.parts: list[Part] = []
        for name, unit, gpus in parts:
            self.put(name, unit, gpus)

    @property
    def budget_left_gpus(self) -> int:
        return self.budget - self.used_gpus

    def room(self, unit: Unit) -> tuple[str, ...]:
        """The cells that have room for the unit, one of them for a whole one, all together for one to be spread."""
        if not self.must_spread(unit):
            return tuple(name for name, free in self.free.items() if free >= unit.gpus)
        return tuple(name for name, _ in self._spread(unit.gpus))

    def fits(self, unit: Unit) -> bool:
        return unit.gpus <= self.budget_left_gpus and bool(self.room(unit))

    def take(self, unit: Unit) -> bool:
        if not self.fits(unit):
            return False
        for name, gpus in self._parts(unit):
            self.put(name, unit, gpus)
        return True

    def put(self, name: str, unit: Unit, gpus: int) -> None:
        self.free[name] -= gpus
        self.used_gpus += gpus
        self.parts.append((name, unit, gpus))
        if not unit.video:
            self.tiers[name].add(unit.owner)

    def must_spread(self, unit: Unit) -> bool:
        return not unit.whole and unit.gpus > self.largest

    def _parts(self, unit: Unit) -> list[tuple[str, int]]:
        if self.must_spread(unit):
            return self._spread(unit.gpus)
        return [(min(self.room(unit), key=lambda name: self._preference(unit, name)), unit.gpus)]

    def _preference(self, unit: Unit, name: str) -> tuple[bool, bool, int]:
        """Lowest first: for video the wished neighbour, then any; the fullest; ties to the cell named first."""
        tiers = self.tiers[name]
        return (unit.video and self.beside not in tiers, unit.video and not tiers, self.free[name])

    def _spread(self, gpus: int) -> list[tuple[str, int]]:
        if sum(self.free.values()) < gpus:
            return []
        parts = []
        for name, free in sorted(self.free.items(), key=lambda item: -item[1]):
            taken = min(free, gpus)
            gpus -= taken
            if taken:
                parts.append((name, taken))
        return parts
