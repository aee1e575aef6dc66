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
from cluster.batching import SLACK_SHARE
from cluster.cost import slo_batch, work_s
from cluster.family import load

P = Parameters(
    tick_s=2.0,
    rho=0.95,
    z=0.3,
    z_min=0.0,
    z_max=3.0,
    z_rise_per_min=0.3,
    z_fall_per_min=0.02,
    miss_target=0.01,
    doubt_requests=100.0,
    attain_s=120.0,
    short_s=30.0,
    long_s=90.0,
    settle_s=10.0,
    trend_most_s=300.0,
    learn_s=10.0,
    learnt_s=1800.0,
    doubt_share=0.15,
    start_s=120.0,
    backlog_least_s=5.0,
    calm_s=60.0,
    fall_share=0.1,
    fall_every_s=30.0,
    lengths_s=900.0,
    prompt_prior_tokens=1000.0,
    output_prior_tokens=200.0,
    prior_requests=50.0,
)
UNTAUGHT = replace(P, learn_s=1e9)  # a forecast is the load, and errs by the doubted share of it
PRO = replace(spec_of(load("h200")).tiers["pro"], min=1, max=100, cold_start_s=60.0, idle_s=300.0)
SLEEPY = replace(PRO, min=0)


def work_of(output: float, context: float) -> float:
    """Replica-seconds of a request of 1000 tokens in, in a batch that leaves some of the pace for what is not known."""
    return float(work_s(PRO.cost, slo_batch(PRO, 1000, output, context, SLACK_SHARE), 1000, output, context))


WORK_S = work_of(200, 1100)


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
    last = course(arriving([0] + [40] * 60), parameters=UNTAUGHT)[-1]
    assert last.load_short == pytest.approx(20 * WORK_S)  # 20 a second
    assert last.load_long == pytest.approx(20 * WORK_S)
    assert last.trend + last.backlog == pytest.approx(0)
    assert last.ahead == last.erlangs == pytest.approx(20 * WORK_S)
    assert last.wanted == math.ceil(20 * WORK_S / 0.95 + last.z * 0.15 * 20 * WORK_S)


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


