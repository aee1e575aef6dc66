from hypothesis import given
from hypothesis import strategies as st

from autoscaling.starts import LONGEST_S, MOST, Starts, looked


def course(*looks: tuple[int, int], tick_s: float = 2.0) -> Starts:
    """(ready, starting) at each tick."""
    starts = None
    for number, (ready, starting) in enumerate(looks):
        starts = looked(starts, ready, starting, number * tick_s)
    assert starts is not None
    return starts


def test_nothing_is_known_before_the_first_start() -> None:
    assert course((1, 0), (1, 0)).mean_s is None


def test_a_start_takes_as_long_as_it_was_seen_starting() -> None:
    assert course((0, 0), (0, 1), (0, 1), (0, 1), (1, 0)).mean_s == 6.0


def test_starts_at_the_same_time_share_the_time() -> None:
    assert course((0, 0), (0, 4), (0, 4), (4, 0)).mean_s == 4.0


def test_a_start_between_two_looks_took_half_the_time_between() -> None:
    assert course((1, 0), (2, 0)).mean_s == 1.0


def test_a_replica_that_leaves_is_no_start() -> None:
    assert course((2, 0), (1, 0), (0, 0)).mean_s is None


def test_a_night_in_which_nothing_could_start_is_soon_forgotten() -> None:
    night = [(0, 1)] * 600
    assert course((0, 0), *night, (1, 0), tick_s=60.0).mean_s == LONGEST_S
    assert course((0, 0), *night, (0, 0), (0, 1), (1, 0), tick_s=60.0).mean_s == 60.0


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=30))
def test_the_mean_is_never_negative_and_old_starts_fade(looks: list[tuple[int, int]]) -> None:
    starts = course(*looks)
    assert starts.started <= MOST
    assert starts.mean_s is None or starts.mean_s >= 0
