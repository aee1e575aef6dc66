import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.admission import (
    CALM_SHARE,
    HURRY,
    LEAST_RETRY_S,
    Due,
    Head,
    Verdict,
    decide,
    next_head,
    overdue_s,
    patience_from_s,
    queue_wait_s,
    retry_after_s,
)
from cluster.loads import Choice

times = st.floats(0, 1000)
choices = st.none() | st.builds(
    Choice,
    index=st.none() | st.integers(0, 9),
    ttft_s=times | st.just(math.inf),
    tpot_ms=times,
    feasible=st.booleans(),
    method=st.just("predicted"),
    own_s=times,
)
patiences = st.floats(0.1, 1000) | st.just(math.inf)
dues = st.builds(
    lambda arrived_s, waited_s, **others: Due(now_s=arrived_s + waited_s, arrived_s=arrived_s, **others),
    arrived_s=times,
    waited_s=times,
    ttft_s=st.floats(0.01, 100),
    tpot_ms=st.floats(1, 500),
    patience_s=patiences,
    wait_s=times | st.just(math.inf),
)


def replica(ttft_s: float, *, feasible: bool = False, own_s: float = 0.0, tpot_ms: float = 20.0) -> Choice:
    return Choice(0, ttft_s, tpot_ms, feasible, "predicted", own_s)


def due(waited_s: float = 0.0, wait_s: float = math.inf, patience_s: float = 10.0) -> Due:
    """The first token is promised after 1 s, the others every 50 ms; the patience is ten seconds."""
    return Due(
        now_s=100 + waited_s, arrived_s=100, ttft_s=1.0, tpot_ms=50.0, patience_s=patience_s, wait_s=wait_s
    )  # fmt: skip


NONE_OPEN = Choice(None, math.inf, math.inf, False, "none")
CALM = replica(1.2, own_s=1.0)  # 0.2 s of the work of others are ahead; 0.25 s are calm


@pytest.mark.parametrize(
    ("best", "waited_s", "wait_s", "action"),
    [
        (replica(0.5, feasible=True), 0, 0, "dispatch"),
        (replica(0.5, feasible=True), 20, 0, "dispatch"),  # even after its patience: there is room
        (replica(2), 0, 0.9, "hold"),  # 0.9 <= 1: a place in time
        (CALM, 0, 0.9, "hold"),  # in time there goes before late here
        (CALM, 0.2, 0.9, "dispatch"),  # 1.1 > 1: no longer in time there
        (CALM, 0, math.inf, "dispatch"),
        (replica(1.3, own_s=1.0), 0, math.inf, "postpone"),  # 0.3 > 0.25
        (replica(9), 0, 1.1, "postpone"),
        (replica(11), 0, 1.1, "postpone"),  # 11 > 10 there, 1.1 <= 10 at the place that comes
        (replica(9.5), 1, 8, "postpone"),  # 10.5 > 10 and 9 <= 10
        (replica(11), 0, 10.5, "refuse"),
        (replica(9), 2, math.inf, "refuse"),  # 11 > 10
        (NONE_OPEN, 0, 0.5, "hold"),
        (None, 0, 0.5, "hold"),
        (None, 0, 9, "postpone"),
        (None, 0, 30, "refuse"),
        (NONE_OPEN, 0, math.inf, "refuse"),
    ],
)
def test_a_request_goes_waits_steps_back_or_is_refused(
    best: Choice | None, waited_s: float, wait_s: float, action: str
) -> None:
    assert decide(best, due(waited_s, wait_s)).action == action


def test_a_replica_beyond_the_pace_is_not_calm() -> None:
    assert decide(replace(CALM, tpot_ms=50.0), due()).action == "dispatch"
    assert decide(replace(CALM, tpot_ms=50.1), due()).action == "postpone"


def test_the_longer_it_waits_the_busier_a_replica_it_goes_to() -> None:
    hurry = HURRY * (5 / 10) ** 2
    assert decide(replica(CALM_SHARE + hurry), due(5)).action == "dispatch"
    assert decide(replica(CALM_SHARE + hurry + 0.01), due(5)).action == "postpone"
    assert decide(replica(0, tpot_ms=50.1), due(5)).action == "postpone", "all who run there share the pace"


def test_a_choice_without_a_replica_is_never_dispatched_to() -> None:
    assert decide(Choice(None, 0.1, 20.0, True, "none"), due()).action != "dispatch"


@pytest.mark.parametrize(
    ("best", "waited_s", "wait_s", "retry_after_s"),
    [
        (None, 0, 30, 20),  # after 20 s the wait is 10 s, the patience
        (replica(14), 0, 30, 4),
        (replica(9), 2, math.inf, LEAST_RETRY_S),  # a new request would wait 9 s, within patience
        (None, 0, math.inf, 10),  # nothing to compute it from
    ],
)
def test_the_refused_are_told_when_the_wait_will_have_shrunk_to_the_patience(
    best: Choice | None, waited_s: float, wait_s: float, retry_after_s: float
) -> None:
    assert decide(best, due(waited_s, wait_s)).retry_after_s == retry_after_s


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [
        (decide(replica(0.5, feasible=True), due()), "every promise there holds"),
        (decide(CALM, due()), "no place in time: goes late to a replica that is calm"),
        (decide(replica(2), due()), "no place in time: behind all that can still be in time"),
        (decide(None, due(0.25, 0.5)), "a place is expected in 0.50 s, 0.75 s before the deadline"),
        (decide(None, due()), "no replica, and none is starting"),
        (decide(replica(9), due(2)), "first token expected in 9.0 s after 2.0 s of waiting; patience is 10 s"),
    ],
)
def test_every_verdict_says_why(verdict: Verdict, reason: str) -> None:
    assert verdict.reason == reason


