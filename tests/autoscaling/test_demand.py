"""What one tier needs. Pro tier of h200: a request of 1000 tokens in and 200 out is 0.12 replica-seconds of work."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaling.demand import Need, TierMemory, need
from autoscaling.parameters import Parameters
from autoscaling.signals import TierSeen, TierSpec, spec_of
from cluster.cost import slo_batch, work_s
from cluster.family import load

P = Parameters()
PRO = replace(spec_of(load("h200")).tiers["pro"], min=1, max=100)
SLEEPY = replace(PRO, min=0)
WORK_S = float(work_s(PRO.cost, slo_batch(PRO, 1000, 200), 1000, 200))


def seen(ready: int = 1, requests: int = 0, prompt: int = 1000, **others: Any) -> TierSeen:
    return TierSeen(ready=ready, arrived_requests=requests, arrived_prompt_tokens=requests * prompt, **others)


def course(
    looks: Sequence[TierSeen | None], spec: TierSpec = PRO, parameters: Parameters = P, memory: TierMemory | None = None
) -> list[Need]:
    """The needs at looks that are a tick apart, from 0 s on."""
    needs = []
    for tick, look in enumerate(looks):
        found, memory = need(look, memory, spec, parameters, tick * parameters.tick_s)
        needs.append(found)
    return needs


def arriving(per_tick: Sequence[int], **others: Any) -> list[TierSeen]:
    return [seen(requests=sum(per_tick[: tick + 1]), **others) for tick in range(len(per_tick))]


def test_a_load_is_the_work_that_arrived_per_second() -> None:
    last = course(arriving([0] + [40] * 60))[-1]
    assert last.load_short == pytest.approx(20 * WORK_S)  # 20 a second
    assert last.load_long == pytest.approx(20 * WORK_S)
    assert last.trend + last.backlog == pytest.approx(0)
    assert last.wanted == math.ceil(20 * WORK_S / 0.95 + last.z * math.sqrt(20 * WORK_S))


def test_what_arrived_before_the_first_look_is_no_load_but_tells_the_lengths() -> None:
    first = need(
        seen(requests=10**6, prompt=3000, finished_requests=10**6, finished_output_tokens=10**9), None, PRO, P, 0
    )
    assert first[0].load_short == 0
    assert first[1] is not None
    assert first[1].prompt.value == pytest.approx(3000, rel=1e-3)
    assert first[1].output.value == pytest.approx(1000, rel=1e-3)


def test_the_first_load_is_spread_over_the_time_to_settle() -> None:
    assert course(arriving([0, 10]))[-1].load_short == pytest.approx(10 * WORK_S / 10)  # not over the 2 s seen


def test_a_rising_load_is_carried_on_over_the_cold_start() -> None:
    quiet, busy = [0] + [10] * 45, [70] * 15  # the last 30 s have seven times the load of before
    slow, fast = (course(arriving(quiet + busy, cold_start_s=cold))[-1] for cold in (300.0, 28.0))
    slope = (35 - (5 * 60 + 35 * 30) / 90) * WORK_S / 30  # over the 30 s between the midpoints of the windows
    assert fast.trend == pytest.approx(slope * 30)
    assert slow.trend == pytest.approx(slope * 300)  # believed so far and no farther, not 302
    assert course(arriving(quiet + busy), parameters=replace(P, trend=False))[-1].trend == 0
    assert course(arriving([0] + [70] * 45 + [10] * 15))[-1].trend == 0  # a falling one is not


def test_a_backlog_is_to_be_worked_off_within_a_cold_start() -> None:
    looks = [seen(), seen(held_requests=100, waiting_prefill_tokens=100_000, cold_start_s=50.0)]
    assert course(looks)[-1].backlog == pytest.approx(100 * WORK_S / 50)
    assert course(looks, parameters=replace(P, backlog=False))[-1].backlog == 0
    at_once = [seen(), seen(held_requests=100, waiting_prefill_tokens=100_000, cold_start_s=1.0)]
    assert course(at_once)[-1].backlog == pytest.approx(100 * WORK_S / P.backlog_least_s)


def test_the_margin_can_be_taken_out() -> None:
    bare = course(arriving([0] + [40] * 60), parameters=replace(P, margin=False))[-1]
    assert bare.margin == 0
    assert bare.wanted == math.ceil(20 * WORK_S)


def test_a_busy_replica_earns_the_price_of_its_tokens() -> None:
    # 1000 in at 50 and 200 out at 150 USD per million
    assert course([seen()])[0].usd_per_busy_s == pytest.approx((0.05 + 0.03) / WORK_S)


def test_longer_answers_make_more_work() -> None:
    last = course([seen(), seen(requests=100, finished_requests=9950, finished_output_tokens=9_990_000)])[-1]
    output = (50 * 200 + 9_990_000) / 10_000  # the prior weighs as much as 50 requests
    assert last.load_short == pytest.approx(10 * work_s(PRO.cost, slo_batch(PRO, 1000, output), 1000, output), rel=1e-3)


def test_it_rises_at_once_and_falls_only_after_calm() -> None:
    needs = course(arriving([0] + [400] * 60 + [0] * 200))
    targets = [found.replicas for found in needs]
    last = max(tick for tick, found in enumerate(needs) if found.wanted == max(targets))
    assert targets[5] == needs[5].wanted > 10  # 10 s after the start
    assert targets[last + 29] == max(targets) > targets[last + 30]  # 60 s
    assert targets[-1] < max(targets) / 2


def test_a_demand_that_was_seen_long_ago_is_gone() -> None:
    _, memory = need(seen(ready=50), None, PRO, P, 0.0)
    assert need(seen(ready=50), memory, PRO, P, 86_400.0)[0].replicas == 1


def test_replicas_that_are_there_at_first_count_as_wanted() -> None:
    targets = [found.replicas for found in course([seen(ready=20, starting=10)] * 61)]
    assert targets[:30] == [30] * 30
    assert targets[30] == 27
    assert targets[45] == 25
    assert targets[60] == 23


def test_a_tier_sleeps_when_nothing_came_for_long_and_only_if_it_may() -> None:
    looks = [seen(ready=2)] * 200
    assert course(looks, SLEEPY)[149].replicas >= 1  # 298 s
    assert course(looks, SLEEPY)[150].replicas == 0
    assert not course(looks, SLEEPY)[150].awake
    assert course(looks)[-1].replicas == 1
    working = [seen(ready=2, ongoing_requests=1)] * 200
    assert course(working, SLEEPY)[-1].replicas == 1


@pytest.mark.parametrize("sign", [{"requests": 1}, {"held_requests": 1}, {"waiting_prefill_tokens": 1}])
def test_the_first_request_wakes_a_tier_at_once(sign: dict[str, int]) -> None:
    assert [n.replicas for n in course([seen(ready=0), seen(ready=0, **sign)], SLEEPY)] == [0, 1]


def test_a_tier_without_signals_keeps_its_target_and_then_takes_its_time() -> None:
    looks = [seen(ready=10)] + [None] * 100 + [seen(ready=10)] * 31
    needs = course(looks)
    assert all(found.replicas == 10 and found.blind for found in needs[1:101])
    assert [found.replicas for found in needs[101:130]] == [10] * 29  # 60 s from the last blind look
    assert needs[131].replicas == 9
    assert not needs[101].blind


def test_blind_from_the_start_means_the_minimum() -> None:
    assert need(None, None, PRO, P, 0.0) == (Need(replicas=1, wanted=1, blind=True), None)


def test_many_misses_raise_the_margin_quickly_and_none_lower_it_slowly() -> None:
    bad = course([seen(kept=90 * tick, missed=10 * tick) for tick in range(31)])[-1].z
    assert bad == pytest.approx(0.3 + 0.3, abs=0.05)  # in a minute
    good = course([seen(kept=100 * tick) for tick in range(31)])[-1].z
    assert good == pytest.approx(0.3 - 0.02, abs=0.005)
    assert course([seen(missed=100 * tick) for tick in range(1000)])[-1].z == P.z_max
    assert course([seen(kept=100 * tick) for tick in range(1000)])[-1].z == P.z_min


def test_one_miss_among_few_is_no_reason() -> None:
    assert course([seen(), seen(missed=1)])[-1].z < 0.3


def test_a_counter_that_restarts_counts_as_not_grown() -> None:
    looks = [seen(requests=500), seen(requests=20)]
    assert course(looks)[-1].load_short == 0


def test_a_clock_that_steps_back_changes_no_length() -> None:
    _, memory = need(seen(), None, PRO, P, 100.0)
    _, after = need(seen(), memory, PRO, P, 50.0)
    assert memory is not None
    assert after is not None
    assert after.output == memory.output


@pytest.mark.parametrize(
    ("given_", "fault"),
    [
        ({"tick_s": 0.0}, "tick_s is 0; numbers above 0 are allowed; raise it"),
        ({"z_fall_per_min": -1.0}, "z_fall_per_min is -1; numbers from 0 are allowed; raise it"),
        ({"rho": 1.5}, "rho is 1.5; 0 < rho <= 1 is allowed; change it"),
        ({"z": 9.0}, "z is 9; 0 to 3 is allowed; change it"),
        ({"short_s": 90.0}, "long_s is 90; more than short_s 90 is allowed; change it"),
        ({"calm_s": math.nan}, "calm_s is nan; fall_every_s or more is allowed; change it"),
    ],
)
def test_a_parameter_out_of_bounds_is_refused(given_: dict[str, float], fault: str) -> None:
    with pytest.raises(ValueError, match=f"^{fault}$"):
        Parameters(**given_)  # type: ignore[arg-type]


counts = st.integers(0, 500)
ticks = st.tuples(counts, st.integers(1, 20_000), counts, st.integers(0, 10**6), counts, counts)


def history(given_ticks: Sequence[tuple[int, int, int, int, int, int]]) -> list[TierSeen]:
    """Arrivals with their mean prompt, held, waiting, kept and missed, per tick."""
    requests = tokens = kept = missed = 0
    looks = []
    for arrived, prompt, held, waiting, well, badly in given_ticks:
        requests, tokens, kept, missed = requests + arrived, tokens + arrived * prompt, kept + well, missed + badly
        looks.append(
            TierSeen(
                ready=1,
                arrived_requests=requests,
                arrived_prompt_tokens=tokens,
                finished_requests=kept,
                finished_output_tokens=kept * 300,
                kept=kept,
                missed=missed,
                held_requests=held,
                waiting_prefill_tokens=waiting,
            )
        )
    return looks


specs = st.sampled_from([PRO, SLEEPY, replace(PRO, min=3, max=7), replace(PRO, cold_start_s=300.0)])


@given(st.lists(ticks, min_size=1, max_size=8), st.tuples(counts, counts, st.integers(0, 10**6)), specs)
def test_more_load_never_asks_for_fewer_replicas(
    past: list[tuple[int, int, int, int, int, int]], more: tuple[int, int, int], spec: TierSpec
) -> None:
    *before, (arrived, prompt, held, waiting, kept, missed) = past
    memory: TierMemory | None = None
    for tick, look in enumerate(history([(0, 1, 0, 0, 0, 0), *before])):
        memory = need(look, memory, spec, P, 2.0 * tick)[1]
    loaded = (arrived + more[0], prompt, held + more[1], waiting + more[2], kept, missed)
    less, most = (
        need(history([*before, last])[-1], memory, spec, P, 2.0 * len(past))[0] for last in (past[-1], loaded)
    )
    assert less.replicas <= most.replicas


@given(st.lists(st.tuples(counts, counts), min_size=1, max_size=80), specs)
def test_a_history_with_more_held_never_has_the_lower_target(pairs: list[tuple[int, int]], spec: TierSpec) -> None:
    calm = [seen(held_requests=min(pair)) for pair in pairs]
    crowded = [seen(held_requests=max(pair)) for pair in pairs]
    for less, more in zip(course(calm, spec), course(crowded, spec), strict=True):
        assert less.replicas <= more.replicas


@given(st.lists(ticks | st.none(), max_size=100), specs)
def test_never_below_the_minimum_nor_above_the_maximum(
    past: list[tuple[int, int, int, int, int, int] | None], spec: TierSpec
) -> None:
    looks = iter(history([tick for tick in past if tick is not None]))
    for found in course([seen(ready=spec.min), *(None if tick is None else next(looks) for tick in past)], spec):
        assert spec.min <= found.replicas <= spec.max


@given(st.lists(counts, min_size=60, max_size=150))
def test_it_never_falls_faster_than_allowed(held: list[int]) -> None:
    targets = [found.replicas for found in course([seen(held_requests=count) for count in held])]
    for before, after in zip(targets, targets[15:], strict=False):  # 30 s
        assert after >= before - max(1, int(before * 0.1))
