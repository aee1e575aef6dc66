from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.steps import PATIENCE, Choice, Underway, choose


def job(job_id: str, **changes: Any) -> Underway:
    """Of ten steps of one second, and all the time in the world."""
    given: dict[str, Any] = {
        "job_id": job_id, "key": ("64x64",), "tokens": 100, "step_s": 1.0, "left_gpu_s": 10.0, "deadline_s": 1e6,
        "since_s": 0.0,
    }  # fmt: skip
    return Underway(**given | changes)


def first(jobs: Sequence[Underway], now_s: float = 0.0, max_tokens: int = 100, gpus: int = 1) -> tuple[str, str]:
    """Who steps where a step has room for one, and why."""
    choice = choose(jobs, now_s, max_tokens=max_tokens, gpus=gpus)
    (job_id,) = choice.job_ids
    return job_id, choice.reason


def test_the_shortest_goes_first() -> None:
    assert first([job("long"), job("short", left_gpu_s=3)]) == ("short", "shortest")


def test_a_higher_priority_goes_before_a_shorter_one() -> None:
    assert first([job("long", priority=1), job("short", left_gpu_s=3)]) == ("long", "shortest")


@pytest.mark.parametrize(
    ("deadline_s", "goes"),
    [
        (13.5, "short"),  # 10 s of work leave 3.5 s: room for the 3 s of the short one before it
        (12.5, "pressed"),  # 2.5 s do not
        (10.0, "pressed"),
        (9.5, "short"),  # late in any case
    ],
)
def test_who_can_keep_its_deadline_only_by_going_now_goes_now(deadline_s: float, goes: str) -> None:
    assert first([job("pressed", deadline_s=deadline_s), job("short", left_gpu_s=3)])[0] == goes


def test_a_deadline_is_counted_in_gpu_seconds_of_all_gpus() -> None:
    jobs = [job("pressed", deadline_s=12.5), job("short", left_gpu_s=3)]
    assert first(jobs)[0] == "pressed"
    assert first(jobs, gpus=2)[0] == "short"  # 5 s of work leave 7.5 s


def test_of_two_that_are_pressed_the_earlier_deadline_goes_first() -> None:
    jobs = [job("later", deadline_s=12), job("earlier", deadline_s=11), job("short", left_gpu_s=3)]
    assert first(jobs) == ("earlier", "pressed")


def test_who_has_waited_for_many_of_its_steps_goes_before_all_others() -> None:
    jobs = [job("starved", left_gpu_s=50), job("short", left_gpu_s=3, priority=9, since_s=PATIENCE - 1)]
    assert first(jobs, now_s=PATIENCE - 0.1)[0] == "short"
    assert first(jobs, now_s=PATIENCE) == ("starved", "starved")


def test_jobs_of_one_shape_step_together_as_far_as_their_tokens_fit() -> None:
    jobs = [job("a"), job("b", left_gpu_s=4), job("other", key=("96x64",)), job("c", deadline_s=50), job("d")]
    choice = choose(jobs, 0, max_tokens=300)
    assert choice == Choice(job_ids=("b", "c", "a"), reason="shortest")  # c has the earliest deadline, then by name


def test_a_job_that_is_larger_than_a_step_may_be_steps_alone() -> None:
    jobs = [job("huge", tokens=900, left_gpu_s=2), job("small")]
    assert choose(jobs, 0, max_tokens=500).job_ids == ("huge",)


@st.composite
def crowds(draw: st.DrawFn) -> list[Underway]:
    """Jobs that came at 0."""
    count = draw(st.integers(1, 6))
    return [
        job(
            str(number),
            key=(draw(st.sampled_from("ab")),),
            tokens=draw(st.integers(1, 400)),
            step_s=draw(st.floats(0.1, 5)),
            left_gpu_s=draw(st.floats(0.1, 100)),
            deadline_s=draw(st.floats(0, 500)),
            priority=draw(st.integers(0, 2)),
        )
        for number in range(count)
    ]


@given(crowds(), st.floats(0, 200), st.integers(100, 1000), st.randoms())
def test_a_choice_is_of_one_shape_within_the_bound_and_the_same_in_any_order(
    jobs: list[Underway], now_s: float, max_tokens: int, order: Any
) -> None:
    choice = choose(jobs, now_s, max_tokens=max_tokens)
    group = [one for one in jobs if one.job_id in choice.job_ids]
    assert len({one.key for one in group}) == 1
    assert len(group) == len(choice.job_ids) >= 1
    assert len(group) == 1 or sum(one.tokens for one in group) <= max_tokens
    shuffled = order.sample(jobs, len(jobs))
    assert choose(shuffled, now_s, max_tokens=max_tokens) == choice


@given(crowds(), st.integers(100, 1000))
def test_no_job_waits_longer_than_its_patience_and_a_step_of_each_other(jobs: list[Underway], max_tokens: int) -> None:
    """None ever ends, whatever comes first goes on coming first."""
    now_s = 0.0
    longest_s = sum(one.step_s for one in jobs)  # of a step that all share
    for _ in range(200):
        ids = choose(jobs, now_s, max_tokens=max_tokens).job_ids
        now_s += sum(one.step_s for one in jobs if one.job_id in ids)
        jobs = [replace(one, since_s=now_s) if one.job_id in ids else one for one in jobs]
        for one in jobs:
            assert now_s - one.since_s <= PATIENCE * one.step_s + len(jobs) * longest_s + 1e-6


@given(st.lists(st.integers(1, 8), min_size=1, max_size=6))
def test_alone_on_the_machine_the_shortest_first_ends_jobs_soonest_on_average(steps: list[int]) -> None:
    """No batch, no deadline, patience enough: completion times are those of the sorted jobs."""
    left = {str(number): count for number, count in enumerate(steps)}
    ends, now_s = [], 0.0
    while left:
        jobs = [job(name, key=(name,), left_gpu_s=count, step_s=1e3) for name, count in left.items()]
        (name,) = choose(jobs, now_s, max_tokens=1).job_ids
        now_s += 1
        left[name] -= 1
        if not left[name]:
            ends.append(now_s)
            del left[name]
    shortest_first = [sum(sorted(steps)[: index + 1]) for index in range(len(steps))]
    assert ends == shortest_first
