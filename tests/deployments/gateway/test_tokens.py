import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from shell import TIER, CallCancelled, Handle, Replica, chat, family
from virtual_time import run

from cluster.errors import ContextTooLong, EngineFailed, Overloaded, ReplicaLost
from cluster.request import Chat, Usage
from deployments.engines.simulated import word
from deployments.gateway.tokens import LAST_FRAME_S, Answering, Pushed, Streamed, TokenPath, lost
from deployments.link import Listener
from deployments.sink import SINK_LIMIT_BYTES
from deployments.stream import Outcome
from deployments.tier import Item

USAGE = Usage(prompt_tokens=1, completion_tokens=1)
QUICK = TIER["cost"] | {"a_ms": 0.1}
CHATS = {
    "plain": chat(seed=1, max_tokens=20),
    "with usage": Chat(
        request_id="r", model="mini", messages=chat().messages, sampling=chat(max_tokens=3).sampling, include_usage=True
    ),
    "stopped": chat(seed=2, max_tokens=20, stop=("w7-",)),
    "stopped before any text": chat(seed=2, max_tokens=20, stop=("w0",)),
    "one token": chat(seed=3, max_tokens=1),
    "log-probabilities": chat(seed=4, max_tokens=6, top_logprobs=2),
}


both = pytest.mark.parametrize("path", ["pushed", "streamed"])


async def read(answering: Answering, so_far: list[bytes] | None = None) -> bytes:
    parts = [] if so_far is None else so_far
    while (data := await answering.next(3600)) is not None:
        assert data, "an hour of silence"
        parts.append(data)
    return b"".join(parts)


def text(stream: bytes) -> str:
    events = [line.removeprefix(b"data: ") for line in stream.split(b"\n\n") if line]
    assert events.pop() == b"[DONE]"
    deltas = [choice["delta"] for event in events for choice in json.loads(event)["choices"]]
    assert sum("role" in delta for delta in deltas) == 1
    return "".join(delta.get("content") or "" for delta in deltas)


@contextlib.asynccontextmanager
async def way(path: str) -> AsyncIterator[TokenPath]:
    """The token path as a gateway builds it, over real sockets."""
    listener = Listener()
    await listener.start("127.0.0.1")
    yield Pushed(listener) if path == "pushed" else Streamed()
    await listener.stop()


def unconnected(path: str, listener: Listener) -> TokenPath:
    return Pushed(listener) if path == "pushed" else Streamed()


class Scripted:
    """A replica that pushes and returns what it is told, frames by way of the listener itself."""

    def __init__(self, listener: Listener, outcome: Outcome | Exception, *, returns_s: float, last_s: float) -> None:
        self._listener = listener
        self._outcome = outcome
        self._returns_s = returns_s
        self._last_s = last_s

    async def push(self, chat: Chat, reply_to: None, stream: int) -> Outcome:
        loop, link = asyncio.get_running_loop(), asyncio.Transport()
        loop.call_at(1.0, self._listener.frame, link, stream, b"first ", (1, 2), False)
        loop.call_at(self._last_s, self._listener.frame, link, stream, b"last", (3,), True)
        await asyncio.sleep(self._returns_s)
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    async def stream(self, chat: Chat) -> AsyncIterator[Item | Outcome]:
        yield b"first ", (1, 2)
        await asyncio.sleep(self._returns_s)
        if isinstance(self._outcome, Exception):
            raise self._outcome
        yield b"last", (3,)
        if self._last_s < 3600:
            yield self._outcome


def ask(path: str, outcome: Outcome | Exception, *, returns_s: float = 2.0, last_s: float = 2.0) -> Answering:
    listener = Listener()
    handle: Any = Handle(Scripted(listener, outcome, returns_s=returns_s, last_s=last_s))
    return unconnected(path, listener).ask(handle, chat())


