from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaling.ongoing import Decision, Memory, TierSeen, TierSpec, spec_of, step
from cluster.family import load

SPEC = TierSpec(min=0, max=4, initial=0, idle_s=300.0, target_ongoing=10)


def seen(now_s: float, ongoing: int | None = 0, queued: int | None = 0) -> TierSeen:
    return TierSeen(
        now_s=now_s, running_replicas=1, target_replicas=None, queued_requests=queued, ongoing_requests=ongoing
    )


def played(*ticks: TierSeen, spec: TierSpec = SPEC, memory: Memory | None = None) -> list[Decision]:
    memory, decisions = memory or Memory(), []
    for tick in ticks:
        decision, memory = step(tick, memory, spec)
        decisions.append(decision)
    return decisions


def targets(*ticks: TierSeen, spec: TierSpec = SPEC) -> list[int]:
    return [decision.target_replicas for decision in played(*ticks, spec=spec)]


def test_the_spec_is_the_family_file() -> None:
    tier = load("laptop").tiers["turbo"]
    assert spec_of(tier.replicas, tier.max_running) == TierSpec(
        min=1, max=2, initial=1, idle_s=300.0, target_ongoing=64
    )


def test_a_sleeping_tier_wakes_with_the_first_request_that_waits() -> None:
    (decision,) = played(seen(0, queued=1))
    assert (decision.target_replicas, decision.cause) == (1, "rise")
    assert decision.reason == "0 ongoing and 1 queued at 10 a replica want 1, 1 of 0 run: up from 0 at once"


@pytest.mark.parametrize(
    ("ongoing", "queued", "replicas"), [(0, 0, 0), (10, 0, 1), (10, 1, 2), (15, 16, 4), (999, 0, 4)]
)
def test_it_rises_at_once_to_what_the_requests_need(ongoing: int, queued: int, replicas: int) -> None:
    assert targets(seen(0, ongoing=ongoing, queued=queued)) == [replicas]


def test_it_falls_only_after_less_has_sufficed_for_idle_s() -> None:
    ticks = [seen(0, ongoing=35), seen(10, ongoing=15), seen(309.9, ongoing=15), seen(310, ongoing=15)]
    assert targets(*ticks) == [4, 4, 4, 2]
    decisions = played(*ticks)
    assert [decision.cause for decision in decisions] == ["rise", "hold", "hold", "fall"]
    assert decisions[1].reason.endswith("want 2, 1 of 4 run: held until less has sufficed for 300 s")
    assert decisions[3].reason.endswith("down to 2, more was not wanted for 300 s")


def test_it_falls_to_the_most_that_was_wanted_meanwhile() -> None:
    ticks = [
        seen(0, ongoing=40),
        seen(10, ongoing=0),
        seen(200, ongoing=20),
        seen(310, ongoing=0),
        seen(609, ongoing=0),
    ]
    assert targets(*ticks) == [4, 4, 4, 2, 2]
    assert targets(*ticks, seen(610, ongoing=0)) == [4, 4, 4, 2, 2, 0]


def test_a_burst_in_between_starts_the_wait_anew() -> None:
    ticks = [seen(0, ongoing=20), seen(10), seen(300, ongoing=20), seen(310), seen(609.9), seen(610)]
    assert targets(*ticks) == [2, 2, 2, 2, 2, 0]


def test_a_fresh_start_is_given_idle_s_too() -> None:
    spec = replace(SPEC, initial=2)
    assert targets(seen(0), seen(299), seen(300), spec=spec) == [2, 2, 0]


def test_it_starts_from_what_is_there_if_that_is_known() -> None:
    known = replace(seen(0), target_replicas=3)
    assert targets(known, spec=replace(SPEC, initial=1)) == [3]


@pytest.mark.parametrize("missing", [{"ongoing": None}, {"queued": None}])
def test_a_missing_signal_holds_the_last_target(missing: dict[str, None]) -> None:
    ticks = [seen(0, ongoing=25), seen(1000, **missing), seen(2000, **missing)]
    decisions = played(*ticks)
    assert [decision.target_replicas for decision in decisions] == [3, 3, 3]
    assert decisions[-1].cause == "blind"
    assert decisions[-1].reason.endswith("1 of 3 run: without that signal the last target holds")
    assert "unknown" in decisions[-1].reason


