from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.lending import Awaiting, Moves, Room, Wish, WorkerHeld, lend

CELLS = ("a", "b")


def room(node: str, free: int = 0, gpus: int = 8, cell: str = "a") -> Room:
    return Room(node=node, cell=cell, gpus=gpus, free_gpus=free)


def worker(name: str, node: str, **changes: Any) -> WorkerHeld:
    given: dict[str, Any] = {"gpus": 1, "leaving": False, "idle": False, "lost_gpu_s": 1.0}
    return WorkerHeld(worker_id=name, node=node, **given | changes)


def group(ranks: int, *cells: str) -> Awaiting:
    return Awaiting(tier="pro", ranks=ranks, cells=cells or CELLS)


def wish(target: int, gpus: int = 1, cells: tuple[str, ...] = CELLS, beside: tuple[str, ...] = ()) -> Wish:
    return Wish(target=target, gpus=gpus, cells=cells, beside=beside)


def test_where_nobody_waits_and_the_target_is_met_nothing_moves() -> None:
    assert lend([room("n", 4)], [worker("w", "n")], [], wish(1)) == Moves()


def test_a_group_gets_the_node_where_the_fewest_replicas_stop() -> None:
    workers = [worker("a", "few"), worker("b", "many"), worker("c", "many")]
    moves = lend([room("many", 2), room("few", 3)], workers, [group(4)], wish(3))
    assert moves.vacate == ("a",)
    assert moves.reason.startswith("pro waits for 4 GPUs: few is kept for it, 1 video replicas of it stop")


def test_among_nodes_alike_the_one_where_less_work_is_lost_is_cleared_and_of_it_the_idle_replica() -> None:
    workers = [worker("a", "n", lost_gpu_s=9), worker("b", "m", lost_gpu_s=5), worker("c", "m", idle=True)]
    workers[2] = replace(workers[2], lost_gpu_s=0.0)
    assert lend([room("n", 3), room("m", 3)], workers, [group(4)], wish(3)).vacate == ("c",)


def test_replicas_that_leave_already_make_room_too() -> None:
    workers = [worker("a", "n", leaving=True), worker("b", "n"), worker("c", "m"), worker("d", "m")]
    assert lend([room("n", 2), room("m", 2)], workers, [group(3)], wish(3)).vacate == ()
    assert lend([room("n", 2), room("m", 2)], workers, [group(4)], wish(3)).vacate == ("b",)


def test_no_replica_starts_on_a_node_that_is_kept() -> None:
    moves = lend([room("n", 3), room("m", 1)], [worker("a", "n")], [group(4)], wish(3))
    assert (moves.vacate, moves.start) == (("a",), ("m",))
    assert "2 video replicas wait for free GPUs" in moves.reason


def test_gpus_that_a_group_will_take_are_not_lent() -> None:
    moves = lend([room("n", 5)], [], [group(4)], wish(3))
    assert (moves.vacate, moves.start) == ((), ("n",))


def test_nobody_stops_for_a_group_that_would_not_fit_even_then() -> None:
    assert lend([room("n", 1)], [worker("a", "n")], [group(4)], wish(1)).vacate == ()
    assert lend([room("n", 3)], [worker("a", "n")], [group(4, "b")], wish(1)).vacate == ()


def test_a_group_larger_than_any_node_gets_the_gpus_of_several() -> None:
    workers = [worker("a", "n"), worker("b", "m")]
    rooms = [room("n", 3, gpus=4), room("m", 3, gpus=4)]
    assert lend(rooms, workers, [group(6)], wish(2)).vacate == ()
    assert set(lend(rooms, workers, [group(8)], wish(2)).vacate) == {"a", "b"}
    assert len(lend(rooms, workers, [group(7)], wish(2)).vacate) == 1
    assert lend(rooms, workers, [group(9)], wish(2)).vacate == ()


def test_too_many_replicas_stop_idle_ones_first_then_those_that_lose_least() -> None:
    workers = [worker("a", "n", lost_gpu_s=3), worker("b", "n", lost_gpu_s=2), worker("c", "n", idle=True)]
    assert lend([room("n")], workers, [], wish(2)).vacate == ("c",)
    assert lend([room("n")], workers, [], wish(1)).vacate == ("c", "b")
    assert lend([room("n")], workers, [], wish(0)).vacate == ("c", "b", "a")


def test_replicas_of_a_lost_node_stop_and_others_start_in_their_place() -> None:
    workers = [worker("a", "lost"), worker("b", "lost", leaving=True), worker("c", "n")]
    moves = lend([room("n", 3)], workers, [], wish(3))
    assert (moves.vacate, moves.start) == (("a",), ("n", "n"))
    assert moves.reason.startswith("1 video replicas of lost nodes stop")


def test_among_too_many_those_on_a_node_that_is_kept_stop_first() -> None:
    workers = [worker("a", "n"), worker("b", "n"), worker("c", "m", idle=True)]
    assert lend([room("n", 3), room("m")], workers, [group(4)], wish(1)).vacate == ("a", "b")