@given(choices, dues)
def test_it_is_one_of_four_and_only_a_refusal_says_when_to_come_back_in_finite_time(
    best: Choice | None, at: Due
) -> None:
    verdict = decide(best, at)
    assert verdict.action in ("dispatch", "hold", "postpone", "refuse")
    assert verdict.reason
    assert (verdict.action == "refuse") == (verdict.retry_after_s is not None)
    assert verdict.retry_after_s is None or LEAST_RETRY_S <= verdict.retry_after_s < math.inf


@given(choices, dues, patiences)
def test_more_patience_never_refuses_what_less_did_not(best: Choice | None, at: Due, other_s: float) -> None:
    less, more = sorted((at.patience_s, other_s))
    refused = [decide(best, replace(at, patience_s=patience_s)).action == "refuse" for patience_s in (less, more)]
    assert refused != [False, True]


def test_with_endless_patience_a_request_waits_for_a_replica_that_is_not_even_starting() -> None:
    assert decide(None, due(9, patience_s=math.inf)).action == "postpone"


@given(choices, dues)
def test_it_is_held_only_for_a_place_that_comes_in_time(best: Choice | None, at: Due) -> None:
    if decide(best, at).action == "hold":
        assert at.now_s - at.arrived_s + at.wait_s <= at.ttft_s


def calm(best: Choice, at: Due) -> bool:
    """At most the calm share of the first token and a full pace; each more, the more of the patience is gone."""
    gone = (at.now_s - at.arrived_s) / at.patience_s
    ahead_s = best.ttft_s - best.own_s
    return ahead_s <= at.ttft_s * (0.25 + 2 * gone**2) and best.tpot_ms <= at.tpot_ms * (1 + 2 * gone**2)


@given(choices, dues)
def test_what_breaks_a_promise_goes_only_to_a_calm_replica_and_within_patience(best: Choice | None, at: Due) -> None:
    if decide(best, at).action == "dispatch":
        assert best is not None
        assert best.index is not None
        assert best.feasible or calm(best, at)
        assert best.feasible or at.now_s - at.arrived_s + best.ttft_s <= at.patience_s or at.wait_s < best.ttft_s


@given(choices, dues, st.floats(0, 1000))
def test_a_place_that_comes_later_is_never_the_better_news(best: Choice | None, at: Due, later_s: float) -> None:
    sooner, later = decide(best, at), decide(best, replace(at, wait_s=at.wait_s + later_s))
    assert later.action != "hold" or sooner.action == "hold"
    assert sooner.action != "refuse" or later.action == "refuse"


def head(tenant: str, priority: int = 0, deadline_s: float = 10) -> Head:
    return Head(tenant=tenant, priority=priority, deadline_s=deadline_s, cost_gpu_s=1)


@pytest.mark.parametrize(
    ("heads", "goes"),
    [
        ([head("busy"), head("urgent", priority=1, deadline_s=99)], 1),  # priority before fair share
        ([head("busy", deadline_s=1), head("quiet")], 1),  # fair share before deadline
        ([head("busy"), head("new", deadline_s=99)], 1),  # never served
        ([head("quiet"), head("calm", deadline_s=9)], 1),  # equal counters: the deadline
        ([head("quiet"), head("calm")], 0),  # all equal: the first
    ],
)
def test_the_next_is_of_the_highest_priority_then_the_least_served_then_the_most_urgent(
    heads: list[Head], goes: int
) -> None:
    assert next_head(heads, {"busy": 9, "quiet": 3, "calm": 3, "urgent": 50}) == goes


def test_a_queue_moves_as_fast_as_the_replicas_take_requests() -> None:
    assert queue_wait_s(30, 3, 2.0) == 5
    assert queue_wait_s(0, 3, 2.0) == 0
    assert queue_wait_s(1, 0, 2.0) == math.inf


@given(st.floats(0, 1e6) | st.just(math.inf), st.floats(0.1, 1000))
def test_when_to_come_back_is_finite_and_at_least_a_second(wait_s: float, patience_s: float) -> None:
    assert 1 <= retry_after_s(wait_s, patience_s) < math.inf


def test_patience_counts_from_the_awakening_and_while_a_tier_sleeps_nobody_loses_it() -> None:
    assert patience_from_s(10, asked_s=5, awake_s=45) == 50
    assert patience_from_s(10, asked_s=45, awake_s=5) == 10
    assert patience_from_s(10, asked_s=5, awake_s=None) == math.inf
    assert overdue_s(100, 1, 10, None) == -math.inf


@given(times, times, times)
def test_those_who_are_overdue_are_those_whose_patience_is_over(asked_s: float, awake_s: float, later_s: float) -> None:
    now_s = max(asked_s, awake_s) + later_s
    over = asked_s + 1.0 < overdue_s(now_s, 1.0, 10.0, awake_s)
    gone_s = now_s - asked_s - patience_from_s(10.0, asked_s, awake_s)
    if abs(gone_s) > 1e-6:
        assert over == (gone_s > 0)