@pytest.mark.parametrize("asked", CHATS.values(), ids=CHATS)
async def test_pushed_and_streamed_give_the_same_bytes(tmp_path: Path, asked: Chat) -> None:
    handle: Any = Handle(await Replica.started(family(tmp_path, cost=QUICK)))
    async with way("pushed") as push, way("streamed") as stream:
        pushed, streamed = push.ask(handle, asked), stream.ask(handle, asked)
        assert await read(pushed) == await read(streamed) != b""
        usage = (await pushed.call).usage
        assert usage == (await streamed.call).usage
        assert usage is not None
        assert pushed.ids == streamed.ids == tuple(range(usage.completion_tokens))


@both
@pytest.mark.parametrize("stop", [(), (word(1, 9)[-3:] + "no",)])
async def test_a_stream_that_breaks_goes_on_at_another_replica(
    tmp_path: Path, path: str, stop: tuple[str, ...]
) -> None:
    first, second = [await Replica.started(family(tmp_path, cost=QUICK)) for _ in range(2)]
    asked = chat(seed=1, max_tokens=40, stop=stop)
    handles: list[Any] = [Handle(first), Handle(second)]
    async with way(path) as tokens:
        whole = await read(tokens.ask(handles[1], asked))
        broken = tokens.ask(handles[0], asked)
        so_far: list[bytes] = []
        reading = asyncio.ensure_future(read(broken, so_far))
        async with asyncio.timeout(10):
            while len(broken.ids) < 10:
                await asyncio.sleep(0)
        await first._engine.stop()
        with pytest.raises(EngineFailed) as failed:
            await reading
        assert failed.value.elsewhere
        resumed = tokens.ask(handles[1], replace(asked, given=broken.ids))
        assert text(await read(resumed, so_far)) == text(whole)
        assert broken.ids + resumed.ids == tuple(range(40))


@both
def test_the_ids_are_those_of_the_bytes_given_out(path: str) -> None:
    async def scenario() -> None:
        answering = ask(path, EngineFailed("engine: stopped"), last_s=3600)
        assert not answering.ids
        assert await answering.next(60) == b"first "
        with pytest.raises(EngineFailed):
            await answering.next(60)
        assert answering.ids == (1, 2)

    run(scenario())


@both
async def test_a_refusal_is_the_end_of_a_stream_without_bytes(tmp_path: Path, path: str) -> None:
    handle: Any = Handle(await Replica.started(family(tmp_path)))
    async with way(path) as tokens:
        with pytest.raises(ContextTooLong):
            await read(tokens.ask(handle, chat(max_tokens=2048)))


@both
def test_a_call_that_raises_ends_the_stream_with_its_error(path: str) -> None:
    async def scenario() -> None:
        answering = ask(path, EngineFailed("engine: stopped"))
        assert await answering.next(60) == b"first "
        with pytest.raises(EngineFailed, match="stopped"):
            await read(answering)

    run(scenario())


@both
def test_a_call_that_serve_gives_up_is_a_lost_replica(path: str) -> None:
    async def scenario() -> None:
        with pytest.raises(ReplicaLost, match="RuntimeError"):
            await read(ask(path, RuntimeError("ActorDiedError and 30 lines more")))

    run(scenario())


@both
def test_an_error_as_the_outcome_is_raised_after_all_bytes(path: str) -> None:
    async def scenario() -> None:
        answering = ask(path, Outcome(error=Overloaded("full", retry_after_s=3.0)))
        assert [await answering.next(60), await answering.next(60)] == [b"first ", b"last"]
        with pytest.raises(Overloaded) as refused:
            await answering.next(60)
        assert refused.value.retry_after_s == 3.0

    run(scenario())


def test_a_call_that_returns_before_its_last_frame_waits_for_it() -> None:
    async def scenario() -> None:
        answering = ask("pushed", Outcome(usage=USAGE), returns_s=0.5, last_s=0.5 + LAST_FRAME_S - 0.1)
        assert await read(answering) == b"first last"
        assert (await answering.call).usage == USAGE

    run(scenario())


def test_a_stream_whose_last_frame_never_comes_ends_with_an_error() -> None:
    async def scenario() -> None:
        answering = ask("pushed", Outcome(usage=USAGE), returns_s=2.0, last_s=3600)
        assert await answering.next(60) == b"first "
        with pytest.raises(ReplicaLost, match="last frame"):
            await answering.next(60)
        assert asyncio.get_running_loop().time() == 2.0 + LAST_FRAME_S

    run(scenario())