def test_replicas_start_beside_their_tier_then_where_least_is_free() -> None:
    rooms = [room("empty", 8), room("full", 1), room("liked", 6), room("elsewhere", 1, cell="c")]
    start = lend(rooms, [], [], wish(9, gpus=1, beside=("liked",))).start
    assert start == ("liked",) * 6 + ("full",) + ("empty",) * 2


GPUS = 8


@st.composite
def clusters(draw: st.DrawFn) -> tuple[list[Room], list[WorkerHeld], list[Awaiting], Wish]:
    gpus = draw(st.integers(1, 3))
    rooms, workers = [], []
    for n in range(draw(st.integers(1, 4))):
        free = GPUS
        for w in range(draw(st.integers(0, GPUS // gpus))):
            free -= gpus
            idle, leaving = draw(st.booleans()), draw(st.booleans())
            lost = 0.0 if idle else draw(st.floats(0, 9))
            workers.append(worker(f"{n}-{w}", f"n{n}", gpus=gpus, leaving=leaving, idle=idle, lost_gpu_s=lost))
        free -= draw(st.integers(0, free))
        rooms.append(room(f"n{n}", free, GPUS, draw(st.sampled_from(CELLS))))
    some = st.lists(st.sampled_from(CELLS), unique=True).map(tuple)
    groups = [group(draw(st.integers(1, 20)), *draw(some)) for _ in range(draw(st.integers(0, 3)))]
    return rooms, workers, groups, wish(draw(st.integers(0, 12)), gpus, draw(some), draw(some))


def carried_out(
    rooms: Sequence[Room], workers: Sequence[WorkerHeld], moves: Moves, gpus: int, tick: int
) -> tuple[list[Room], list[WorkerHeld]]:
    """Those that were leaving have left; those told to are leaving; those told to start hold their GPUs."""
    left = [one for one in workers if one.leaving]
    freed = {r.node: r.free_gpus + sum(w.gpus for w in left if w.node == r.node) for r in rooms}
    for node in moves.start:
        freed[node] -= gpus
    stay = [replace(w, leaving=w.worker_id in moves.vacate) for w in workers if not w.leaving]
    new = [worker(f"t{tick}-{i}", node, gpus=gpus, idle=True, lost_gpu_s=0.0) for i, node in enumerate(moves.start)]
    return [replace(r, free_gpus=freed[r.node]) for r in rooms], [*stay, *new]


@given(clusters())
def test_no_more_start_than_free_gpus_hold(given: tuple[list[Room], list[WorkerHeld], list[Awaiting], Wish]) -> None:
    rooms, workers, groups, video = given
    moves = lend(rooms, workers, groups, video)
    for one in rooms:
        assert moves.start.count(one.node) * video.gpus <= one.free_gpus
    assert {one.cell for one in rooms if one.node in moves.start} <= set(video.cells)
    alive = [w for w in workers if not w.leaving and w.worker_id not in moves.vacate]
    assert len(alive) + len(moves.start) <= max(video.target, len(alive))
    assert len(set(moves.vacate)) == len(moves.vacate)
    assert not {w.worker_id for w in workers if w.leaving} & set(moves.vacate)


@given(clusters())
def test_only_a_surplus_or_a_group_that_then_has_room_stops_a_replica(
    given: tuple[list[Room], list[WorkerHeld], list[Awaiting], Wish],
) -> None:
    rooms, workers, groups, video = given
    staying = sum(not w.leaving for w in workers)
    assert len(lend(rooms, workers, [], video).vacate) == max(staying - video.target, 0)
    moves = lend(rooms, workers, groups[:1], video)
    plain = max(staying - video.target, 0)
    if len(moves.vacate) > plain:  # then every one of them is needed: without the last, the group has no room
        asked = groups[0]
        free = {r.node: r.free_gpus for r in rooms if r.cell in asked.cells}
        size = max((r.gpus for r in rooms if r.cell in asked.cells), default=0)
        for left_out in moves.vacate:
            left = [w for w in workers if w.leaving or (w.worker_id in moves.vacate and w.worker_id != left_out)]
            there = {n: f + sum(w.gpus for w in left if w.node == n) for n, f in free.items()}
            home = next(w.node for w in workers if w.worker_id == left_out)
            assert (there[home] if asked.ranks <= size else sum(there.values())) < asked.ranks


@given(clusters())
@settings(deadline=None)
def test_moves_come_to_rest_with_the_target_met_where_there_is_room(
    given: tuple[list[Room], list[WorkerHeld], list[Awaiting], Wish],
) -> None:
    rooms, workers, groups, video = given
    for tick in range(40):
        moves = lend(rooms, workers, groups, video)
        if not moves.start and not moves.vacate and not any(w.leaving for w in workers):
            break
        rooms, workers = carried_out(rooms, workers, moves, video.gpus, tick)
        for one in rooms:
            assert one.free_gpus >= 0
            assert one.free_gpus + sum(w.gpus for w in workers if w.node == one.node) <= one.gpus
    else:
        raise AssertionError("it never rests")
    assert len(workers) <= video.target
    if not groups and len(workers) < video.target:
        assert all(one.free_gpus < video.gpus for one in rooms if one.cell in video.cells)
