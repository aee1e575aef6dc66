"""What happens in rehearsals of a few requests. A step takes 10 ms + 1 ms per sequence, a prompt token 0.1 ms."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from twin_world import Planned, decision, family, jobs, shortest, steady, tier, video, workload

from autoscaling.peer_routing import two_choices
from autoscaling.signals import Decision, Scaler, Seen
from autoscaling.twin import LAST_CALL_S, UNLIMITED_GPUS, Failure, Scenario, _Twin, rehearse
from cluster.cost import Service, prefill_us_per_token
from cluster.errors import ConfigurationError
from cluster.family import Family, Plan
from cluster.loads import Ask, Choice, Loads, Router
from cluster.routing import choose
from cluster.workload import Jobs, Workload


def played(
    work: Workload,
    scaler: Scaler,
    given: Family | None = None,
    *,
    router: Router = shortest,
    jobs: Jobs | None = None,
    **changed: Any,
) -> _Twin:
    twin = _Twin(Scenario(family=given or family(), **changed), work, jobs, scaler, router)
    twin.run(None)
    return twin


def first_s(twin: _Twin) -> list[float]:
    """When each request got its first token."""
    return [float(at_s + ttft_s) for at_s, ttft_s in zip(twin.workload.arrival_s, twin.tally.ttft_s, strict=True)]


ONE = workload((0.0, 100, 101))  # the first token after 20 ms, the last after 1.12 s


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


# --- video


def test_video_gives_its_gpu_back_at_a_step_boundary_and_finishes_later() -> None:
    """Wanted at 2.5 s, free at 3, the tier ready at 13; from 20 s on video may have it back, and starts in 10 s."""
    scaler = Planned(
        {0.0: decision(1, pro=0), 2.5: decision(0, pro=1), 20.0: decision(1, pro=0)}, tick_s=0.5
    )  # fmt: skip
    given = family(tier(), video=video(), node_gpus=1)
    work = workload((2.5, 100, 5), (20.0, 100, 5))
    twin = played(
        work, scaler, given, jobs=jobs((0.0, 10, 1.0, 99.0)), gpus=1, initial={"pro": 0, "video": 1}, admission=False
    )  # fmt: skip
    assert twin.tally.ttft_s[0] + 2.5 == pytest.approx(13.02)
    assert twin.video is not None
    assert twin.video.finished_s == pytest.approx({0: 20.0 + 0.06 + 10.0 + 7.0}, abs=0.1)


def test_videos_are_billed_until_the_last_could_be_done() -> None:
    report = rehearse(
        Scenario(family=family(tier(), video=video()), initial={"pro": 0}),
        workload(), jobs((0.0, 10, 1.0, 99.0), (2.0, 10, 1.0, 11.0)), steady(1, pro=0), shortest,
    )  # fmt: skip
    assert (report.figures.jobs, report.figures.jobs_in_time, report.figures.value_usd) == (2, 1, 1.0)
    assert report.figures.gpu_hours * 3600 == pytest.approx(12.0)
    assert report.course.replicas["video"].tolist() == [1.0] * 13
    assert report.course.held["video"].tolist() == [0.0, 0.0] + [1.0] * 8 + [0.0] * 3


def test_a_dead_node_takes_its_videos_with_it() -> None:
    given = family(tier(), video=video(), node_gpus=1)
    twin = played(
        workload(), steady(2, pro=0), given, jobs=jobs((0.0, 10, 1.0, 99.0)), gpus=2,
        initial={"pro": 0, "video": 2}, failures=(Failure(at_s=4.5, node=0),),
    )  # fmt: skip
    assert twin.video is not None
    assert twin.video.finished_s == {0: 10.5}


def test_jobs_after_the_last_request_are_served() -> None:
    given = family(tier(), video=video())
    twin = played(ONE, steady(1, pro=1), given, jobs=jobs((50.0, 3, 1.0, 99.0)))
    assert twin.video is not None
    assert (twin.video.finished_s, twin.horizon_s) == ({0: 53.0}, 53.0)


def test_a_policy_that_does_not_decide_about_video_leaves_it_as_it_is() -> None:
    twin = played(workload(), steady(pro=1), family(tier(), video=video()), jobs=jobs((5.0, 3, 1.0, 99.0)))
    assert twin.video is not None
    assert twin.video.finished_s == {0: 8.0}


# --- what is seen and reported


def test_an_empty_workload_gives_an_empty_report() -> None:
    report = rehearse(Scenario(family=family()), workload(), None, steady(pro=1), shortest)
    assert (report.figures.requests, report.figures.gpu_hours, report.figures.gpu_hours_floor) == (0, 0.0, 0.0)
    assert (report.course.now_s.tolist(), report.course.gpus.tolist()) == ([0.0], [1.0])


def test_the_course_shows_arrivals_replicas_and_who_waits() -> None:
    scaler = Planned({0.0: decision(pro=0), 2.0: decision(pro=1)}, tick_s=2.0)
    work = workload((0.0, 100, 5), (1.0, 100, 5), (4.0, 100, 5), (14.0, 100, 5))
    course = rehearse(Scenario(family=family(), initial={"pro": 0}), work, None, scaler, shortest).course
    assert course.now_s.tolist() == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0]
    assert course.arrivals_per_s["pro"].tolist() == [0.5, 0.5, 0.5, 0, 0, 0, 0, 0.5]
    assert course.replicas["pro"].tolist() == [0] * 6 + [1, 1]
    assert course.held["pro"].tolist() == [1, 2, 3, 3, 3, 3, 0, 0]
    assert course.gpus.tolist() == [0] + [1] * 7


def test_every_decision_is_told_with_what_was_seen_and_remembered() -> None:
    class Counting:
        tick_s = 1.0

        def __call__(self, seen: Seen, memory: int | None) -> tuple[Decision, int]:
            return decision(pro=1), (memory or 0) + 1

    told: list[tuple[Any, ...]] = []
    rehearse(
        Scenario(family=family()), workload((2.0, 100, 5)), None, Counting(), shortest,
        lambda seen, memory, decided, after: told.append((seen.now_s, seen.gpus, memory, after)),
    )  # fmt: skip
    # The last look is one tick after the last arrival, since that request is not done by then.
    assert told[:2] == [(0.0, UNLIMITED_GPUS, None, 1), (1.0, UNLIMITED_GPUS, 1, 2)]
    assert [at_s for at_s, *_ in told] == [0.0, 1.0, 2.0, 3.0]


def test_a_cached_prefix_is_not_computed_again_and_not_counted_as_demand() -> None:
    blocks = ((1, 2), (1, 2), (1, 3))
    work = workload((0.0, 200, 2), (1.0, 200, 2), (2.0, 200, 2), blocks=blocks, block_tokens=100)
    scaler = steady(pro=1)
    twin = played(work, scaler)
    # All of it: at least one token is computed; half of it: 100 tokens.
    assert twin.tally.ttft_s == pytest.approx([0.030, 0.0101, 0.020])
    assert twin.tiers[0].counters.arrived_prompt_tokens == 200 + 1 + 100


def test_answers_take_the_room_of_cached_prompts() -> None:
    """The cache holds 300 tokens; beside an answer of 150 there is room for one block of 100."""
    given = family(tier(kv_tokens=300, context_tokens=250))
    work = workload((0.0, 200, 1), (1.0, 50, 150), (3.0, 200, 1), blocks=((1, 2), (), (1, 2)), block_tokens=100)
    twin = played(work, steady(pro=1), given)
    assert twin.tally.ttft_s == pytest.approx([0.030, 0.015, 0.020])


@pytest.mark.parametrize(("changed", "fault"), [
    ({"gpus": 0}, "scenario.gpus: 0; at least 1 is allowed, or None; mend the scenario"),
    ({"cold_start_s": 0.0}, "scenario.cold_start_s: 0.0; more than 0 is allowed, or None; mend the scenario"),
    ({"initial": {"big": 1}}, "scenario.initial.big: 'big'; pro, video are allowed; mend the scenario"),
    ({"initial": {"pro": -1}}, "scenario.initial.pro: -1; at least 0 is allowed; mend the scenario"),
    ({"imbalance": {"video": 2.0}}, "scenario.imbalance.video: 'video'; pro are allowed; mend the scenario"),
    ({"imbalance": {"pro": 0.5}},
     "scenario.imbalance.pro: 0.5; the most loaded rank is at least 1 time the mean; mend the scenario"),
    ({"plans": {"a": Plan(tiers=("big",))}}, "scenario.plans.a.tiers: 'big'; pro are allowed; mend the scenario"),
    ({"failures": (Failure(at_s=0),)}, "scenario.failures[0]: either a node or a tier is allowed; mend the scenario"),
    ({"failures": (Failure(at_s=0, node=0, tier="pro"),)},
     "scenario.failures[0]: either a node or a tier is allowed; mend the scenario"),
    ({"failures": (Failure(at_s=-1, node=0),)},
     "scenario.failures[0].at_s: -1; at least 0 is allowed; mend the scenario"),
    ({"failures": (Failure(at_s=1, tier="big"),)},
     "scenario.failures[0].tier: 'big'; pro are allowed; mend the scenario"),
])  # fmt: skip
def test_a_scenario_that_cannot_be_is_an_error(changed: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        Scenario(family=family(), **changed)
    assert error.value.message == fault


def test_jobs_for_a_family_without_video_are_an_error() -> None:
    with pytest.raises(ConfigurationError) as error:
        rehearse(Scenario(family=family()), workload(), jobs((0, 1, 1, 9)), steady(pro=1), shortest)
    assert error.value.message == "jobs: 1; no video in family tested; none are allowed; give None"
