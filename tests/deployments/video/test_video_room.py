import asyncio
import contextlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.video.room import Room


class Left(Exception):
    pass


def never() -> "asyncio.Future[None]":
    return asyncio.get_running_loop().create_future()


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), min_size=1, max_size=12))
def test_who_is_alone_has_nobody_beside_it_and_everybody_enters_in_order(jobs: Sequence[tuple[bool, int]]) -> None:
    entered: list[int] = []
    within: set[int] = set()

    async def job(room: Room, number: int, alone: bool, turns: int) -> None:
        async with room.entered(never(), alone=alone):
            entered.append(number)
            within.add(number)
            for _ in range(1 + turns):
                await asyncio.sleep(0)
                assert within == {number} or not any(jobs[each][0] for each in within)
            within.discard(number)

    async def scenario() -> None:
        room = Room()
        async with asyncio.TaskGroup() as tasks:
            for number, (alone, turns) in enumerate(jobs):
                tasks.create_task(job(room, number, alone, turns))

    asyncio.run(scenario())
    assert entered == list(range(len(jobs)))


async def test_who_is_told_to_stop_waits_no_longer_and_holds_nobody_up() -> None:
    room, stopped, entered = Room(), never(), asyncio.Event()

    async def waits() -> None:
        async with room.entered(stopped, alone=True):
            raise AssertionError

    async def comes_later() -> None:
        async with room.entered(never(), alone=False):
            entered.set()

    async with room.entered(never(), alone=False):
        waiting, later = asyncio.create_task(waits()), asyncio.create_task(comes_later())
        await settled()
        assert not entered.is_set()
        stopped.set_exception(Left())
        with contextlib.suppress(Left):
            await waiting
        await later
    assert isinstance(waiting.exception(), Left)


async def test_who_fails_within_leaves_the_room_free() -> None:
    room = Room()
    with pytest.raises(ZeroDivisionError):
        async with room.entered(never(), alone=True):
            raise ZeroDivisionError
    async with room.entered(never(), alone=True):
        pass
