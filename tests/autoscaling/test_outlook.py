"""What past forecasts teach. A lead of two minutes, a lesson every ten seconds."""

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaling.outlook import DOUBTFUL_LESSONS, Look, Outlook, carry, error, first, forecast, hold, learnt
from autoscaling.parameters import Parameters

P = Parameters(learn_s=10.0, learnt_s=1800.0, tick_s=2.0)
LEAD_S = 120.0
DOUBT = 0.15


def taught(loads: Iterable[float], trend: float = 0.0, parameters: Parameters = P, every_s: float = 10.0) -> Outlook:
    """After looks at those loads, ten seconds apart."""
    outlook: Outlook | None = None
    for tick, load in enumerate(loads):
        look = Look(at_s=every_s * tick, load=load, trend=trend, mean=0.0)
        outlook = first(load, trend, 0.0) if outlook is None else learnt(outlook, look, LEAD_S, parameters)
    assert outlook is not None
    return outlook


def wandering(steps: int) -> list[float]:
    rng, load = Random(7), 50.0
    return [load := max(1.0, load + rng.gauss(0, 1)) for _ in range(steps)]


def jumping(steps: int) -> list[float]:
    """Ten times the load for half a minute, every four minutes."""
    return [20.0 if tick % 24 in (0, 1, 2) else 2.0 for tick in range(steps)]


def test_before_any_lesson_the_load_is_expected_to_stay() -> None:
    assert forecast(first(8.0, 3.0, 0.0), 12.0, 3.0) == 12.0
    assert error(first(8.0, 3.0, 0.0), 12.0, DOUBT) == pytest.approx(DOUBT * 12)


def test_of_a_load_that_wanders_all_of_a_deviation_is_expected_to_last() -> None:
    assert hold(taught(wandering(1000))) > 0.8


def test_of_a_load_that_jumps_and_falls_back_nothing_is_expected_to_last() -> None:
    outlook = taught(jumping(400))
    assert hold(outlook) < 0.2
    assert forecast(outlook, 20.0, 0.0) < 8.0  # near the mean, 4.25
    assert error(outlook, 4.25, DOUBT) > 4.0  # and the jumps are left to the margin


def test_a_steady_ramp_is_followed_ahead() -> None:
    slope = 0.02  # replicas per second
    loads = [5 + slope * 10 * tick for tick in range(120)]
    outlook = taught(loads, trend=slope * LEAD_S)
    assert carry(outlook) > 0.5
    ahead = forecast(outlook, loads[-1], slope * LEAD_S)
    assert ahead > loads[-1] + 0.5 * slope * LEAD_S
    assert ahead <= loads[-1] + slope * LEAD_S + 1e-9


def test_a_trend_that_never_comes_true_is_not_carried_on() -> None:
    assert carry(taught([10.0] * 200, trend=5.0)) == 0
    assert carry(taught([200 - tick for tick in range(200)], trend=5.0)) == 0  # it even falls


def test_the_trend_of_a_small_load_is_not_believed_at_once() -> None:
    loads = [0.1 + 0.002 * tick for tick in range(40)]
    assert carry(taught(loads, trend=0.024)) < 0.1


def test_the_error_shrinks_on_a_constant_load() -> None:
    errors = [error(taught([10.0] * looks), 10.0, DOUBT) for looks in (1, 60, 200, 1000)]
    assert errors[0] == pytest.approx(1.5)
    assert all(later < sooner for sooner, later in pairwise(errors))
    assert errors[-1] < 0.1


def test_only_loads_above_their_forecast_make_an_error() -> None:
    fallen = taught([10.0] * 100 + [5.0] * 12)
    risen = taught([10.0] * 100 + [15.0] * 12)
    assert fallen.over2 == 0
    assert risen.over2 > 0


def test_an_error_is_what_the_forecast_of_a_lead_ago_missed() -> None:
    outlook = taught([10.0] * 12 + [14.0])
    assert outlook.over2 == pytest.approx(16)
    expected = math.sqrt((2 * 16 + outlook.doubt * (DOUBT * 10) ** 2) / (outlook.lessons + outlook.doubt))
    assert error(outlook, 10.0, DOUBT) == pytest.approx(expected)


def test_a_forecast_is_judged_by_what_was_known_when_it_was_made() -> None:
    # A dip of one look: 0 was forecast for two minutes later, since deviations were taken to last.
    before = taught([10.0] * 13 + [0.0] + [10.0] * 11)
    after = learnt(before, Look(at_s=250.0, load=10.0, trend=0.0, mean=0.0), LEAD_S, P)
    assert hold(after) < 0.5 < hold(before)
    forgone = 10 - forecast(replace(before, mean=after.looks[0].mean), 0.0, 0.0)
    assert after.over2 - before.over2 * math.exp(-10 / 1800) == pytest.approx(forgone**2, rel=0.1)


