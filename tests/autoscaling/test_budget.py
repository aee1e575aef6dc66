"""Who gets the GPUs. Values in USD per GPU-second, of the first, second, ... replica."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaling.budget import Claim, allot, language_values, video_values
from autoscaling.parameters import Parameters
from autoscaling.signals import JobSeen, VideoSeen, VideoSpec

P = Parameters(deadline_margin=1.0, protect=3.0)
VIDEO = VideoSpec(gpus=2, min=0, max=10, cold_start_s=20.0)


def claim(name: str = "a", values: tuple[float, ...] = (), **others: Any) -> Claim:
    return Claim(
        **{"name": name, "ranks": 1, "min": 0, "wanted": len(values), "values_usd_per_gpu_s": values, **others}
    )


def job(left_gpu_s: float, deadline_s: float, value_usd: float = 1.0) -> JobSeen:
    return JobSeen(left_gpu_s=left_gpu_s, deadline_s=deadline_s, value_usd=value_usd)


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        (0, {"a": 0, "b": 0}),
        (1, {"a": 1, "b": 0}),  # 5
        (2, {"a": 1, "b": 1}),  # 5, 4
        (4, {"a": 2, "b": 2}),  # 5, 4, 3, 2
        (9, {"a": 3, "b": 2}),  # all that is wanted, and no more
    ],
)
def test_the_next_gpu_goes_where_it_is_worth_most(gpus: int, expected: dict[str, int]) -> None:
    assert allot([claim("a", (5, 3, 1)), claim("b", (4, 2))], gpus).replicas == expected


def test_minima_go_first_and_those_that_do_not_fit_are_named() -> None:
    claims = [claim("dear", (9.0,) * 5), claim("cheap", (1.0,) * 3, min=3), claim("mid", (2.0, 2.0), min=2)]
    assert allot(claims, 6).replicas == {"dear": 1, "cheap": 3, "mid": 2}
    assert allot(claims, 6).missing == {}
    assert allot(claims, 3).replicas == {"dear": 0, "cheap": 1, "mid": 2}  # among minima, too, by value
    assert allot(claims, 3).missing == {"cheap": 2}


def test_a_minimum_counts_although_less_is_wanted() -> None:
    assert allot([claim(min=2)], 5).replicas == {"a": 2}


def test_what_is_kept_goes_before_what_is_worth_more_but_after_minima() -> None:
    claims = [claim("kept", (1.0,) * 4, keep=3), claim("dear", (9.0,) * 4, min=1)]
    assert allot(claims, 5).replicas == {"kept": 3, "dear": 2}
    assert allot(claims, 2).replicas == {"kept": 1, "dear": 1}


def test_a_replica_takes_its_gpus_whole_and_what_is_left_goes_to_smaller_ones() -> None:
    claims = [claim("group", (9.0, 9.0), ranks=8), claim("single", (1.0,) * 20)]
    assert allot(claims, 13).replicas == {"group": 1, "single": 5}
    assert allot(claims, 7).replicas == {"group": 0, "single": 7}


def test_more_gpus_may_give_less_to_single_ones_where_a_group_now_fits() -> None:
    claims = [claim("group", (9.0,), ranks=8), claim("single", (1.0,) * 20)]
    assert [allot(claims, gpus).replicas["single"] for gpus in (7, 8)] == [7, 0]


def test_ties_go_to_what_runs_and_then_to_the_first_named() -> None:
    claims = [claim("a", (1.0,) * 3), claim("b", (1.0,) * 3, held=2)]
    assert allot(claims, 3).replicas == {"a": 1, "b": 2}


def test_a_slightly_better_newcomer_does_not_displace_what_runs() -> None:
    held, new = claim("held", (1.0,), held=1, stay=1.2), claim("new", (1.1,))
    assert allot([new, held], 1).replicas == {"new": 0, "held": 1}
    assert allot([replace(new, values_usd_per_gpu_s=(1.3,)), held], 1).replicas == {"new": 1, "held": 0}


def test_a_language_replica_is_worth_as_much_of_it_as_is_expected_to_be_busy() -> None:
    assert language_values(8.0, 2.5, 0.0, 5, 4) == pytest.approx((2, 2, 1, 0, 0), abs=0.01)  # 2.5, and no doubt
    values = language_values(8.0, 2.0, 1.0, 9, 4)
    assert values[:2] == pytest.approx((2, 2))  # expected
    assert values[2] == pytest.approx(2 * 0.6312, rel=1e-3)  # over(2) - over(3) = 0.7979 - 0.1666
    assert sum(values) == pytest.approx(2 * (2 + 0.7979), rel=1e-3)  # all of the need together


@given(st.floats(0, 50), st.floats(0, 20), st.integers(0, 80))
def test_values_never_rise_nor_fall_below_zero(erlangs: float, deviation: float, replicas: int) -> None:
    values = language_values(1.0, erlangs, deviation, replicas, 1)
    assert all(-1e-9 <= later <= earlier + 1e-9 for earlier, later in pairwise(values))


@given(st.floats(0, 20), st.floats(0, 5), st.floats(0, 5), st.floats(0, 5))
def test_a_larger_need_never_makes_a_replica_worth_less(
    erlangs: float, more: float, margin: float, wider: float
) -> None:
    values = language_values(1.0, erlangs, margin / 2, 30, 1)
    larger = language_values(1.0, erlangs + more, (margin + wider) / 2, 30, 1)
    assert all(after >= before - 1e-9 for before, after in zip(values, larger, strict=True))


def test_video_values_are_those_of_the_best_jobs() -> None:
    jobs = (job(100, 10_000, 1.0), job(100, 10_000, 4.0), job(200, 10_000, 4.0))
    required, values = video_values(VideoSeen(ready=1, jobs=jobs), VIDEO, P, 0.0)
    assert required == 1  # 200 s on one replica of two GPUs
    assert values == pytest.approx((3 * 0.04, 0.02, 0.01))


def test_deadlines_require_replicas() -> None:
    jobs = tuple(job(200, 1220) for _ in range(4))  # 100 s each
    assert [video_values(VideoSeen(ready=1, jobs=jobs), VIDEO, P, now)[0] for now in (800, 1000, 1090)] == [1, 2, 4]
    assert video_values(VideoSeen(ready=1, jobs=jobs, cold_start_s=50.0), VIDEO, P, 1090.0)[0] == 1  # too late to start
    required, values = video_values(VideoSeen(ready=1, jobs=jobs), VIDEO, P, 1110.0)
    assert required == 1  # here, too
    assert values == pytest.approx((0.015, 0.005, 0.005, 0.005))


def test_a_job_that_is_late_anyhow_earns_nothing_and_holds_up_no_other() -> None:
    late, hopeful = job(2000, 100, 50.0), job(100, 100, 1.0)
    assert video_values(VideoSeen(ready=1, jobs=(late, hopeful)), VIDEO, P, 0.0) == (1, (0.03,))
    assert video_values(VideoSeen(ready=1, jobs=(late,)), VIDEO, P, 0.0) == (0, ())
    assert video_values(VideoSeen(ready=0, jobs=(job(100, 60),)), VIDEO, P, 0.0) == (
        0,
        (),
    )  # 20 s to start, 50 s to run


def test_a_job_that_is_all_but_done_has_a_finite_value() -> None:
    assert video_values(VideoSeen(ready=1, jobs=(job(0.0, 10, 2.0),)), VIDEO, P, 0.0) == (1, (6.0,))


@st.composite
def claims_of(draw: st.DrawFn, ranks: st.SearchStrategy[int]) -> list[Claim]:
    claims = []
    for index in range(draw(st.integers(1, 5))):
        values = sorted(draw(st.lists(st.floats(0, 10), max_size=12)), reverse=True)
        wanted = draw(st.integers(0, 12))
        claims.append(
            Claim(
                name=str(index),
                ranks=draw(ranks),
                min=draw(st.integers(0, 4)),
                keep=draw(st.integers(0, wanted)),
                wanted=wanted,
                held=draw(st.integers(0, 12)),
                values_usd_per_gpu_s=tuple(values),
                stay=draw(st.floats(1, 2)),
            )
        )
    return claims


mixed = claims_of(st.sampled_from([1, 2, 4, 8]))


@given(mixed, st.integers(0, 100))
def test_never_over_the_budget_nor_above_what_is_wanted(claims: list[Claim], gpus: int) -> None:
    replicas = allot(claims, gpus).replicas
    assert sum(claim.ranks * replicas[claim.name] for claim in claims) <= gpus
    assert all(0 <= replicas[claim.name] <= max(claim.min, claim.wanted) for claim in claims)


@given(mixed, st.integers(0, 100))
def test_never_below_the_minima_where_they_fit(claims: list[Claim], gpus: int) -> None:
    found = allot(claims, gpus)
    if sum(claim.ranks * claim.min for claim in claims) <= gpus:
        assert found.missing == {}
    for claim in claims:
        assert found.replicas[claim.name] + found.missing.get(claim.name, 0) >= claim.min


@given(mixed, st.integers(0, 100))
def test_no_gpu_stays_idle_that_somebody_wants(claims: list[Claim], gpus: int) -> None:
    replicas = allot(claims, gpus).replicas
    left = gpus - sum(claim.ranks * replicas[claim.name] for claim in claims)
    assert all(claim.ranks > left for claim in claims if replicas[claim.name] < max(claim.min, claim.wanted))


@given(claims_of(st.just(2)), st.integers(0, 100), st.integers(0, 20))
def test_with_equal_ranks_more_gpus_never_give_any_claim_fewer(claims: list[Claim], gpus: int, more: int) -> None:
    less, most = allot(claims, gpus).replicas, allot(claims, gpus + more).replicas
    assert all(less[name] <= most[name] for name in less)


@given(mixed, st.integers(0, 100), st.floats(1, 10), st.integers(0, 5))
def test_a_claim_that_is_worth_more_never_gets_fewer(claims: list[Claim], gpus: int, times: float, more: int) -> None:
    first, *others = claims
    dearer = replace(
        first,
        wanted=first.wanted + more,
        values_usd_per_gpu_s=tuple(value * times for value in first.values_usd_per_gpu_s),
    )
    assert allot([first, *others], gpus).replicas["0"] <= allot([dearer, *others], gpus).replicas["0"]


@given(mixed, st.integers(0, 100))
def test_what_was_allotted_stays_when_nothing_changes(claims: list[Claim], gpus: int) -> None:
    found = allot(claims, gpus).replicas
    settled = [replace(claim, held=found[claim.name]) for claim in claims]
    once_more = allot(settled, gpus).replicas
    assert allot([replace(claim, held=once_more[claim.name]) for claim in claims], gpus).replicas == once_more


@given(
    st.lists(st.tuples(st.floats(0, 5000), st.floats(-100, 5000), st.floats(0, 100)), max_size=20), st.integers(0, 12)
)
def test_video_values_never_rise_and_deadlines_require_no_more_than_there_may_be(
    jobs: list[tuple[float, float, float]], ready: int
) -> None:
    seen = VideoSeen(ready=ready, jobs=tuple(job(*each) for each in jobs))
    required, values = video_values(seen, VIDEO, P, 0.0)
    assert list(values) == sorted(values, reverse=True)
    assert 0 <= required <= min(VIDEO.max, len(values))
