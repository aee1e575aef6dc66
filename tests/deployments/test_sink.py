import asyncio
import functools

import pytest
from virtual_time import run

from cluster.errors import Overloaded
from deployments.sink import SINK_LIMIT_BYTES, Sink


def test_what_comes_in_the_turn_in_which_the_time_is_up_is_given_out() -> None:
    async def scenario() -> bytes | None:
        sink = Sink(lambda: None)
        asyncio.get_running_loop().call_later(1.0, sink.push, b"late", (7,), False)
        return await sink.next(1.0)

    assert run(scenario()) == b"late"


def test_an_end_in_the_turn_in_which_the_time_is_up_is_told() -> None:
    async def scenario() -> bytes | None:
        sink = Sink(lambda: None)
        asyncio.get_running_loop().call_later(1.0, sink.push, b"", (), True)
        return await sink.next(1.0)

    assert run(scenario()) is None


def test_more_than_may_lie_unread_ends_the_stream_but_not_with_its_last_bytes() -> None:
    async def scenario() -> None:
        cut: list[bool] = []
        for last in (True, False):
            sink = Sink(functools.partial(cut.append, last))
            data = b"x" * (SINK_LIMIT_BYTES + 1)
            sink.push(data, (), last)
            assert await sink.next() == data
            if last:
                assert await sink.next() is None
                continue
            with pytest.raises(Overloaded):
                await sink.next()
        assert cut == [False]

    run(scenario())