def test_lessons_fade() -> None:
    assert taught([10.0] * 15).doubt == pytest.approx(DOUBTFUL_LESSONS * math.exp(-140 / 1800))
    # A lesson every 10 s for ever: 1/(1 - exp(-10/1800))
    assert taught([10.0] * 3000).lessons == pytest.approx(180.5, rel=0.01)


def test_the_mean_settles_quickly_and_then_covers_the_time_learnt() -> None:
    early, late = taught([0.0] + [10.0] * 12), taught([0.0] * 1000 + [10.0] * 12)
    assert early.mean > 6
    assert late.mean == pytest.approx(10 * (1 - (1 - 10 / 1800) ** 12))


def test_a_look_too_soon_after_the_last_teaches_nothing() -> None:
    outlook = first(10.0, 0.0, 0.0)
    assert learnt(outlook, Look(at_s=9.9, load=50.0, trend=0.0, mean=0.0), LEAD_S, P) is outlook
    assert learnt(outlook, Look(at_s=-5.0, load=50.0, trend=0.0, mean=0.0), LEAD_S, P) is outlook  # a clock set back


def test_a_past_shorter_than_a_lead_teaches_what_it_can() -> None:
    assert taught([10.0]).lessons == 0
    assert taught([10.0, 10.0]).lessons == 1
    assert taught([10.0, 13.0]).over2 == 9


def test_nothing_is_learnt_across_a_gap() -> None:
    before = taught([10.0] * 100)  # until 990 s
    after = learnt(before, Look(at_s=2000.0, load=90.0, trend=0.0, mean=0.0), LEAD_S, P)
    assert (after.lessons, after.over2, after.deviation2) == (before.lessons, before.over2, before.deviation2)
    # 2100 s - 120 s lies in the gap, and the last look before it is too old to say what then was
    within = learnt(after, Look(at_s=2100.0, load=90.0, trend=0.0, mean=0.0), LEAD_S, P)
    assert within.lessons == before.lessons
    beyond = learnt(within, Look(at_s=2120.0, load=90.0, trend=0.0, mean=0.0), LEAD_S, P)
    assert beyond.lessons == pytest.approx(1 + before.lessons * math.exp(-20 / P.learnt_s))


def test_ticks_farther_apart_than_lessons_teach_too() -> None:
    slow = Parameters(learn_s=10.0, tick_s=25.0)
    assert taught([10.0] * 20, parameters=slow, every_s=25.0).lessons > 10  # 120 s is no multiple of 25 s


def test_what_is_remembered_reaches_back_one_lead() -> None:
    looks = taught(wandering(500)).looks
    assert [look.at_s for look in looks] == [4870.0 + 10 * tick for tick in range(13)]


@pytest.mark.parametrize("lead_s", [10.0, 500.0])
def test_a_lead_that_is_measured_anew_is_learnt_from_too(lead_s: float) -> None:
    outlook = taught([10.0] * 100)
    for tick in range(100, 200):
        outlook = learnt(outlook, Look(at_s=10.0 * tick, load=10.0, trend=0.0, mean=0.0), lead_s, P)
    assert outlook.looks[0].at_s == 1990.0 - lead_s
    assert outlook.lessons > 100 * math.exp(-1)


loads = st.floats(0, 1000)
outlooks = st.builds(
    taught,
    st.lists(loads, min_size=1, max_size=60),
    st.floats(0, 100),
)


@given(outlooks, loads, loads, st.floats(0, 1000), st.floats(0, 1000))
def test_the_forecast_never_falls_as_load_or_trend_rises(
    outlook: Outlook, load: float, more: float, trend: float, steeper: float
) -> None:
    least = forecast(outlook, load, trend)
    assert 0 <= least <= forecast(outlook, load + more, trend) + 1e-9
    assert least <= forecast(outlook, load, trend + steeper) + 1e-9


@given(outlooks, loads, loads, st.floats(0, 1))
def test_the_error_is_finite_and_never_falls_as_the_forecast_rises(
    outlook: Outlook, ahead: float, more: float, doubt_share: float
) -> None:
    assert 0 <= error(outlook, ahead, doubt_share) <= error(outlook, ahead + more, doubt_share) < math.inf


@given(outlooks)
def test_what_lasts_is_a_share(outlook: Outlook) -> None:
    assert 0 <= hold(outlook) <= 1
    assert 0 <= carry(outlook) <= 1


@given(st.lists(loads, min_size=1, max_size=60))
def test_the_mean_lies_among_the_loads(seen: list[float]) -> None:
    assert min(seen) - 1e-9 <= taught(seen).mean <= max(seen) + 1e-9
