"""Which expert lies in which slot of which rank of an expert group."""

from dataclasses import dataclass


def linear(experts: int, ranks: int) -> tuple[int, ...]:
    """The rank of each expert: in order, in runs whose lengths differ by one at most."""
    return tuple(expert * ranks // experts for expert in range(experts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """`slots[layer][slot]` is the expert in a physical slot. Each rank has a run of equally many slots.

    Every expert has a slot in every layer; one with several has a copy in each, never two on one rank.
    """

    ranks: int
    slots: tuple[tuple[int, ...], ...]

    @property
    def room(self) -> int:
        """Slots of one rank in one layer."""
        return len(self.slots[0]) // self.ranks if self.slots else 0
