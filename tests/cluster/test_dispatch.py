"""A batch is shared over copies so that the most loaded rank has least to do, and no row is lost."""

from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cluster.dispatch import Ints, settle, split
from cluster.experts import even


@st.composite
def batches(draw: st.DrawFn) -> tuple[Ints, Ints, int]:
    """counts [ranks, experts], slots, ranks"""
    ranks, experts = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    room = draw(st.integers(-(-experts // ranks), experts))
    slots = even(layers=1, experts=experts, ranks=ranks, redundant=room * ranks - experts).slots[0]
    row = st.lists(st.integers(0, 200), min_size=experts, max_size=experts)
    counts = draw(st.lists(row, min_size=ranks, max_size=ranks))
    return np.array(counts, np.int64), np.array(slots, np.int64), ranks


def least(counts: Ints, slots: Ints, ranks: int) -> float:
    """The optimum: over all sets of ranks, the rows that have no copy elsewhere, per rank of the set (Hall)."""
    held = [set(own) for own in slots.reshape(ranks, -1).tolist()]
    owners = [{rank for rank in range(ranks) if expert in held[rank]} for expert in range(counts.shape[1])]
    rows = counts.sum(0)
    sets = [set(some) for size in range(1, ranks + 1) for some in combinations(range(ranks), size)]
    return max(float(sum(rows[e] for e, own in enumerate(owners) if own <= some)) / len(some) for some in sets)


@given(batches())
def test_every_row_goes_to_one_copy_of_its_expert(batch: tuple[Ints, Ints, int]) -> None:
    counts, slots, ranks = batch
    sent = split(counts, slots, ranks)
    assert sent.shape == (ranks, len(slots))
    assert (sent >= 0).all()
    for expert in range(counts.shape[1]):
        assert (sent[:, slots == expert].sum(1) == counts[:, expert]).all()


@given(batches())
def test_the_largest_rank_load_is_within_a_few_rows_of_the_least_possible(batch: tuple[Ints, Ints, int]) -> None:
    counts, slots, ranks = batch
    largest = split(counts, slots, ranks).sum(0).reshape(ranks, -1).sum(1).max()
    assert largest >= least(counts, slots, ranks)
    assert largest <= least(counts, slots, ranks) * 1.02 + ranks


@given(batches())
def test_settled_loads_are_the_same_optimum_in_fractions(batch: tuple[Ints, Ints, int]) -> None:
    counts, slots, ranks = batch
    copies = np.bincount(slots)[None]
    each, total = settle(counts.sum(0)[None, None].astype(np.float64), slots[None], copies, ranks, 200)
    assert np.isclose(each.sum(), counts.sum())
    best = least(counts, slots, ranks)
    assert best - 1e-6 <= total.max() <= best * 1.02 + 1e-6


@given(batches())
def test_the_same_counts_are_split_alike(batch: tuple[Ints, Ints, int]) -> None:
    assert (split(*batch) == split(*batch)).all()


def test_without_copies_rows_go_where_the_expert_is() -> None:
    counts = np.array([[3, 1], [2, 5]])
    assert split(counts, np.array([1, 0]), 2).tolist() == [[1, 3], [5, 2]]


def test_rows_stay_at_home_where_loads_allow() -> None:
    counts = np.array([[6, 0, 0], [6, 0, 0], [0, 0, 0]])
    slots = np.array([0, 1, 0, 2, 1, 2])  # expert 0 on ranks 0 and 1
    assert split(counts, slots, 3).tolist() == [[6, 0, 0, 0, 0, 0], [0, 0, 6, 0, 0, 0], [0] * 6]


def test_a_shared_expert_gives_way_to_one_that_cannot() -> None:
    counts = np.array([[5, 7, 0], [5, 1, 2]])
    sent = split(counts, np.array([0, 1, 0, 2]), 2)
    assert sent.sum(0).tolist() == [2, 8, 8, 2]  # 10 rows each: expert 1 has 8 rows on rank 0


def test_an_empty_batch_is_split_into_nothing() -> None:
    assert not split(np.zeros((2, 3), np.int64), np.array([0, 1, 0, 2]), 2).any()
