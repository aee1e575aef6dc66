import math

from hypothesis import given
from hypothesis import strategies as st

from cluster.fairness import YIELDED_SHARE
from cluster.held import LATE_AGAIN_S, Action, Held, HeldQueue


def held(index: int, deadline_s: float, tenant: str = "a", priority: int = 0, prompt: int = 100) -> Held[int]:
    return Held(index, index, (priority, tenant), prompt, deadline_s, 1.0)


def order(queue: HeldQueue[int], served: dict[str, float] | None = None) -> list[int]:
    out = []
    while queue:
        out.append(queue.pop(served or {}).item)
    return out


def test_higher_priority_overtakes_and_within_one_the_earliest_deadline_goes_first() -> None:
    queue = HeldQueue[int]()
    for one in (held(0, 5), held(1, 3), held(2, 9, priority=1), held(3, 8, "b", priority=1), held(4, 3)):
        queue.push(one)
    assert order(queue) == [3, 2, 1, 4, 0]


def test_the_tenant_served_least_goes_first() -> None:
    queue = HeldQueue[int]()
    for one in (held(0, 1, "a"), held(1, 2, "b"), held(2, 3, "a")):
        queue.push(one)
    assert queue.pop({"a": 2.0, "b": 1.0}).item == 1
    assert order(queue, {"a": 2.0}) == [0, 2]


def test_the_late_stand_behind_all_others() -> None:
    queue = HeldQueue[int]()
    queue.push(held(0, 1, priority=9), late=True)
    queue.push(held(1, 0), late=True)
    queue.push(held(2, 7))
    assert order(queue) == [2, 0, 1]


def test_those_whose_deadline_was_before_are_taken_out() -> None:
    queue = HeldQueue[int]()
    for one, late in ((held(0, 1), True), (held(1, 5), True), (held(2, 2, "b"), False), (held(3, 6, "b"), False)):
        queue.push(one, late=late)
    assert [one.item for one in queue.expired(5)] == [2, 0]
    assert [one.item for one in queue.expired(-math.inf)] == []
    assert (len(queue), queue.prefill_tokens) == (2, 200)


def test_it_knows_who_waits() -> None:
    queue = HeldQueue[int]()
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
    queue = HeldQueue[int]()
    for index, (deadline_s, tenant, priority, prompt, late) in enumerate(rows):
        queue.push(held(index, deadline_s, tenant, priority, prompt), late=late)
    assert len(queue) == len(rows)
    assert queue.prefill_tokens == sum(row[3] for row in rows)
    expired = [one.item for one in queue.expired(at_s)]
    assert sorted(expired + order(queue)) == list(range(len(rows)))
    assert all((rows[index][0] < at_s) == (index in expired) for index in range(len(rows)))
    assert (len(queue), queue.prefill_tokens, bool(queue)) == (0, 0, False)


@given(items, st.integers(0, 50))
def test_one_that_is_taken_out_is_out_and_the_others_keep_their_order(
    rows: list[tuple[float, str, int, int, bool]], number: int
) -> None:
    queue, others = HeldQueue[int](), HeldQueue[int]()
    for index, (deadline_s, tenant, priority, prompt, late) in enumerate(rows):
        one = held(index, deadline_s, tenant, priority, prompt)
        queue.push(one, late=late)
        if index != number:
            others.push(one, late=late)
    kind = (rows[number][2], rows[number][1]) if number < len(rows) else (0, "a")
    assert queue.remove(kind, number) == (number < len(rows))
    assert not queue.remove(kind, number)
    assert queue.prefill_tokens == others.prefill_tokens
    assert order(queue) == order(others)


@given(items.filter(bool))
def test_the_last_has_the_lowest_priority_and_then_the_latest_deadline(
    rows: list[tuple[float, str, int, int, bool]],
) -> None:
    queue = HeldQueue[int]()
    for index, (deadline_s, tenant, priority, prompt, late) in enumerate(rows):
        queue.push(held(index, deadline_s, tenant, priority, prompt), late=late)
    last = queue.last()
    least = min(row[2] for row in rows)
    assert (last.kind[0], last.deadline_s) == (least, max(row[0] for row in rows if row[2] == least))
    assert queue.ahead(least) == len(rows)
    assert queue.ahead(3) == 0


def test_a_release_ends_at_the_first_in_time_that_waits_and_passes_by_those_that_fall_behind() -> None:
    queue, asked = HeldQueue[int](), list[int]()
    answers: dict[int, Action] = {0: "postpone", 1: "dispatch", 2: "hold"}

    def place(index: int) -> Action:
        asked.append(index)
        return answers[index]

    for index in range(4):
        queue.push(held(index, index))
    queue.release(0, {}, place)
    assert asked == [0, 1, 2]
    assert order(queue) == [2, 3, 0]


def test_for_the_late_a_place_is_looked_for_again_after_a_while() -> None:
    queue, asked = HeldQueue[int](), list[int]()

    def place(index: int) -> Action:
        asked.append(index)
        return "postpone"

    for index in range(2):
        queue.push(held(index, index), late=True)
    for now_s in (1.0, 1.0 + LATE_AGAIN_S / 2, 1.0 + LATE_AGAIN_S):
        queue.release(now_s, {}, place)
    assert asked == [0, 0]


def test_who_waits_beside_a_higher_priority_or_a_tenant_served_less_yields() -> None:
    queue = HeldQueue[int]()
    assert queue.yielded((0, "a"), {"a": 5}) == 0
    queue.push(held(0, 1, "b"))
    assert (queue.yielded((0, "a"), {"a": 5}), queue.yielded((0, "a"), {})) == (YIELDED_SHARE, 0)
    assert queue.yielded((-1, "a"), {}) == YIELDED_SHARE


def test_who_comes_back_starts_at_the_least_of_those_who_wait() -> None:
    queue, served = HeldQueue[int](), {"b": 7.0, "c": 9.0}
    for index, tenant in enumerate("bc"):
        queue.push(held(index, 1, tenant))
    queue.lift((0, "a"), served)
    queue.lift((0, "c"), served)
    assert served == {"a": 7, "b": 7, "c": 9}