def test_of_the_trend_as_much_is_ordered_for_as_came_true_before() -> None:
    needs = course(arriving([20 + tick // 2 for tick in range(400)], cold_start_s=58.0))
    now, then = needs[369], needs[399]  # a minute later
    assert needs[60].trend > 0
    assert needs[60].ahead < needs[60].load_short + needs[60].trend
    assert abs(then.load_short - now.ahead) < 0.5 * (then.load_short - now.load_short)


def test_bursts_that_are_over_before_a_replica_starts_are_left_to_the_margin() -> None:
    bursts = ([400] * 5 + [10] * 85) * 8  # ten seconds in three minutes
    needs = course(arriving(bursts, cold_start_s=120.0), parameters=replace(P, z_min=P.z))
    peak = max(needs[-90:], key=lambda found: found.load_short)
    assert peak.ahead < 0.5 * peak.load_short
    assert peak.margin > P.z * 0.3 * peak.ahead  # more than the doubt of before


def test_the_load_that_was_there_before_the_first_look_is_no_jump() -> None:
    memory: TierMemory | None = None
    for tick, look in enumerate(arriving([0] + [40] * 100)):
        _, memory = need(look, memory, PRO, P, 2.0 * tick)
    assert memory is not None
    assert memory.outlook.lessons > 0
    assert memory.outlook.over2 == pytest.approx(0)
    assert memory.outlook.mean == pytest.approx(20 * WORK_S)


def test_a_backlog_is_to_be_worked_off_within_a_cold_start() -> None:
    looks = [seen(), seen(held_requests=100, waiting_prefill_tokens=100_000, cold_start_s=50.0)]
    assert course(looks)[-1].backlog == pytest.approx(100 * WORK_S / 50)
    assert course(looks, parameters=replace(P, backlog=False))[-1].backlog == 0
    at_once = [seen(), seen(held_requests=100, waiting_prefill_tokens=100_000, cold_start_s=1.0)]
    assert course(at_once)[-1].backlog == pytest.approx(100 * WORK_S / P.backlog_least_s)


def test_the_margin_can_be_taken_out() -> None:
    bare = course(arriving([0] + [40] * 60), parameters=replace(P, margin=False))[-1]
    assert bare.margin == 0
    assert bare.wanted == math.ceil(bare.erlangs) == math.ceil(20 * WORK_S)


def test_a_busy_replica_earns_the_price_of_its_tokens() -> None:
    # 1000 in at 50 and 200 out at 150 USD per million
    assert course([seen()])[0].usd_per_busy_s == pytest.approx((0.05 + 0.03) / WORK_S)


def test_longer_answers_make_more_work() -> None:
    done = {"finished_requests": 9950, "finished_output_tokens": 9_990_000}
    done["finished_context_token_steps"] = 9_990_000 * 1500
    last = course([seen(), seen(requests=100, **done)])[-1]
    output = (50 * 200 + 9_990_000) / 10_000  # the prior weighs as much as 50 requests, or their 10,000 tokens
    context = (10_000 * 1100 + 9_990_000 * 1500) / 10_000_000
    assert last.load_short == pytest.approx(10 * work_of(output, context), rel=1e-3)


def test_running_sequences_that_hold_more_make_more_work() -> None:
    done = {"finished_requests": 1000, "finished_output_tokens": 200_000}
    plain, long = (
        course([seen(), seen(requests=100, **done, finished_context_token_steps=200_000 * context)])[-1].load_short
        for context in (1100, 6000)
    )
    assert plain == pytest.approx(10 * WORK_S)
    assert long == pytest.approx(10 * work_of(200, (10_000 * 1100 + 200_000 * 6000) / 210_000))
    assert long > 1.1 * plain


def test_after_a_quiet_day_one_request_does_not_set_the_lengths() -> None:
    _, memory = need(seen(), None, PRO, P, 0.0)
    odd = seen(finished_requests=1, finished_output_tokens=2000, finished_context_token_steps=2000 * 51_100)
    _, memory = need(odd, memory, PRO, P, 86_400.0)
    assert memory is not None
    assert memory.output.value == pytest.approx((50 * 200 + 2000) / 51)
    assert memory.context.value == pytest.approx((10_000 * 1100 + 2000 * 51_100) / 12_000)


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
    looks = [seen(ready=20, starting=10)] * 91
    targets = [found.replicas for found in course(looks)]
    assert targets[:60] == [30] * 60  # 120 s
    assert [targets[tick] for tick in (60, 75, 90)] == [27, 25, 23]
    at_least = [found.replicas for found in course(looks, parameters=replace(P, start_s=0.0))]
    assert at_least[:30] == [30] * 30  # calm_s
    assert [at_least[tick] for tick in (30, 45, 60)] == [27, 25, 23]


def test_nothing_is_taken_back_before_it_could_have_started() -> None:
    looks = [seen(cold_start_s=100.0), seen(cold_start_s=100.0, held_requests=9000), *[seen(cold_start_s=100.0)] * 60]
    targets = [found.replicas for found in course(looks)]
    assert targets[1:51] == [targets[1]] * 50  # 100 s from the look at 2 s
    assert targets[51] < targets[1]


def test_a_cold_start_that_turns_out_short_takes_nothing_back_at_once() -> None:
    looks = [seen(ready=40, cold_start_s=300.0), *[seen(ready=40, cold_start_s=30.0)] * 149]
    assert [found.replicas for found in course(looks, parameters=replace(P, start_s=0.0))] == [40] * 150


def test_what_is_there_at_first_is_kept_though_more_was_wanted_meanwhile() -> None:
    looks = [seen(ready=20), seen(held_requests=15_000, waiting_prefill_tokens=15_000_000), *[seen()] * 400]
    targets = [found.replicas for found in course(looks, parameters=replace(P, start_s=600.0))]
    assert targets[1] > 20
    assert targets[250] == targets[299] == 20 > targets[300]


def test_a_tier_sleeps_when_nothing_came_for_long_and_only_if_it_may() -> None:
    looks = [seen(ready=2)] * 200
    assert course(looks, SLEEPY)[149].replicas >= 1  # 298 s
    assert course(looks, SLEEPY)[150].replicas == 0
    assert not course(looks, SLEEPY)[150].awake
    assert course(looks)[-1].replicas == 1
    working = [seen(ready=2, ongoing_requests=1)] * 200
    assert course(working, SLEEPY)[-1].replicas == 1


def test_what_only_replicas_know_of_keeps_no_tier_awake() -> None:
    left_over = [seen(ready=1, waiting_prefill_tokens=100)] * 200
    assert course(left_over, SLEEPY)[-1].replicas == 0


@pytest.mark.parametrize("sign", [{"requests": 1}, {"held_requests": 1}])
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


def test_misses_that_replicas_which_start_will_mend_raise_the_margin_less() -> None:
    looks = [seen(missed=100 * tick) for tick in range(31)]
    alone = course(looks)[-1].z - P.z
    helped = course([replace(look, starting=2) for look in looks])[-1].z - P.z
    assert helped == pytest.approx(alone * 2 / 4)  # (ready + 1)/(ready + starting + 1)


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
        ({"z": 9.0, "z_min": 0.0, "z_max": 3.0}, "z is 9; 0 to 3 is allowed; change it"),
        ({"short_s": 90.0, "long_s": 90.0}, "long_s is 90; more than short_s 90 is allowed; change it"),
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
                finished_context_token_steps=kept * 300 * 2000,
                kept=kept,
                missed=missed,
                held_requests=held,
                waiting_prefill_tokens=waiting,
            )
        )
    return looks


specs = st.sampled_from([PRO, SLEEPY, replace(PRO, min=3, max=7), replace(PRO, cold_start_s=300.0)])
sets = st.sampled_from([P, Parameters(), Parameters(tick_s=15.0, short_s=20.0), UNTAUGHT])


@given(st.lists(ticks, min_size=1, max_size=30), st.tuples(counts, counts, st.integers(0, 10**6)), specs, sets)
def test_more_load_never_asks_for_fewer_replicas(
    past: list[tuple[int, int, int, int, int, int]],
    more: tuple[int, int, int],
    spec: TierSpec,
    parameters: Parameters,
) -> None:
    *before, (arrived, prompt, held, waiting, kept, missed) = past
    memory: TierMemory | None = None
    for tick, look in enumerate(history([(0, 1, 0, 0, 0, 0), *before])):
        memory = need(look, memory, spec, parameters, parameters.tick_s * tick)[1]
    loaded = (arrived + more[0], prompt, held + more[1], waiting + more[2], kept, missed)
    less, most = (
        need(history([*before, last])[-1], memory, spec, parameters, parameters.tick_s * len(past))[0]
        for last in (past[-1], loaded)
    )
    assert less.replicas <= most.replicas
    assert less.ahead <= most.ahead + 1e-9


@given(
    st.lists(st.tuples(counts, counts, st.none() | st.floats(1, 400)), min_size=1, max_size=80),
    st.integers(0, 30),
    specs,
    sets,
)
def test_a_history_with_more_held_never_has_the_lower_target(
    looks: list[tuple[int, int, float | None]], there: int, spec: TierSpec, parameters: Parameters
) -> None:
    pairs = [(20 * min(one, other), 20 * max(one, other), cold_start_s) for one, other, cold_start_s in looks]
    calm = [seen(there, held_requests=few, cold_start_s=cold_start_s) for few, _, cold_start_s in pairs]
    crowded = [seen(there, held_requests=many, cold_start_s=cold_start_s) for _, many, cold_start_s in pairs]
    for less, more in zip(course(calm, spec, parameters), course(crowded, spec, parameters), strict=True):
        assert less.replicas <= more.replicas


@given(st.lists(ticks | st.none(), max_size=100), specs, sets)
def test_never_below_the_minimum_nor_above_the_maximum(
    past: list[tuple[int, int, int, int, int, int] | None], spec: TierSpec, parameters: Parameters
) -> None:
    looks = iter(history([tick for tick in past if tick is not None]))
    all_looks = [seen(ready=spec.min), *(None if tick is None else next(looks) for tick in past)]
    for found in course(all_looks, spec, parameters):
        assert spec.min <= found.replicas <= spec.max


@given(
    st.lists(st.tuples(counts, counts, st.none() | st.floats(1, 400)), min_size=60, max_size=150),
    st.sampled_from([P, Parameters()]),
)
def test_it_never_falls_faster_than_allowed(
    given_looks: list[tuple[int, int, float | None]], parameters: Parameters
) -> None:
    loads = arriving([arrived for arrived, _, _ in given_looks])
    looks = [
        replace(look, held_requests=held, cold_start_s=cold_start_s)
        for look, (_, held, cold_start_s) in zip(loads, given_looks, strict=True)
    ]
    targets = [found.replicas for found in course(looks, parameters=parameters)]
    later = math.ceil(parameters.fall_every_s / parameters.tick_s)
    for before, after in zip(targets, targets[later:], strict=False):
        assert after >= before - max(1, int(before * parameters.fall_share))
