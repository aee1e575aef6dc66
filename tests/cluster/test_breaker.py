from hypothesis import given
from hypothesis import strategies as st

from cluster.breaker import CLOSED, LEAST_S, MOST_S, Breaker, Event, after


def told(*events: tuple[Event, float]) -> Breaker:
    state = CLOSED
    for event, now_s in events:
        state = after(state, event, now_s)
    return state


def test_who_failed_gets_nothing_for_two_seconds_then_one_request_on_trial() -> None:
    failed = told(("sent", 0), ("failed", 10))
    assert not failed.allows(11.9)
    assert failed.allows(12)
    assert not after(failed, "sent", 12).allows(12)


def test_a_trial_that_succeeds_closes_it_and_one_that_fails_doubles_the_time() -> None:
    tried = told(("failed", 10), ("sent", 12))
    assert after(tried, "done", 13) == CLOSED
    again = after(tried, "failed", 13)
    assert (again.allows(16.9), again.allows(17)) == (False, True)


def test_a_trial_that_tells_nothing_leaves_room_for_another() -> None:
    assert told(("failed", 10), ("sent", 12), ("left", 13)).allows(13)


def test_what_was_sent_before_is_no_trial() -> None:
    assert told(("failed", 10), ("done", 11)) == told(("failed", 10))
    assert told(("failed", 10), ("done", 13)) == told(("failed", 10))


def test_a_crowd_that_fails_together_counts_once() -> None:
    assert told(("failed", 10), ("failed", 10), ("failed", 11)) == told(("failed", 10))


events = st.lists(st.tuples(st.sampled_from(["sent", "done", "failed", "left"]), st.floats(0, 100)), max_size=30)


@given(events)
def test_it_is_never_out_for_longer_than_the_most_and_a_success_always_closes_it(
    steps: list[tuple[Event, float]],
) -> None:
    state, now_s = CLOSED, 0.0
    for event, later_s in steps:
        now_s += later_s
        state = after(state, event, now_s)
        assert state.until_s <= now_s + MOST_S
        assert event != "failed" or state.until_s >= now_s
        assert state == CLOSED or state.failures > 0
    now_s = max(now_s, state.until_s)
    state = after(state, "left", now_s)
    assert state.allows(now_s)
    assert after(after(state, "sent", now_s), "done", now_s) == CLOSED


def test_the_time_doubles_up_to_the_most() -> None:
    state, now_s, out_s = CLOSED, 0.0, []
    for _ in range(8):
        state = after(after(state, "sent", now_s), "failed", now_s)
        out_s.append(state.until_s - now_s)
        now_s = state.until_s
    assert out_s == [LEAST_S, 4, 8, 16, 32, MOST_S, MOST_S, MOST_S]
