"""The family's decision: needs, the budget, and what is said about them."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaling.parameters import Parameters
from autoscaling.policy import Memory, scaler, step
from autoscaling.signals import Decision, JobSeen, Scaler, Seen, Spec, TierSeen, VideoSeen, spec_of
from cluster.family import load

H200 = spec_of(load("h200"))
P = Parameters(
    tick_s=2.0,
    rho=0.95,
    z=0.5,
    z_min=0.3,
    short_s=30.0,
    long_s=90.0,
    doubt_share=0.1,
    start_s=0.0,
    calm_s=60.0,
    fall_every_s=30.0,
    stay_s=600.0,
)


def family(ranks: int = 4, video_max: int = 20, least: int = 1) -> Spec:
    """A pro tier and video replicas of one GPU."""
    assert H200.video is not None
    pro = replace(H200.tiers["pro"], ranks=ranks, min=least, max=50, cold_start_s=60.0, idle_s=300.0)
    return Spec(tiers={"pro": pro}, video=replace(H200.video, min=0, max=video_max))


def jobs(count: int, deadline_s: float = 1e6) -> tuple[JobSeen, ...]:
    return (JobSeen(left_gpu_s=600.0, deadline_s=deadline_s, value_usd=0.5),) * count


def pro(ready: int = 1, **others: Any) -> dict[str, TierSeen | None]:
    return {"pro": TierSeen(ready=ready, **others)}


def decide(spec: Spec, *looks: Seen, parameters: Parameters = P) -> list[Decision]:
    decisions, memory = [], None
    for look in looks:
        decision, memory = step(look, memory, spec, parameters)
        decisions.append(decision)
    return decisions


def video_of(decision: Decision) -> tuple[int, int, str]:
    assert decision.video is not None
    return decision.video.replicas, decision.video.wanted, decision.video.cause


def test_the_policy_is_a_scaler_with_its_tick() -> None:
    policy: Scaler = scaler(H200, Parameters(tick_s=5.0))
    assert policy.tick_s == 5.0
    seen = Seen(now_s=0.0, gpus=16)
    assert policy(seen, None) == step(seen, None, H200, Parameters(tick_s=5.0))
    assert scaler(H200).parameters == Parameters()


def test_a_reason_gives_the_figures() -> None:
    (decision,) = decide(family(), Seen(now_s=0.0, gpus=100, tiers=pro(ready=5), video=VideoSeen(ready=0)))
    assert decision.tiers["pro"].reason == (
        "load 0.00 (30 s) 0.00 (90 s), trend +0.00: 0.00 expected; backlog 0.00, margin 0.00 at z 0.50: 1 wanted, "
        "5 until less has sufficed"
    )
    assert decision.video is not None
    assert decision.video.reason == "0 jobs, 0 GPU-s left, 0 required by deadlines: 0 wanted"


def test_a_tier_rises_holds_and_falls() -> None:
    quiet = [Seen(now_s=2.0 * tick, gpus=100, tiers=pro()) for tick in range(34)]
    crowd = replace(quiet[1], tiers=pro(held_requests=3000))
    decisions = decide(family(), quiet[0], crowd, *quiet[2:])
    targets = [decision.tiers["pro"] for decision in decisions]
    assert [target.cause for target in (targets[0], targets[1], targets[2], targets[31])] == [
        "hold", "rise", "hold", "fall",
    ]  # fmt: skip
    assert targets[30].replicas == targets[1].replicas > 1


def test_video_takes_one_replica_per_job_and_none_without() -> None:
    for waiting, expected in ((0, (0, 0, "fall")), (3, (3, 3, "rise")), (30, (20, 20, "rise"))):
        look = Seen(now_s=0.0, gpus=100, tiers=pro(), video=VideoSeen(ready=1, jobs=jobs(waiting)))
        assert video_of(decide(family(), look)[0]) == expected


def test_video_fills_what_the_tiers_leave_and_gives_it_back() -> None:
    valley = Seen(now_s=0.0, gpus=16, tiers=pro(ready=1), video=VideoSeen(ready=4, jobs=jobs(20)))
    peak = replace(valley, now_s=2.0, tiers=pro(held_requests=2500), video=VideoSeen(ready=12, jobs=jobs(20)))
    calm, busy = decide(family(), valley, peak)
    assert (calm.tiers["pro"].replicas, video_of(calm)) == (1, (12, 20, "budget"))
    assert busy.tiers["pro"].replicas == 3
    assert video_of(busy) == (4, 20, "budget")
    assert busy.video is not None
    assert busy.video.reason.endswith("20 wanted; the budget leaves 4")


def test_without_lending_video_keeps_what_it_has_while_it_has_jobs() -> None:
    valley = Seen(now_s=0.0, gpus=16, tiers=pro(ready=1), video=VideoSeen(ready=4, jobs=jobs(20)))
    peak = replace(valley, now_s=2.0, tiers=pro(held_requests=4000), video=VideoSeen(ready=12, jobs=jobs(20)))
    done = replace(peak, now_s=4.0, video=VideoSeen(ready=12, jobs=jobs(2)))
    calm, busy, last = decide(family(), valley, peak, done, parameters=replace(P, lending=False))
    assert busy.tiers["pro"].replicas == calm.tiers["pro"].replicas == 1
    assert busy.tiers["pro"].cause == "budget"
    assert video_of(busy) == (12, 20, "budget")
    assert (last.tiers["pro"].replicas, video_of(last)) == (3, (2, 2, "fall"))


def test_a_job_whose_deadline_is_near_is_worth_more() -> None:
    """Video at the value of a language replica that is hardly needed, and a little below."""
    spec = family(ranks=1, least=0)
    cheap = replace(spec.tiers["pro"], price=H200.tiers["mini"].price.model_copy(update={"input_usd_per_mtok": 0.1}))
    spec = replace(spec, tiers={"pro": cheap})
    due = [
        Seen(
            now_s=0.0,
            gpus=1,
            tiers=pro(ongoing_requests=1),
            video=VideoSeen(ready=1, jobs=(JobSeen(left_gpu_s=600.0, deadline_s=deadline, value_usd=0.6),)),
        )
        for deadline in (700.0, 100.0)
    ]
    assert [decide(spec, look)[0].tiers["pro"].replicas for look in due] == [0, 1]


def test_blind_tiers_and_blind_video_keep_what_they_have() -> None:
    first = Seen(now_s=0.0, gpus=40, tiers=pro(ready=6), video=VideoSeen(ready=5, jobs=jobs(5)))
    blind = Seen(now_s=2.0, gpus=40)
    _, decision = decide(family(), first, blind)
    assert (decision.tiers["pro"].replicas, decision.tiers["pro"].cause) == (6, "blind")
    assert decision.tiers["pro"].reason == "no signals: the last target 6 holds"
    assert video_of(decision) == (5, 5, "blind")


def test_a_blind_tier_that_the_budget_held_down_does_not_grow() -> None:
    first = Seen(now_s=0.0, gpus=24, tiers=pro(ready=10))
    _, decision = decide(family(), first, Seen(now_s=2.0, gpus=40))
    assert decision.tiers["pro"].replicas == 6


def test_a_minimum_that_does_not_fit_is_said() -> None:
    (decision,) = decide(family(least=3), Seen(now_s=0.0, gpus=9, tiers=pro(ready=3)))
    target = decision.tiers["pro"]
    assert (target.replicas, target.wanted, target.cause) == (2, 3, "budget")
    assert target.reason.endswith("; the budget leaves 2, below the minimum 3")


def test_a_family_without_video_gets_no_video_target() -> None:
    decision, memory = step(Seen(now_s=0.0, gpus=8, tiers=pro()), None, replace(family(), video=None), P)
    assert decision.video is None
    assert memory.targets == {"pro": 1}
    assert spec_of(load("h200").model_copy(update={"video": None})) == replace(H200, video=None)


def test_a_tier_asleep_says_so() -> None:
    looks = [Seen(now_s=300.0 * tick, gpus=8, tiers=pro(ready=0)) for tick in range(2)]
    assert decide(family(least=0), *looks)[1].tiers["pro"].reason == "no request for 300 s: asleep"


def test_a_tier_that_may_not_sleep_is_not_said_to() -> None:
    looks = [Seen(now_s=300.0 * tick, gpus=8, tiers=pro(ready=1)) for tick in range(2)]
    assert decide(family(least=1), *looks)[1].tiers["pro"].reason.endswith(": 1 wanted")


def test_a_tier_that_needs_more_than_it_may_have_says_so() -> None:
    looks = [Seen(now_s=2.0 * tick, gpus=800, tiers=pro(held_requests=10**6 * tick)) for tick in range(2)]
    most = family().tiers["pro"].max
    assert decide(family(), *looks)[1].tiers["pro"].reason.endswith(f": {most} wanted, the most allowed")


counts = st.integers(0, 300)
tier_looks = st.none() | st.builds(
    TierSeen,
    ready=st.integers(0, 20),
    starting=st.integers(0, 5),
    arrived_requests=counts,
    arrived_prompt_tokens=st.integers(0, 10**6),
    finished_requests=counts,
    finished_output_tokens=st.integers(0, 10**6),
    kept=counts,
    missed=counts,
    ongoing_requests=counts,
    held_requests=counts,
    waiting_prefill_tokens=st.integers(0, 10**6),
    cold_start_s=st.none() | st.floats(1, 300),
)
job_looks = st.builds(
    JobSeen, left_gpu_s=st.floats(0, 5000), deadline_s=st.floats(-100, 5000), value_usd=st.floats(0, 10)
)
video_looks = st.none() | st.builds(
    VideoSeen, ready=st.integers(0, 20), starting=st.integers(0, 5), jobs=st.lists(job_looks, max_size=8).map(tuple)
)
family_looks = st.lists(
    st.tuples(
        st.integers(0, 200), st.fixed_dictionaries({name: tier_looks for name in H200.tiers}), video_looks
    ),
    min_size=1,
    max_size=8,
)  # fmt: skip


@given(family_looks, st.booleans())
def test_every_decision_keeps_the_bounds_and_the_budget(
    looks: list[tuple[int, dict[str, TierSeen | None], VideoSeen | None]], lending: bool
) -> None:
    assert H200.video is not None
    seen = [
        Seen(now_s=30.0 * index, gpus=gpus, tiers=tiers, video=video)
        for index, (gpus, tiers, video) in enumerate(looks)
    ]
    for look, decision in zip(seen, decide(H200, *seen, parameters=replace(P, lending=lending)), strict=True):
        assert decision.video is not None
        used = sum(H200.tiers[name].ranks * target.replicas for name, target in decision.tiers.items())
        assert used + H200.video.gpus * decision.video.replicas <= look.gpus
        minima = sum(tier.ranks * tier.min for tier in H200.tiers.values())
        for name, target in decision.tiers.items():
            assert target.replicas <= H200.tiers[name].max
            assert target.replicas >= H200.tiers[name].min or minima > look.gpus
            assert target.reason
        assert decision.video.replicas <= max(H200.video.max, 0)


@given(tier_looks.filter(lambda look: look is not None), st.integers(1, 2000), st.integers(0, 60), video_looks)
def test_with_a_budget_too_more_held_requests_never_give_a_tier_fewer(
    look: TierSeen, more: int, gpus: int, video: VideoSeen | None
) -> None:
    first = Seen(now_s=0.0, gpus=gpus, tiers=pro(), video=video)
    _, memory = step(first, None, family(), P)
    seen = [
        replace(first, now_s=2.0, tiers={"pro": replace(look, held_requests=look.held_requests + added)})
        for added in (0, more)
    ]
    less, most = (step(each, memory, family(), P)[0].tiers["pro"].replicas for each in seen)
    assert less <= most


def moves(parameters: Parameters) -> int:
    """Two tiers of one kind compete for 8 replicas; both want more, and their backlogs swing against each other."""
    pro_spec = family().tiers["pro"]
    spec = Spec(tiers={"a": pro_spec, "b": pro_spec})
    memory: Memory | None = None
    targets = []
    for tick in range(100):
        tiers: dict[str, TierSeen | None] = {
            name: TierSeen(ready=4, held_requests=int(4500 + sign * 1000 * math.sin(tick)))
            for name, sign in (("a", 1), ("b", -1))
        }
        decision, memory = step(Seen(now_s=2.0 * tick, gpus=32, tiers=tiers), memory, spec, parameters)
        targets.append({name: target.replicas for name, target in decision.tiers.items()})
    return sum(before != after for before, after in pairwise(targets))


def test_replicas_do_not_change_tiers_with_the_noise() -> None:
    assert moves(P) == 0
    assert moves(replace(P, stay_s=1e9)) > 10  # no cold start to be spread over: every swing moves one


def test_a_spec_of_the_family_file_is_decided_whole() -> None:
    decision, _ = step(Seen(now_s=0.0, gpus=16), None, H200, P)
    assert list(decision.tiers) == list(H200.tiers)
    assert {name: target.replicas for name, target in decision.tiers.items()} == {
        name: tier.min for name, tier in H200.tiers.items()
    }
    assert video_of(decision) == (0, 0, "blind")


@pytest.mark.parametrize("cold_start_s", [30.0, 120.0, 300.0])
def test_one_set_of_parameters_serves_every_cold_start(cold_start_s: float) -> None:
    looks = []
    for tick in range(120):
        crowd = pro(arrived_requests=400 * tick, arrived_prompt_tokens=400_000 * tick, cold_start_s=cold_start_s)
        looks.append(Seen(now_s=2.0 * tick, gpus=400, tiers=crowd))
    steady = decide(family(), *looks)[-1].tiers["pro"].replicas
    assert 25 <= steady <= 29  # 200 a second are 24.6 replicas
