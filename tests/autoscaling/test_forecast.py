"""The forecasters against series whose next value is known."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaling.forecast import ar, constant, kalman


def test_constant_repeats_the_last() -> None:
    assert constant([3.0, 1.0, 2.0]) == 2.0


@pytest.mark.parametrize("forecast", [kalman, ar])
def test_fewer_than_five_values_repeat_the_last(forecast: object) -> None:
    assert callable(forecast)
    assert forecast([1.0, 5.0, 9.0, 2.0]) == 2.0


@pytest.mark.parametrize("forecast", [kalman, ar])
def test_a_constant_series_stays(forecast: object) -> None:
    assert callable(forecast)
    assert forecast([7.0] * 30) == pytest.approx(7.0)


def test_the_filter_follows_a_line() -> None:
    assert kalman([10.0 + 3 * step for step in range(60)]) == pytest.approx(10 + 3 * 60, rel=1e-3)


def test_the_filter_is_never_negative() -> None:
    assert kalman([100.0, 80.0, 60.0, 40.0, 20.0, 1.0]) == 0.0


def test_five_values_by_hand_through_the_filter() -> None:
    """The same recursion with scalars: level, trend and their covariances."""
    values = [10.0, 12.0, 11.0, 15.0, 14.0]
    level, trend, p_ll, p_lt, p_tt = values[0], 0.0, 1000.0, 0.0, 1000.0
    for value in values[1:]:
        level, p_ll, p_lt, p_tt = level + trend, p_ll + 2 * p_lt + p_tt + 1.0, p_lt + p_tt, p_tt + 0.1
        gain_l, gain_t, error = p_ll / (p_ll + 10), p_lt / (p_ll + 10), value - level
        level, trend = level + gain_l * error, trend + gain_t * error
        p_ll, p_lt, p_tt = p_ll - gain_l * p_ll, p_lt - gain_l * p_lt, p_tt - gain_t * p_lt
    assert kalman(values) == pytest.approx(level + trend)


def test_differences_that_repeat_with_a_sign_are_continued() -> None:
    assert ar([100.0 + 5 * (-1) ** step for step in range(40)]) == pytest.approx(105)  # last 95


def test_a_line_is_continued() -> None:
    assert ar([10.0 + 3 * step for step in range(30)]) == pytest.approx(100)


def test_growth_by_a_factor_is_continued() -> None:
    assert ar([2.0**step for step in range(12)]) == pytest.approx(4096)


def test_one_jump_explains_nothing_and_the_last_value_stays() -> None:
    assert ar([*[5.0] * 20, 9.0]) == pytest.approx(9)


def test_what_only_the_logarithm_explains_is_found_there() -> None:
    # In logs the differences shrink by half each time; seen plainly the huge first ones hide it.
    values = [math.expm1(20 * (1 - 0.5**step)) for step in range(10)]
    assert ar(values) == pytest.approx(math.expm1(20 * (1 - 0.5**10)), rel=0.05)


@given(st.lists(st.floats(0, 1e12), min_size=1, max_size=30), st.sampled_from([constant, kalman, ar]))
def test_no_forecast_is_negative_or_not_a_number(values: list[float], forecast: object) -> None:
    assert callable(forecast)
    assert forecast(values) >= 0.0
