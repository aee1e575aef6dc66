import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.admission import Head, Verdict, decide, next_head
from cluster.loads import Choice

times = st.floats(0, 1000)
choices = st.none() | st.builds(
    Choice,
    index=st.none() | st.integers(0, 9),
    ttft_s=times | st.just(math.inf),
    tpot_ms=times,
    feasible=st.booleans(),
    method=st.just("predicted"),
)
moments = st.fixed_dictionaries(
    {"now_s": times, "arrived_s": times, "ttft_s": times, "wait_s": times | st.just(math.inf)}
).filter(lambda at: at["now_s"] >= at["arrived_s"])
patiences = st.floats(0.1, 1000) | st.just(math.inf)


def replica(ttft_s: float, *, feasible: bool = False) -> Choice:
    return Choice(0, ttft_s, 20.0, feasible, "predicted")


def asked(best: Choice | None, waited_s: float = 0.0, wait_s: float = math.inf) -> Verdict:
    """One second is promised, ten are the patience."""
    return decide(best, now_s=100 + waited_s, arrived_s=100, ttft_s=1, patience_s=10, wait_s=wait_s)


NONE_OPEN = Choice(None, math.inf, math.inf, False, "none")


@pytest.mark.parametrize(
    ("best", "waited_s", "wait_s", "action"),
    [
        (replica(0.5, feasible=True), 0, 0, "dispatch"),
        (replica(0.5, feasible=True), 20, 0, "dispatch"),  # even after its patience: there is room
        (replica(2), 0, 0.9, "hold"),  # 0.9 <= 1: a place in time
        (replica(2), 0.2, 0.9, "dispatch"),  # 1.1 > 1 and 2.2 <= 10
        (replica(9), 0, 1.1, "dispatch"),
        (replica(11), 0, 1.1, "hold"),  # 11 > 10 there, 1.1 <= 10 at the place that comes
        (replica(9.5), 1, 8, "hold"),  # 10.5 > 10 and 9 <= 10
        (replica(11), 0, 10.5, "refuse"),
        (replica(9), 2, math.inf, "refuse"),  # 11 > 10
        (NONE_OPEN, 0, 0.5, "hold"),
        (None, 0, 9, "hold"),
        (None, 0, 30, "refuse"),
        (NONE_OPEN, 0, math.inf, "refuse"),
    ],
)
def test_a_request_goes_waits_or_is_refused(best: Choice | None, waited_s: float, wait_s: float, action: str) -> None:
    assert asked(best, waited_s, wait_s).action == action


def test_a_choice_without_a_replica_is_never_dispatched_to() -> None:
    assert asked(Choice(None, 0.1, 20.0, True, "none")).action != "dispatch"


@pytest.mark.parametrize(
    ("best", "waited_s", "wait_s", "retry_after_s"),
    [
        (None, 0, 30, 20),  # after 20 s the wait is 10 s, the patience
        (replica(14), 0, 30, 4),
        (replica(9), 2, math.inf, 1),  # a new request would wait 9 s, within patience
        (None, 0, math.inf, 10),  # nothing to compute it from
    ],
)
def test_the_refused_are_told_when_the_wait_will_have_shrunk_to_the_patience(
    best: Choice | None, waited_s: float, wait_s: float, retry_after_s: float
) -> None:
    assert asked(best, waited_s, wait_s).retry_after_s == retry_after_s


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [
        (asked(replica(0.5, feasible=True)), "every promise there holds"),
        (asked(replica(2)), "no place in time: late, but within patience"),
        (asked(None, 0.25, 0.5), "a place is expected in 0.50 s, 0.75 s before the deadline"),
        (asked(None, 0, 9), "late, but within patience: a place is expected in 9.00 s"),
        (asked(None), "no replica, and none is starting"),
        (asked(replica(9), 2), "first token expected in 9.0 s after 2.0 s of waiting; patience is 10 s"),
    ],
)
def test_every_verdict_says_why(verdict: Verdict, reason: str) -> None:
    assert verdict.reason == reason


@given(choices, moments, patiences)
def test_only_a_refusal_says_when_to_come_back_and_always_in_finite_time(
    best: Choice | None, at: Any, patience_s: float
) -> None:
    verdict = decide(best, **at, patience_s=patience_s)
    assert (verdict.action == "refuse") == (verdict.retry_after_s is not None)
    assert verdict.retry_after_s is None or 1 <= verdict.retry_after_s < math.inf


@given(choices, moments, patiences, patiences)
def test_more_patience_never_refuses_what_less_did_not(
    best: Choice | None, at: Any, one_s: float, other_s: float
) -> None:
    less = decide(best, **at, patience_s=min(one_s, other_s))
    more = decide(best, **at, patience_s=max(one_s, other_s))
    assert less.action == "refuse" or more.action != "refuse"
    assert less.action != "dispatch" or more.action == "dispatch"


def test_with_endless_patience_a_request_waits_for_a_replica_that_is_not_even_starting() -> None:
    assert decide(None, now_s=9, arrived_s=0, ttft_s=1, patience_s=math.inf, wait_s=math.inf).action == "hold"


@given(choices, moments, patiences.filter(math.isfinite))
def test_nothing_is_held_for_what_never_comes(best: Choice | None, at: Any, patience_s: float) -> None:
    verdict = decide(best, **at | {"wait_s": math.inf}, patience_s=patience_s)
    assert verdict.action != "hold"


@given(choices, moments, patiences)
def test_nothing_is_sent_to_a_first_token_beyond_patience_unless_every_promise_holds(
    best: Choice | None, at: Any, patience_s: float
) -> None:
    if decide(best, **at, patience_s=patience_s).action == "dispatch":
        assert best is not None
        assert best.index is not None
        assert best.feasible or at["now_s"] - at["arrived_s"] + best.ttft_s <= patience_s


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