def test_after_blindness_idleness_must_be_seen_for_idle_s() -> None:
    ticks = [seen(0, ongoing=10), seen(1000, ongoing=None), seen(1010), seen(1309), seen(1310)]
    assert targets(*ticks) == [1, 1, 1, 1, 0]


def test_a_lowered_maximum_holds_at_once() -> None:
    _, memory = step(seen(0, ongoing=40), Memory(), SPEC)
    assert played(seen(1, ongoing=40), spec=replace(SPEC, max=2), memory=memory)[0].target_replicas == 2


def test_a_steady_tier_stays_as_it_is() -> None:
    assert played(seen(0, ongoing=5), seen(2, ongoing=5))[1].reason.endswith("1 of 1 run: as it is")


def test_every_cause_occurs() -> None:
    causes = {d.cause for d in played(seen(0, queued=1), seen(1), seen(2, queued=None), seen(3), seen(999))}
    assert causes == {"rise", "hold", "blind", "fall"}


counts = st.none() | st.integers(-5, 10**30)
gaps = st.floats(0, 1000)
ticks = st.lists(st.tuples(gaps, counts, counts), min_size=1, max_size=20)
specs = st.builds(
    lambda low, more, initial, idle_s, each: TierSpec(
        min=low, max=low + more, initial=min(low + initial, low + more), idle_s=idle_s, target_ongoing=each
    ),
    st.integers(0, 3),
    st.integers(1, 5),
    st.integers(0, 5),
    st.floats(0.1, 500),
    st.integers(1, 64),
)


def story(steps: list[tuple[float, int | None, int | None]]) -> list[TierSeen]:
    now_s, made = 0.0, []
    for gap_s, ongoing, queued in steps:
        now_s += gap_s
        made.append(seen(now_s, ongoing, queued))
    return made


@given(ticks, specs)
def test_the_target_never_leaves_its_bounds_and_memory_stays_small(
    steps: list[tuple[float, int | None, int | None]], spec: TierSpec
) -> None:
    memory = Memory()
    for tick in story(steps):
        decision, memory = step(tick, memory, spec)
        assert spec.min <= decision.target_replicas <= spec.max
        assert len(memory.demands) <= spec.max + 1


@given(ticks, specs, st.integers(0, 1000), st.integers(0, 1000))
def test_more_load_never_asks_for_fewer(
    steps: list[tuple[float, int | None, int | None]], spec: TierSpec, ongoing: int, more: int
) -> None:
    memory = Memory()
    for tick in story(steps):
        _, memory = step(tick, memory, spec)
    now_s = story(steps)[-1].now_s + 1
    less, _ = step(seen(now_s, ongoing=ongoing), memory, spec)
    greater, _ = step(seen(now_s, ongoing=ongoing + more), memory, spec)
    assert less.target_replicas <= greater.target_replicas


@given(ticks, specs, st.lists(st.floats(0.1, 100), min_size=1, max_size=50))
def test_a_tier_that_may_sleep_sleeps_after_idle_s_and_not_before(
    steps: list[tuple[float, int | None, int | None]], spec: TierSpec, idle_gaps_s: list[float]
) -> None:
    spec = replace(spec, min=0)
    memory = Memory()
    for tick in story([*steps, (1.0, 1, 0)]):
        _, memory = step(tick, memory, spec)
    now_s = idle_from_s = story([*steps, (1.0, 1, 0)])[-1].now_s + 1.0
    for gap_s in idle_gaps_s:
        decision, memory = step(seen(now_s), memory, spec)
        assert (decision.target_replicas == 0) == (now_s - idle_from_s >= spec.idle_s)
        now_s += gap_s


@given(ticks, specs)
def test_the_same_story_gives_the_same_decisions(
    steps: list[tuple[float, int | None, int | None]], spec: TierSpec
) -> None:
    assert played(*story(steps), spec=spec) == played(*story(steps), spec=spec)
