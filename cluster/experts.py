"""Which expert lies on which rank of an expert group."""


def linear(experts: int, ranks: int) -> tuple[int, ...]:
    """The rank of each expert: in order, in runs whose lengths differ by one at most."""
    return tuple(expert * ranks // experts for expert in range(experts))
