"""Ceilings by hand: a step is 10 ms + 1 ms per sequence, 100 us per prompt token, at most 10 sequences."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peer_world import counts, look, spec, tier

from autoscaling.ceilings import ClairvoyantParameters, best_static, clairvoyant, floor_gpu_hours, plan
from cluster.cost import fluid_rps, request_gpu_s
from cluster.workload import Workload

# A request of 1000 + 100 tokens: prefill 100 ms, and with 10 sharing a step 100 * (1 + 10/10) ms = 200 ms of decode.
WORK_S = 0.3


def requests(arrival_s: Any, prompt: int = 1000, output: int = 100, **changed: Any) -> Workload:
    at_s = np.array(arrival_s, dtype=float)
    return Workload(
        arrival_s=at_s,
        prompt_tokens=np.full(len(at_s), prompt),
        output_tokens=np.full(len(at_s), output),
        model=np.zeros(len(at_s), dtype=np.int64),
        tenant=np.zeros(len(at_s), dtype=np.int64),
        models=("pro",),
        **changed,
    )


def test_the_floor_is_the_work_of_each_minute() -> None:
    # The pace of 50 ms allows 10 + B + 100*B/100 = 10 + 2B, so all 10.
    hours = floor_gpu_hours(requests([0, 1, 59, 60, 200]), tier(ranks=4))
    assert hours == pytest.approx(5 * WORK_S * 4 / 3600)
    assert hours == pytest.approx(5 * 4 / fluid_rps(tier(ranks=4), 1000, 100) / 3600)


def test_the_floor_of_a_minute_takes_its_mean_request() -> None:
    mixed = requests([0, 30], prompt=1)
    mixed.prompt_tokens[:] = (500, 1500)
    mixed.output_tokens[:] = (50, 150)
    assert floor_gpu_hours(mixed, tier()) == pytest.approx(2 * request_gpu_s(tier(), 1000, 100) / 3600)


def test_nothing_needs_nothing() -> None:
    assert floor_gpu_hours(requests([]), tier()) == 0
    assert plan(requests([]), tier(least=2), ClairvoyantParameters(), 30) == ((0.0, 2),)


def test_a_prefix_that_anybody_sent_is_computed_once() -> None:
    chains = ((1, 2), (1, 3), (1, 2))
    shared = requests([0, 1, 2], blocks=chains, block_tokens=500)
    # 1000 + 500 tokens are computed, and of the third the last one alone: 150.1 ms instead of 300.
    assert floor_gpu_hours(shared, tier()) == pytest.approx((3 * 0.2 + 0.1501) / 3600)


def rate(replicas_at: dict[int, int]) -> Workload:
    """In the 10 s from each time on, as many replicas' work as given: 100 requests of 0.1 s for each."""
    at_s = [start + index / (10 * count) for start, count in replicas_at.items() for index in range(100 * count)]
    return requests(sorted(at_s), prompt=500, output=25)  # 50 ms + 25 * 2 ms


EXACT = ClairvoyantParameters(k=1.0, mean_s=10)


def test_a_plan_orders_one_cold_start_ahead_and_lets_go_when_done() -> None:
    steps = rate({0: 1, 10: 1, 20: 1, 30: 5, 40: 1, 50: 1})
    assert plan(steps, tier(), EXACT, 20) == ((0.0, 1), (10.0, 5), (40.0, 1), (60.0, 1))


def test_a_plan_holds_what_it_would_have_to_order_again() -> None:
    twice = rate({0: 4, 10: 1, 20: 1, 30: 4, 40: 1})
    assert plan(twice, tier(), EXACT, 30) == ((0.0, 4), (40.0, 1), (50.0, 1))
    assert plan(twice, tier(), EXACT, 10) == ((0.0, 4), (10.0, 1), (20.0, 4), (40.0, 1), (50.0, 1))
    assert plan(twice, tier(), EXACT, 0) == ((0.0, 4), (10.0, 1), (30.0, 4), (40.0, 1), (50.0, 1))


def test_a_plan_takes_the_mean_around_and_k_times_of_it() -> None:
    peak = rate({0: 3, 10: 3, 20: 9, 30: 3, 40: 3})
    # Means over three bins, two at the ends: 3, 5, 5, 5, 3.
    assert plan(peak, tier(), ClairvoyantParameters(k=1.0), 0) == ((0.0, 3), (10.0, 5), (40.0, 3), (50.0, 1))
    assert plan(peak, tier(), ClairvoyantParameters(k=1.3), 0)[1] == (10.0, 7)  # ceil(6.5)
    assert plan(peak, tier(most=4), ClairvoyantParameters(k=1.0), 0)[1] == (10.0, 4)


def test_a_trace_shorter_than_the_window_has_a_plan() -> None:
    assert plan(rate({0: 3}), tier(), ClairvoyantParameters(k=1.0, mean_s=60), 100) == ((0.0, 3), (10.0, 1))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=12), st.floats(0, 100), st.sampled_from([10.0, 30.0, 60.0]))
def test_a_plan_keeps_the_bounds_and_a_longer_cold_start_never_asks_for_less(
    course: list[int], cold_start_s: float, mean_s: float
) -> None:
    wanted = rate({10 * index: count for index, count in enumerate(course) if count})
    p, bounds = ClairvoyantParameters(k=1.0, mean_s=mean_s), tier(least=1, most=4)
    quick, slow = plan(wanted, bounds, p, cold_start_s), plan(wanted, bounds, p, cold_start_s + 20)
    assert all(1 <= replicas <= 4 for _, replicas in quick)

    def at(schedule: tuple[tuple[float, int], ...], now_s: float) -> int:
        return [replicas for from_s, replicas in schedule if from_s <= now_s][-1]

    assert all(at(slow, now_s) >= at(quick, now_s) for now_s in range(0, 120, 10))


def test_the_clairvoyant_follows_its_plan() -> None:
    scaler = clairvoyant(spec(), {"pro": ((0.0, 1), (10.0, 5), (40.0, 2))})
    assert counts(scaler, [look(now_s, ready=1) for now_s in (0, 9, 10, 39, 40, 999)]) == [1, 1, 5, 5, 2, 2]
    assert scaler.tick_s == 10


@given(st.integers(0, 5), st.integers(0, 20), st.integers(0, 30))
def test_the_best_constant_size_is_the_smallest_that_attains_the_goal(least: int, more: int, enough: int) -> None:
    best = best_static(lambda count: 0.995 if count >= enough else 0.5, least, least + more)
    assert best == min(max(enough, least), least + more)
