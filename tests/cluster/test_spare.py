"""What is left over for batches, and when they wake a tier."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.spare import Busy, TierLoad, due, spare

BUSY = st.builds(Busy, running=st.integers(0, 100), waiting=st.just(0))


def load(*replicas: Busy, held: int = 0) -> TierLoad:
    return TierLoad(held=held, replicas=replicas, places=10, rps=2.0, start_s=60.0)


@pytest.mark.parametrize(
    ("tier", "left"),
    [
        (load(), 0),
        (load(Busy(running=0, waiting=0)), 5),
        (load(Busy(running=9, waiting=0)), 0),
        (load(Busy(running=10, waiting=0), Busy(running=0, waiting=0)), 5),
        (load(Busy(running=0, waiting=0), held=1), 0),
        (load(Busy(running=0, waiting=0), Busy(running=5, waiting=1)), 0),
    ],
)
def test_half_of_the_free_places_are_left_over_where_nobody_waits(tier: TierLoad, left: int) -> None:
    assert spare(tier) == left


@given(replicas=st.lists(BUSY, max_size=5), more=st.integers(0, 5))
def test_work_that_begins_leaves_less_and_never_takes_the_last_free_place(replicas: list[Busy], more: int) -> None:
    free = sum(max(0, 10 - one.running) for one in replicas)
    assert 0 <= spare(load(*replicas)) <= free / 2
    busier = [Busy(running=one.running + more, waiting=0) for one in replicas]
    assert spare(load(*busier)) <= spare(load(*replicas))


def test_what_is_left_is_due_when_it_would_be_late_else() -> None:
    """100 requests take 50 s on one replica, which starts in 60 s: twice that is 220 s."""
    assert not due(load(), 100, 221)
    assert due(load(), 100, 220)
    assert not due(load(), 0, 0)
    assert due(load(Busy(running=0, waiting=0)), 100, 220), "nor may it fall asleep then"
