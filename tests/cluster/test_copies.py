"""Copies go where loads are heavy now, or where they are most likely to be heaviest after a drift."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.copies import replicate

POWER_LAW = np.arange(1.0, 257)[None] ** -1.01


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 6), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_copies_fill_the_slots_and_no_rank_gets_two(experts: int, ranks: int, drift: float, seed: int) -> None:
    loads = np.random.default_rng(seed).pareto(0.5, (2, experts))
    for slots in range(experts, experts * ranks + 1):
        copies = replicate(loads, slots, ranks, drift)
        assert (copies.sum(1) == slots).all()
        assert copies.min() >= 1
        assert copies.max() <= ranks


def test_copies_against_drift_leave_less_for_the_heaviest_copy_of_drifted_loads() -> None:
    drifted = POWER_LAW * np.exp(0.3 * np.random.default_rng(0).standard_normal((2000, 256)))
    level, safer = (replicate(POWER_LAW, 288, 72, drift) for drift in (0.0, 0.3))
    assert (POWER_LAW / level).max() <= (POWER_LAW / safer).max()
    assert (drifted / safer).max(1).mean() < (drifted / level).max(1).mean()
