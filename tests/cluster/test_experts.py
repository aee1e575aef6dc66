"""Experts lie on ranks in order, and evenly."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.experts import linear


def test_whole_shares_are_runs() -> None:
    assert linear(8, 2) == (0, 0, 0, 0, 1, 1, 1, 1)


@given(st.integers(1, 300), st.integers(1, 64))
def test_ranks_differ_by_one_expert_at_most(experts: int, ranks: int) -> None:
    placed = linear(experts, ranks)
    assert list(placed) == sorted(placed)
    held = [placed.count(rank) for rank in range(ranks)]
    assert sum(held) == experts
    assert max(held) - min(held) <= 1
