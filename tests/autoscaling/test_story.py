"""What the control loop tells of itself: news only, bounded, and who has lent what to whom."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaling.parameters import Parameters
from autoscaling.policy import Memory
from autoscaling.record import Lending, Scaling
from autoscaling.signals import Cause, Decision, Seen, Spec, Target
from autoscaling.story import MOST, Lent, Story, heard, still
from cluster.lending import Awaiting, Moves, Room, WorkerHeld
from cluster.lending import Wish as VideoWish

ROOMS = (Room(node="n1", cell="a", gpus=8, free_gpus=0), Room(node="n2", cell="b", gpus=8, free_gpus=0))
WORKERS = tuple(
    WorkerHeld(worker_id=name, node=node, gpus=2, leaving=False, idle=True)
    for name, node in (("w1", "n1"), ("w2", "n2"))
)


def scaling(at_s: float, before: int, after: int, cause: Cause = "hold", reason: str = "so it is") -> Scaling:
    target = Target(replicas=after, wanted=after, cause=cause, reason=reason)
    return Scaling(
        seen=Seen(now_s=at_s, gpus=8),
        memory=Memory(targets={"pro": before}),
        spec=Spec(tiers={}, video=None),
        parameters=Parameters(),
        decision=Decision(tiers={"pro": target}),
        after=Memory(targets={"pro": after}),
    )


def lending(moves: Moves, *awaiting: Awaiting) -> Lending:
    wish = VideoWish(target=2, gpus=2, cells=("a", "b"))
    return Lending(rooms=ROOMS, workers=WORKERS, awaiting=awaiting, wish=wish, moves=moves)


def told(*records: Scaling | Lending) -> Story:
    story = Story()
    for record in records:
        story = heard(story, record)
    return story


def test_a_change_of_a_target_is_told_with_its_reason() -> None:
    (event,) = told(scaling(5.0, 1, 3, "rise", "40 requests/s need 3")).events
    assert (event.at_s, event.name, event.before, event.after) == (5.0, "pro", 1, 3)
    assert (event.cause, event.reason) == ("rise", "40 requests/s need 3")


def test_a_decision_that_changes_nothing_is_no_news_but_it_is_the_one_that_holds() -> None:
    story = told(scaling(1.0, 2, 2, reason="first"), scaling(2.0, 2, 2, reason="second"))
    assert story.events == ()
    assert (story.at_s, story.now["pro"].reason) == (2.0, "second")


@pytest.mark.parametrize("cause", ["blind", "budget"])
def test_trouble_is_told_when_it_begins_and_not_each_second(cause: Cause) -> None:
    troubled = (scaling(float(at), 2, 2, cause) for at in range(1, 5))
    story = told(scaling(0.0, 2, 2), *troubled, scaling(6.0, 2, 2), scaling(7.0, 2, 2, cause))
    assert [event.at_s for event in story.events] == [7.0, 1.0]


def test_a_tier_that_was_never_seen_has_not_gone_blind() -> None:
    first = told(scaling(0.0, 1, 1, "blind"), scaling(2.0, 1, 1, "blind"), scaling(4.0, 1, 1))
    assert (first.events, told(scaling(0.0, 1, 1, "blind")).now["pro"].cause) == ((), "blind")
    assert told(scaling(0.0, 1, 1, "budget")).events != ()


@given(st.lists(st.integers(0, 5), max_size=80))
def test_a_story_is_bounded_its_newest_event_first_and_its_targets_hang_together(targets: list[int]) -> None:
    before, records = 0, []
    for at, after in enumerate(targets):
        records.append(scaling(float(at), before, after, "rise"))
        before = after
    events = told(*records).events
    assert len(events) <= MOST
    assert sorted(events, key=lambda event: -event.at_s) == list(events)
    assert all(older.after == newer.before for newer, older in pairwise(events))


def test_video_that_makes_room_for_a_group_lends_it_the_gpus_of_that_node() -> None:
    moves = Moves(vacate=("w1",), reason="pro waits for 2 GPUs")
    story = told(lending(moves, Awaiting(tier="pro", ranks=2, cells=("a",))))
    assert story.lent == (Lent(node="n1", tier="pro", gpus=2),)
    (event,) = story.events
    assert (event.name, event.cause, event.before, event.after) == ("video", "lend", 2, 1)


def test_video_that_nobody_waits_for_lends_nothing() -> None:
    story = told(lending(Moves(vacate=("w1",), reason="the target is 1")))
    assert (story.lent, story.events) == ((), ())


def test_what_video_takes_again_is_lent_no_more() -> None:
    group = Awaiting(tier="pro", ranks=2, cells=("a",))
    story = told(lending(Moves(vacate=("w1",), reason="r"), group), lending(Moves(start=("n1",), reason="back")))
    assert story.lent == ()


def test_gpus_are_lent_while_their_tier_waits_or_holds_some_of_the_node() -> None:
    lent = (Lent(node="n1", tier="pro", gpus=2),)
    assert still(lent, [], ["pro"]) == lent
    assert still(lent, [("pro", "n1")], []) == lent
    assert still(lent, [("pro", "n2"), ("mini", "n1")], ["mini"]) == ()
