import math

from hypothesis import given
from hypothesis import strategies as st
from twin_world import family

from autoscaling.twin_held import Held, HeldQueue
from autoscaling.twin_replica import Request
from autoscaling.twin_scenario import Route
from cluster.tiering import Wish, tiers_for

ROUTE = Route((0,), tiers_for(Wish(model="model-pro", prompt_tokens=1), None, family()), "a")


def held(index: int, deadline_s: float, tenant: str = "a", priority: int = 0, prompt: int = 100) -> Held:
    return Held(Request(index, 0.0, 0.0, prompt, 5), ROUTE, (priority, tenant), deadline_s, 1.0)


def order(queue: HeldQueue, served: dict[str, float] | None = None) -> list[int]:
    out = []
    while queue:
        out.append(queue.pop(served or {}).request.index)
    return out


def test_higher_priority_overtakes_and_within_one_the_earliest_deadline_goes_first() -> None:
    queue = HeldQueue()
    for one in (held(0, 5), held(1, 3), held(2, 9, priority=1), held(3, 8, "b", priority=1), held(4, 3)):
        queue.push(one)
    assert order(queue) == [3, 2, 1, 4, 0]


def test_the_tenant_served_least_goes_first() -> None:
    queue = HeldQueue()
    for one in (held(0, 1, "a"), held(1, 2, "b"), held(2, 3, "a")):
        queue.push(one)
    assert queue.pop({"a": 2.0, "b": 1.0}).request.index == 1
    assert order(queue, {"a": 2.0}) == [0, 2]


def test_the_late_stand_behind_all_others() -> None:
    queue = HeldQueue()
    queue.push(held(0, 1, priority=9), late=True)
    queue.push(held(1, 0), late=True)
    queue.push(held(2, 7))
    assert order(queue) == [2, 0, 1]


def test_those_whose_deadline_was_before_are_taken_out() -> None:
    queue = HeldQueue()
    for one, late in ((held(0, 1), True), (held(1, 5), True), (held(2, 2, "b"), False), (held(3, 6, "b"), False)):
        queue.push(one, late=late)
    assert [one.request.index for one in queue.expired(5)] == [2, 0]
    assert [one.request.index for one in queue.expired(-math.inf)] == []
    assert (len(queue), queue.prefill_tokens) == (2, 200)


def test_it_knows_who_waits() -> None:
    queue = HeldQueue()
    assert (bool(queue), queue.first_priority()) == (False, -math.inf)
    queue.push(held(0, 1, "a", 2))
    queue.push(held(1, 1, "b", 2), late=True)
    queue.push(held(2, 1, "c", 7), late=True)
    assert (queue.tenants(2), queue.tenants(7), queue.first_priority()) == ({"a", "b"}, {"c"}, 2)


items = st.lists(
    st.tuples(st.floats(0, 9), st.sampled_from("abc"), st.integers(0, 2), st.integers(1, 500), st.booleans())
)


@given(items, st.floats(0, 10))
def test_everything_put_in_comes_out_once(rows: list[tuple[float, str, int, int, bool]], at_s: float) -> None:
    queue = HeldQueue()
    for index, (deadline_s, tenant, priority, prompt, late) in enumerate(rows):
        queue.push(held(index, deadline_s, tenant, priority, prompt), late=late)
    assert len(queue) == len(rows)
    assert queue.prefill_tokens == sum(row[3] for row in rows)
    expired = [one.request.index for one in queue.expired(at_s)]
    assert sorted(expired + order(queue)) == list(range(len(rows)))
    assert all((rows[index][0] < at_s) == (index in expired) for index in range(len(rows)))
    assert (len(queue), queue.prefill_tokens, bool(queue)) == (0, 0, False)
