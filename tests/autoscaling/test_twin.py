"""What happens in rehearsals of a few requests. A step takes 10 ms + 1 ms per sequence, a prompt token 0.1 ms."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from twin_world import ONE, Planned, decision, family, first_s, played, shortest, steady, tier, workload

from autoscaling.peer_routing import two_choices
from autoscaling.twin import LAST_CALL_S, Failure, Scenario, rehearse
from cluster.cost import Service, prefill_us_per_token
from cluster.family import Plan
from cluster.loads import Ask, Choice, Loads
from cluster.routing import choose

# --- replicas and nodes


def test_a_request_takes_the_time_that_its_tier_takes() -> None:
    report = rehearse(Scenario(family=family()), ONE, None, steady(pro=1), shortest)
    assert (report.figures.completed, report.figures.attainment) == (1, 1.0)
    assert report.figures.ttft_p50_s == pytest.approx(0.020)
    assert report.figures.tpot_p50_ms == pytest.approx(11.0)


def test_uneven_experts_slow_decoding_and_prefill() -> None:
    # The d term of one sequence: 8 * 2/8 = 2 ms; the most loaded rank has twice the mean.
    given = family(tier(cost={"d_ms": 8.0, "experts": 8, "top_k": 2}))
    even, uneven = (played(ONE, steady(pro=1), given, imbalance=factor) for factor in ({}, {"pro": 2.0}))
    assert (even.tally.ttft_s[0], even.tally.tpot_ms[0]) == pytest.approx((0.020, 13.0))
    assert (uneven.tally.ttft_s[0], uneven.tally.tpot_ms[0]) == pytest.approx((0.030, 15.0))


def test_a_group_larger_than_a_node_takes_whole_nodes() -> None:
    given = family(tier("ultra", ranks=12), tier("mini"), node_gpus=8)
    scaler = steady(ultra=1, mini=20)
    twin = played(workload((60.0, 100, 5)), scaler, given, gpus=24, initial={"ultra": 1, "mini": 0})
    assert [lease.places for lease in twin.tiers[0].leases.values()] == [((0, 8), (1, 4))]
    assert (twin.nodes.used_gpus, scaler.seen[-1].tiers["mini"]) == (24, twin.tiers[1].seen())
    assert (twin.tiers[1].pool.ready, twin.tiers[1].orders.pending) == (12, 8)


def test_what_does_not_fit_at_first_waits_for_room() -> None:
    twin = played(workload((1.0, 100, 5)), steady(pro=3), gpus=2, initial={"pro": 3})
    assert (twin.tiers[0].pool.ready, twin.tiers[0].orders.pending) == (2, 1)


def test_the_requests_of_a_dead_node_go_on_elsewhere_with_their_first_token() -> None:
    """At 0.5 s it has 1 + 43 tokens; 144 tokens are computed anew in 24.4 ms, the other 56 steps take 11 ms each."""
    twin = played(
        ONE, steady(pro=2), family(node_gpus=1), initial={"pro": 2}, gpus=2, failures=(Failure(at_s=0.5, node=0),)
    )  # fmt: skip
    assert twin.tally.end == ["completed"]
    assert twin.tally.ttft_s[0] == pytest.approx(0.020)
    assert twin.tally.tpot_ms[0] * 100 / 1000 == pytest.approx(0.5 + 0.0244 + 56 * 0.011 - 0.020)
    assert (twin.nodes.gpus, twin.tiers[0].orders.pending) == (1, 1)


def test_what_a_lost_replica_had_answered_is_computed_at_the_price_of_the_longer_prompt() -> None:
    steep = tier(cost={"prefill_us_per_token": {100: 100.0, 1000: 1000.0}})
    twin = played(
        ONE, steady(pro=2), family(steep, node_gpus=1), initial={"pro": 2}, failures=(Failure(at_s=0.5, node=0),)
    )  # fmt: skip
    again_s = 0.010 + 144 * prefill_us_per_token(steep.cost, 144) / 1e6
    assert twin.tally.tpot_ms[0] * 100 / 1000 == pytest.approx(0.5 + again_s + 56 * 0.011 - 0.020)


def test_only_of_the_prompt_that_was_sent_is_a_prefix_cached() -> None:
    """The other replica has the 150 tokens of the same prompt, in blocks of 100; the 44 since are computed."""
    work = workload((0.0, 150, 101), (0.0, 150, 2), blocks=((1, 2), (1, 2)), block_tokens=100)
    twin = played(
        work, steady(pro=2), family(node_gpus=1), initial={"pro": 2}, failures=(Failure(at_s=0.505, node=0),)
    )  # fmt: skip
    first_s = 0.010 + 0.015
    assert twin.tally.ttft_s == pytest.approx([first_s, first_s])
    assert twin.tally.tpot_ms[0] * 100 / 1000 == pytest.approx(0.505 + 0.010 + 0.0044 + 56 * 0.011 - first_s)


def test_patience_with_a_lost_request_begins_anew() -> None:
    twin = played(workload((0.0, 100, 2000)), steady(pro=2), initial={"pro": 2}, router=choose,
                  failures=(Failure(at_s=20.0, tier="pro"),))  # fmt: skip
    assert twin.tally.end == ["completed"]


def test_a_node_is_lost_as_a_whole_before_anything_goes_on() -> None:
    """The request of pro does not go on with mini, whose only replica dies in the same moment, and is lost again."""
    given = family(tier("pro", quality=2), tier("mini"), node_gpus=2)
    scaler = Planned({0.0: decision(pro=1, mini=1), 1.0: decision(pro=1, mini=2)})
    twin = played(ONE, scaler, given, gpus=4, failures=(Failure(at_s=0.01, node=0),))
    assert (twin.tally.end, twin.nodes.gpus) == (["completed"], 2)
    assert twin.tally.ttft_s[0] == pytest.approx(11.02)


def test_a_request_goes_on_once() -> None:
    failures = tuple(Failure(at_s=at_s, tier="pro") for at_s in (0.1, 0.2))
    twin = played(ONE, steady(pro=3), initial={"pro": 3}, failures=failures)
    assert twin.tally.end == ["failed:replica_lost"]
    assert twin.tiers[0].counters.missed == 1


def test_an_answer_that_has_begun_is_not_gone_on_with_by_another_model() -> None:
    given = family(tier("pro", quality=2), tier("mini"))
    for at_s, served in ((0.01, 1), (0.1, 0)):  # before and after the first token
        twin = played(ONE, Planned({0.0: decision(pro=1, mini=1), 1.0: decision(pro=1, mini=1)}), given,
                      router=choose, failures=(Failure(at_s=at_s, tier="pro"),))  # fmt: skip
        assert (twin.tally.end, twin.tally.served) == (["completed"], [served])


def test_a_lost_request_that_finds_no_place_has_failed_not_been_refused() -> None:
    def busy_later(loads: Loads, ask: Ask, service: Service, now_s: float, packing: bool) -> Choice:
        return Choice(0, 0.0 if now_s < 0.1 else 99.0, 0.0, now_s < 0.1, "peer")

    twin = played(
        ONE, steady(pro=2), family(node_gpus=1), router=busy_later, initial={"pro": 2},
        failures=(Failure(at_s=0.5, node=0),),
    )  # fmt: skip
    assert twin.tally.end == ["failed:replica_lost"]


# --- tiers that sleep, wait, overtake


def test_a_tier_asleep_wakes_for_one_request() -> None:
    scaler = Planned({0.0: decision(pro=0), 1.0: decision(pro=1)})
    twin = played(ONE, scaler, initial={"pro": 0})
    assert first_s(twin) == pytest.approx([11.02])  # asked to at 1 s, ready 10 s later
    assert twin.tally.end == ["completed"]
    assert [seen.tiers["pro"].held_requests for seen in scaler.seen if seen.tiers["pro"]][:3] == [1, 1, 1]


@pytest.mark.parametrize("admission", [True, False])
def test_a_request_for_whom_nothing_ever_starts_is_never_served(admission: bool) -> None:
    scaler = steady(pro=0)
    twin = played(ONE, scaler, initial={"pro": 0}, admission=admission)
    assert twin.tally.ended().end == ["failed:never_served"]
    assert scaler.seen[-1].now_s == LAST_CALL_S


def test_high_priority_overtakes() -> None:
    plans = {"low": Plan(tiers=("pro",)), "high": Plan(tiers=("pro",), priority=1)}
    work = workload((0.0, 100, 5), (0.1, 100, 5), (0.2, 100, 5), tenant=np.array([0, 1, 0]), tenants=("low", "high"))
    twin = played(work, steady(pro=1), family(tier(max_running=1)), router=choose, initial={"pro": 0}, plans=plans)
    low, high, last = first_s(twin)
    assert 10.0 < high < low < last


def test_the_late_stand_behind_those_who_can_be_in_time() -> None:
    """The replica is ready at 10 s: too late for the first, in time for the second, whose deadline is 10.5 s."""
    work = workload((0.0, 100, 5), (9.5, 100, 5))
    twin = played(work, steady(pro=1), family(tier(max_running=1)), router=choose, initial={"pro": 0})
    late, in_time = first_s(twin)
    assert 10.0 < in_time < late
    assert [twin.tally.kept(index) for index in (0, 1)] == [False, True]


def test_one_who_cannot_be_in_time_does_not_hold_up_those_behind_who_can() -> None:
    def short_ones(loads: Loads, ask: Ask, service: Service, now_s: float, packing: bool) -> Choice:
        kept = bool(loads.open.any()) and ask.prompt_tokens < 500
        return Choice(0 if loads.open.any() else None, 0.1 if kept else 5.0, 0.0, kept, "peer")

    work = workload((9.1, 1000, 5), (9.2, 100, 5))
    scaler = Planned({0.0: decision(pro=1)}, tick_s=0.7)
    twin = played(work, scaler, router=short_ones, initial={"pro": 0})
    assert first_s(twin)[1] == pytest.approx(10.02)
    assert twin.tally.end == ["rejected:overloaded", "completed"]


def test_nobody_passes_a_higher_priority_that_waits_for_a_start() -> None:
    def small_first(loads: Loads, ask: Ask, service: Service, now_s: float, packing: bool) -> Choice:
        kept = ask.prompt_tokens < 500 or len(loads.open) > 1
        return Choice(0, 0.1 if kept else 3.0, 0.0, kept, "peer")

    plans = {"low": Plan(tiers=("pro",)), "high": Plan(tiers=("pro",), priority=1)}
    work = workload((9.5, 1000, 5), (9.6, 100, 5), tenant=np.array([1, 0]), tenants=("low", "high"))
    twin = played(work, steady(pro=2), router=small_first, plans=plans)
    high, low = first_s(twin)
    assert 10.0 < high <= low


def test_two_tenants_with_shares_of_three_to_one_are_served_so_under_overload() -> None:
    """One replica does about 6 such requests per second; both tenants ask for 8."""
    plans = {"a": Plan(tiers=("pro",), share=3), "b": Plan(tiers=("pro",), share=1)}
    arrival_s = np.arange(960) / 16
    work = workload(*[(at_s, 1000, 50) for at_s in arrival_s], tenant=np.arange(960) % 2, tenants=("a", "b"))
    twin = played(work, steady(pro=1), router=choose, plans=plans)
    done = Counter(int(work.tenant[index]) for index, end in enumerate(twin.tally.end) if end == "completed")
    assert done[0] / done[1] == pytest.approx(3, rel=0.1)


def test_under_overload_a_lower_priority_leaves_the_queue_to_a_higher_one() -> None:
    """One replica does about 6 such requests per second; both tenants ask for 8."""
    plans = {"low": Plan(tiers=("pro",)), "high": Plan(tiers=("pro",), priority=1)}
    arrival_s = np.arange(960) / 16
    work = workload(*[(at_s, 1000, 50) for at_s in arrival_s], tenant=np.arange(960) % 2, tenants=("low", "high"))
    twin = played(work, steady(pro=1), router=choose, plans=plans)
    done = Counter(int(work.tenant[index]) for index, end in enumerate(twin.tally.end) if end == "completed")
    assert done[1] > 5 * done[0]


def test_those_whose_patience_is_over_are_refused() -> None:
    work = workload(*[(0.0, 5000, 5)] * 40)  # half a second each; the patience is 10 s
    twin = played(work, steady(pro=1), router=choose)
    ends = Counter(twin.tally.end)
    assert set(ends) == {"completed", "rejected:overloaded"}
    assert max(ttft_s for ttft_s in twin.tally.ttft_s if ttft_s == ttft_s) < 11
    assert twin.tiers[0].counters.missed == 40 - twin.tiers[0].counters.kept


def test_without_admission_requests_wait_in_one_queue_first_come_first_served() -> None:
    plans = {"high": Plan(tiers=("pro",), priority=1)}
    work = workload(*[(0.1 * n, 100, 50) for n in range(6)], tenant=np.arange(6) % 2, tenants=("low", "high"))
    twin = played(work, steady(pro=1), family(tier(max_running=1)), router=two_choices, plans=plans, admission=False)
    assert first_s(twin) == sorted(first_s(twin))
    assert twin.tally.end == ["completed"] * 6


# --- several tiers


@pytest.mark.parametrize(("spill", "may"), [("both", True), ("down", True), ("up", False), ("none", False)])
def test_a_saturated_pro_spills_to_turbo_where_the_plan_allows(spill: Any, may: bool) -> None:
    given = family(tier("pro", quality=2, max_running=1), tier("turbo", quality=1))
    plans = {"default": Plan(tiers=("pro", "turbo"), spill=spill)}
    work = workload(*[(0.0, 1000, 100)] * 4)
    report = rehearse(Scenario(family=given, plans=plans), work, None, steady(pro=1, turbo=1), choose)
    assert (report.figures.spilled > 0) == may
    assert report.tiers["pro"].requests == 4
    assert report.tiers["turbo"].requests == 0


def test_what_no_tier_may_serve_counts_in_the_whole_alone() -> None:
    plans = {"small": Plan(tiers=("mini",))}
    work = workload(
        (0.0, 100, 5), (0.0, 100, 5), (0.0, 10_000, 5), (0.0, 100, 5),
        models=("nothing", "model-pro", "mini"), model=[0, 1, 2, 2],
        tenant=np.array([0, 1, 0, 1]), tenants=("any", "small"),
    )  # fmt: skip
    given = family(tier("pro", quality=2), tier("mini"))
    report = rehearse(Scenario(family=given, plans=plans), work, None, steady(pro=1, mini=1), shortest)
    assert report.figures.rejected == {"context_length_exceeded": 1, "model_not_found": 1, "not_in_plan": 1}
    assert (report.figures.requests, report.figures.completed) == (4, 1)
    assert (report.tiers["pro"].requests, report.tiers["mini"].requests, report.tiers["mini"].attainment) == (0, 1, 1.0)


def test_what_shrinks_gives_its_gpus_to_what_grows_in_the_same_tick() -> None:
    given = family(tier("pro"), tier("mini"))
    scaler = Planned({0.0: decision(pro=2, mini=0), 5.0: decision(pro=0, mini=2)})
    work, plans = workload((5.0, 100, 5), models=("mini",)), {"default": Plan(tiers=("mini",))}
    twin = played(work, scaler, given, gpus=2, initial={"pro": 2, "mini": 0}, plans=plans)
    assert first_s(twin) == pytest.approx([15.02])
