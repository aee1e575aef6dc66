from hypothesis import given
from hypothesis import strategies as st

from cluster.retry import EARNED, LEAST_AT_ONCE, Budget


def rescues(budget: Budget, ongoing: int) -> tuple[int, Budget]:
    count = 0
    while (more := budget.rescued(ongoing)) is not None:
        count, budget = count + 1, more
    return count, budget


@given(st.integers(0, 200))
def test_each_request_under_way_may_be_rescued_at_once(ongoing: int) -> None:
    assert rescues(Budget(), ongoing)[0] == max(LEAST_AT_ONCE, ongoing)


@given(st.integers(0, 100), st.integers(0, 500))
def test_a_spent_budget_is_earned_back_by_finished_requests(ongoing: int, finished: int) -> None:
    most, budget = rescues(Budget(), ongoing)
    for _ in range(finished):
        budget = budget.finished()
    earned, _ = rescues(budget, ongoing)
    assert abs(earned - min(most, finished * EARNED)) <= 1


@given(st.integers(0, 1000))
def test_no_quiet_time_saves_up_more_than_the_requests_under_way(finished: int) -> None:
    budget = Budget()
    for _ in range(finished):
        budget = budget.finished()
    assert budget == Budget()
