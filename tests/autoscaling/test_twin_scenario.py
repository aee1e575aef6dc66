"""Videos in rehearsals, what is seen and reported of them, and scenarios that cannot be."""

from typing import Any

import numpy as np
import pytest
from twin_world import ONE, Planned, decision, family, jobs, played, shortest, steady, tier, video, workload

from autoscaling.signals import Decision, Seen
from autoscaling.twin import UNLIMITED_GPUS, Failure, Scenario, rehearse
from cluster.access import Sharing
from cluster.errors import ConfigurationError
from cluster.family import Accounts, Plan

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


@pytest.mark.parametrize(("sharing", "second_s"), [("key", 0.030), ("family", 0.0101)])
def test_a_tenant_gains_from_what_another_asked_only_where_the_family_lets_them_share(
    sharing: Sharing, second_s: float
) -> None:
    given = family(accounts=Accounts(prefix_cache=sharing))
    work = workload(
        (0.0, 200, 2), (1.0, 200, 2), (2.0, 200, 2), blocks=((1, 2), (1, 2), (1, 2)), block_tokens=100,
        tenant=np.array([0, 1, 0]), tenants=("a", "b"),
    )  # fmt: skip
    assert played(work, steady(pro=1), given).tally.ttft_s == pytest.approx([0.030, second_s, 0.0101])


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


def test_a_policy_that_is_never_asked_is_an_error() -> None:
    with pytest.raises(ConfigurationError) as error:
        rehearse(Scenario(family=family()), ONE, None, Planned({0.0: decision(pro=1)}, tick_s=0.0), shortest)
    assert error.value.message == "tick_s: 0.0; more than 0 is allowed; ask the policy later"