def test_a_stream_of_items_that_ends_without_an_outcome_is_an_error() -> None:
    async def scenario() -> None:
        with pytest.raises(ReplicaLost, match="without an outcome"):
            await read(ask("streamed", Outcome(usage=USAGE), last_s=3600))

    run(scenario())


@both
def test_a_silence_is_empty_bytes(path: str) -> None:
    async def scenario() -> None:
        answering = ask(path, Outcome(usage=USAGE), returns_s=100, last_s=100)
        assert await answering.next(60) == b"first "
        assert await answering.next(60) == b""
        assert await answering.next(60) == b"last"

    run(scenario())


@both
async def test_cancelling_frees_the_place_at_the_replica(tmp_path: Path, path: str) -> None:
    replica = await Replica.started(family(tmp_path))
    handle: Any = Handle(replica)
    async with way(path) as tokens:
        answering = tokens.ask(handle, chat(max_tokens=2000))
        assert await answering.next(60)
        assert replica._engine.report().running == 1
        answering.cancel()
        await asyncio.wait([call.task for call in handle.calls])
        assert replica._engine.report().running == 0


@both
def test_a_client_that_does_not_read_loses_its_call(path: str) -> None:
    class Flood:
        def __init__(self, listener: Listener) -> None:
            self._listener = listener

        async def push(self, chat: Chat, reply_to: None, stream: int) -> None:
            while True:
                self._listener.frame(asyncio.Transport(), stream, b"x" * 1000, (), False)
                await asyncio.sleep(0.001)

        async def stream(self, chat: Chat) -> AsyncIterator[Item]:
            while True:
                yield b"x" * 1000, ()
                await asyncio.sleep(0.001)

    async def scenario() -> None:
        listener = Listener()
        handle: Any = Handle(Flood(listener))
        answering = unconnected(path, listener).ask(handle, chat())
        await asyncio.sleep(10)
        assert handle.calls[0].task.cancelled()
        assert SINK_LIMIT_BYTES < len(await answering.next(60) or b"") <= SINK_LIMIT_BYTES + 1000
        with pytest.raises(Overloaded):
            await answering.next(60)

    run(scenario())


@both
def test_a_handle_that_fails_at_once_ends_the_stream(path: str) -> None:
    class Broken:
        def options(self, *, stream: bool) -> "Broken":
            return self

        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("the application is gone")

    async def scenario() -> None:
        handle: Any = Broken()
        with pytest.raises(ReplicaLost):
            await read(unconnected(path, Listener()).ask(handle, chat()))

    run(scenario())


async def test_a_replica_that_cannot_reach_the_gateway_says_so_at_once(tmp_path: Path) -> None:
    listener = Listener()
    await listener.start("127.0.0.1")
    await listener.stop()
    handle: Any = Handle(await Replica.started(family(tmp_path)))
    with pytest.raises(ReplicaLost, match="no way back"):
        await asyncio.wait_for(read(Pushed(listener).ask(handle, chat())), LAST_FRAME_S / 2)


def test_ended_streams_leave_nothing_behind_at_the_listener() -> None:
    async def scenario() -> None:
        listener = Listener()
        handle: Any = Handle(Scripted(listener, Outcome(usage=USAGE), returns_s=2.0, last_s=2.0))
        answers = [Pushed(listener).ask(handle, chat(str(number))) for number in range(5)]
        answers[0].cancel()
        await asyncio.gather(*map(read, answers[1:]))
        await asyncio.sleep(2 * LAST_FRAME_S)
        assert listener._sinks == {}

    run(scenario())


def test_what_serve_wraps_is_unwrapped() -> None:
    class Wrapped(Exception):
        cause = EngineFailed("engine: stopped")

    assert lost(Wrapped()) is Wrapped.cause
    assert isinstance(lost(CallCancelled()), ReplicaLost)
