"""Both ends of a link: over real sockets, and where time or segmentation matters over a transport of the tests."""

import asyncio
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_time import VirtualLoop, run

from cluster.errors import Overloaded, ReplicaLost
from deployments.link import (
    FRAME_LIMIT_BYTES,
    PING_S,
    SILENT_S,
    TOKEN_BYTES,
    Link,
    Links,
    Listener,
    ReplyTo,
    _Inbound,
)
from deployments.sink import SINK_LIMIT_BYTES, Sink

DATA, LAST, PING = 0, 1, 2
TOKEN = b"t" * TOKEN_BYTES


def nothing() -> None: ...


def frame(stream: int, data: bytes, flags: int = DATA, ids: Sequence[int] = ()) -> bytes:
    head = struct.pack("!IIIB", 4 * len(ids) + len(data), stream, len(ids), flags)
    return head + struct.pack(f"!{len(ids)}I", *ids) + data


class Wire(asyncio.Transport):
    """A transport that keeps what is written, one entry per write."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False
        self._protocol = protocol
        protocol.connection_made(self)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return Mock(spec=socket.socket) if name == "socket" else default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def writelines(self, list_of_data: Any) -> None:
        self.writes.append(b"".join(list_of_data))

    def abort(self) -> None:
        if not self.closed:
            self.closed = True
            self._protocol.connection_lost(None)

    close = abort


class Incoming:
    """A gateway's listener with one link on it, whose bytes come from the test."""

    def __init__(self, listener: Listener | None = None) -> None:
        self.listener = listener or Listener()
        self._inbound = _Inbound(self.listener)
        self.wire = Wire(self._inbound)

    def receive(self, data: bytes) -> None:
        self._inbound.data_received(data)

    def trusted(self) -> "Incoming":
        self.receive(self.listener._token)
        return self


async def everything(sink: Sink) -> bytes:
    parts = []
    while (data := await sink.next()) is not None:
        parts.append(data)
    return b"".join(parts)


async def listening() -> tuple[Listener, ReplyTo]:
    listener = Listener()
    return listener, await listener.start("127.0.0.1")


# The sink.


def test_a_sink_gives_all_bytes_at_once_then_none() -> None:
    async def scenario() -> None:
        sink = Sink(nothing)
        sink.push(b"a", (), False)
        sink.push(b"b", (), True)
        assert await sink.next() == b"ab"
        assert await sink.next() is None
        assert await sink.next() is None

    run(scenario())


def test_an_error_comes_after_the_bytes_that_arrived_before_it_and_each_time_again() -> None:
    async def scenario() -> None:
        sink = Sink(nothing)
        sink.push(b"a", (), False)
        sink.fail(ReplicaLost("gone"))
        sink.push(b"too late", (), True)
        assert await sink.next() == b"a"
        for _ in range(2):
            with pytest.raises(ReplicaLost, match="gone"):
                await sink.next()

    run(scenario())


def test_ids_are_those_behind_the_bytes_that_were_given_out() -> None:
    async def scenario() -> None:
        sink = Sink(nothing)
        sink.push(b"a", (7, 8), False)
        assert sink.ids == []
        assert await sink.next() == b"a"
        assert sink.ids == [7, 8]
        sink.push(b"b", (9,), False)
        sink.fail(ReplicaLost("gone"))
        sink.push(b"c", (10,), False)
        assert sink.ids == [7, 8]
        assert await sink.next() == b"b"
        with pytest.raises(ReplicaLost):
            await sink.next()
        assert sink.ids == [7, 8, 9]

    run(scenario())


def test_an_error_after_the_end_changes_nothing() -> None:
    async def scenario() -> None:
        sink = Sink(nothing)
        sink.push(b"", (), True)
        sink.fail(ReplicaLost("gone"))
        assert await sink.next() is None

    run(scenario())


@pytest.mark.parametrize("wake", [lambda sink: sink.push(b"a", (), False), lambda sink: sink.fail(ReplicaLost("gone"))])
def test_who_waits_is_woken_at_once(wake: Callable[[Sink], None]) -> None:
    async def scenario() -> None:
        sink, loop = Sink(nothing), asyncio.get_running_loop()
        loop.call_at(3.0, wake, sink)
        await asyncio.gather(sink.next(60.0), return_exceptions=True)
        assert loop.time() == 3.0

    run(scenario())


def test_a_silence_gives_empty_bytes_and_loses_nothing() -> None:
    async def scenario() -> None:
        sink, loop = Sink(nothing), asyncio.get_running_loop()
        assert await sink.next(2.0) == b""
        assert loop.time() == 2.0
        sink.push(b"a", (), True)
        assert await everything(sink) == b"a"

    run(scenario())


def test_who_does_not_read_is_cut_at_the_limit_and_its_call_ended_while_others_go_on() -> None:
    async def scenario() -> None:
        cut: list[str] = []
        listener = Listener()
        slow, slow_sink = listener.open(lambda: cut.append("slow"))
        quick, quick_sink = listener.open(lambda: cut.append("quick"))
        link = Incoming(listener).trusted()
        block = b"x" * (SINK_LIMIT_BYTES // 4)
        for _ in range(4):
            link.receive(frame(slow, block) + frame(quick, block))
            assert await quick_sink.next() == block
        assert cut == []
        link.receive(frame(slow, b"x") + frame(quick, b"on", LAST))
        assert cut == ["slow"]
        assert await everything(quick_sink) == b"on"
        assert len(await slow_sink.next() or b"") == SINK_LIMIT_BYTES + 1
        with pytest.raises(Overloaded, match="read faster"):
            await slow_sink.next()
        assert not link.wire.closed

    run(scenario())


# The gateway's end.


@settings(deadline=None)
@given(
    data=st.data(),
    texts=st.lists(
        st.tuples(st.integers(1, 3), st.binary(min_size=1, max_size=40), st.lists(st.integers(0, 2**32 - 1))),
        max_size=12,
    ),
)
def test_frames_arrive_whole_and_in_order_however_the_bytes_are_cut(
    data: st.DataObject, texts: list[tuple[int, bytes, list[int]]]
) -> None:
    sent = {stream: b"".join(text for to, text, _ in texts if to == stream) for stream in (1, 2, 3)}
    ids = {stream: [id for to, _, some in texts if to == stream for id in some] for stream in (1, 2, 3)}

    async def scenario() -> None:
        link = Incoming()
        sinks = dict(link.listener.open(nothing) for _ in sent)
        pieces = [frame(stream, text, ids=some) + frame(0, b"", PING) for stream, text, some in texts]
        whole = b"".join([link.listener._token, *pieces, *(frame(stream, b"", LAST) for stream in sent)])
        cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=30)))
        for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
            link.receive(whole[begin:end])
        assert {stream: await everything(sink) for stream, sink in sinks.items()} == sent
        assert {stream: sink.ids for stream, sink in sinks.items()} == ids

    run(scenario())


def test_a_frame_is_not_taken_before_its_last_byte() -> None:
    async def scenario() -> None:
        link = Incoming()
        stream, sink = link.listener.open(nothing)
        whole = link.listener._token + frame(stream, b"whole")
        for byte in whole[:-1]:
            link.receive(bytes([byte]))
        assert await sink.next(1.0) == b""
        link.receive(whole[-1:])
        assert await sink.next(1.0) == b"whole"

    run(scenario())


def test_a_link_with_a_wrong_token_is_closed_and_pushes_nothing() -> None:
    async def scenario() -> None:
        link = Incoming()
        stream, sink = link.listener.open(nothing)
        link.receive(b"x" * TOKEN_BYTES + frame(stream, b"forged", LAST))
        assert link.wire.closed
        assert await sink.next(1.0) == b""

    run(scenario())


def test_a_link_that_announces_an_impossible_frame_is_closed() -> None:
    async def scenario() -> None:
        link = Incoming().trusted()
        link.receive(struct.pack("!IIIB", FRAME_LIMIT_BYTES, 1, 0, DATA))
        assert not link.wire.closed
        other = Incoming().trusted()
        other.receive(struct.pack("!IIIB", FRAME_LIMIT_BYTES + 1, 1, 0, DATA))
        assert other.wire.closed
        third = Incoming().trusted()
        third.receive(struct.pack("!IIIB", 7, 1, 2, DATA))  # two ids in seven bytes
        assert third.wire.closed

    run(scenario())


def test_frames_for_streams_that_have_ended_are_dropped() -> None:
    async def scenario() -> None:
        link = Incoming().trusted()
        stream, _ = link.listener.open(nothing)
        link.listener.close(stream)
        link.receive(frame(stream, b"late"))
        assert not link.wire.closed

    run(scenario())


def test_a_lost_link_fails_exactly_its_own_streams() -> None:
    async def scenario() -> None:
        listener = Listener()
        (mine, my_sink), (theirs, their_sink), (_, silent_sink) = [listener.open(nothing) for _ in range(3)]
        begun, begun_sink = listener.open(nothing)
        lost, kept = Incoming(listener).trusted(), Incoming(listener).trusted()
        lost.receive(frame(mine, b"so far") + frame(begun, b""))
        kept.receive(frame(theirs, b"all "))
        lost.wire.abort()
        assert await my_sink.next() == b"so far"
        with pytest.raises(ReplicaLost):
            await my_sink.next()
        with pytest.raises(ReplicaLost):
            await begun_sink.next()
        kept.receive(frame(theirs, b"of it", LAST))
        assert await everything(their_sink) == b"all of it"
        assert await silent_sink.next(1.0) == b""

    run(scenario())


def test_a_silent_link_is_dropped_and_one_that_pings_is_kept() -> None:
    async def scenario() -> None:
        silent, alive, stranger = Incoming().trusted(), Incoming().trusted(), Incoming()
        for _ in range(10):
            alive.receive(frame(0, b"", PING))
            await asyncio.sleep(SILENT_S / 3)
        assert (silent.wire.closed, alive.wire.closed, stranger.wire.closed) == (True, False, True)
        await asyncio.sleep(SILENT_S - SILENT_S / 3 - 0.1)
        assert not alive.wire.closed
        await asyncio.sleep(PING_S + 0.2)
        assert alive.wire.closed

    run(scenario())


def test_a_gateway_that_stood_still_drops_no_link_for_it() -> None:
    async def scenario() -> None:
        link, loop = Incoming().trusted(), asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        await asyncio.sleep(PING_S / 2)
        loop.clock.now_s += 10 * SILENT_S
        await asyncio.sleep(PING_S)
        assert not link.wire.closed

    run(scenario())


@given(closed=st.sets(st.integers(0, 29)), start=st.sampled_from([0, 7, 0xFFFFFFFF - 3]))
def test_stream_ids_never_collide_and_fit_the_frame(closed: set[int], start: int) -> None:
    listener = Listener()
    listener._next = start
    ids = [listener.open(nothing)[0] for _ in range(30)]
    for index in closed:
        listener.close(ids[index])
    listener._next = start  # as after all 2^32 have been given once
    ids = [each for index, each in enumerate(ids) if index not in closed]
    ids += [listener.open(nothing)[0] for _ in range(30)]
    assert len(set(ids)) == len(ids)
    assert all(1 <= each <= 0xFFFFFFFF for each in ids)


# The replica's end.


def test_what_one_turn_of_the_loop_sends_leaves_in_one_write() -> None:
    async def scenario() -> None:
        link = Link(TOKEN, nothing)
        wire = Wire(link)
        before = len(wire.writes)
        for stream in range(1, 50):
            link.send(stream, b"token", (), False)
        assert len(wire.writes) == before
        await asyncio.sleep(0)
        assert wire.writes[before:] == [b"".join(frame(stream, b"token") for stream in range(1, 50))]
        link.send(1, b"", (), True)
        await asyncio.sleep(0)
        assert wire.writes[before + 1 :] == [frame(1, b"", LAST)]
        link.close()

    run(scenario())


def test_a_link_shows_its_token_first_and_pings_until_it_is_lost() -> None:
    async def scenario() -> None:
        lost: list[float] = []
        loop = asyncio.get_running_loop()
        link = Link(TOKEN, lambda: lost.append(loop.time()))
        wire = Wire(link)
        await asyncio.sleep(3.5 * PING_S)
        assert b"".join(wire.writes) == TOKEN + 4 * frame(0, b"", PING)
        wire.abort()
        link.send(1, b"nobody hears it", (), False)
        await asyncio.sleep(10 * PING_S)
        assert lost == [3.5 * PING_S]
        assert link.lost
        assert len(wire.writes) == 5

    run(scenario())


# Both, over sockets.


async def test_all_streams_of_a_replica_share_one_link_to_a_gateway() -> None:
    listener, reply_to = await listening()
    links = Links()
    opened = [listener.open(nothing) for _ in range(3)]
    joined = await asyncio.gather(*(links.join(reply_to, stream, nothing) for stream, _ in opened))
    assert len({id(link) for link in joined}) == 1
    for stream, _ in opened:
        joined[0].send(stream, b"%d" % stream, (), True)
    assert [await everything(sink) for _, sink in opened] == [b"%d" % stream for stream, _ in opened]
    joined[0].close()
    await listener.stop()


async def test_a_gateway_that_goes_ends_the_calls_of_its_streams_and_of_no_other() -> None:
    (gone, gone_address), (kept, kept_address) = await listening(), await listening()
    links, ended = Links(), asyncio.Event()
    (lost_stream, lost_sink), (stream, sink) = gone.open(nothing), kept.open(nothing)
    lost_link = await links.join(gone_address, lost_stream, ended.set)
    link = await links.join(kept_address, stream, lambda: pytest.fail("the other gateway is there"))
    lost_link.send(lost_stream, b"a", (), False)
    assert await lost_sink.next() == b"a"
    await gone.stop()
    await asyncio.wait_for(ended.wait(), 10)
    link.send(stream, b"b", (), True)
    assert await everything(sink) == b"b"
    link.close()
    await kept.stop()


async def test_a_stream_that_has_left_is_not_told_of_a_loss() -> None:
    listener, reply_to = await listening()
    links, ended = Links(), asyncio.Event()
    stays, _ = listener.open(nothing)
    leaves, _ = listener.open(nothing)
    await links.join(reply_to, stays, ended.set)
    link = await links.join(reply_to, leaves, lambda: pytest.fail("it had left"))
    links.leave(reply_to, leaves)
    link.close()
    await asyncio.wait_for(ended.wait(), 10)
    await listener.stop()


async def test_a_lost_link_is_opened_anew_by_the_next_stream() -> None:
    listener, reply_to = await listening()
    links, ended = Links(), asyncio.Event()
    first = await links.join(reply_to, 1, ended.set)
    first.close()
    await asyncio.wait_for(ended.wait(), 10)
    stream, sink = listener.open(nothing)
    second = await links.join(reply_to, stream, nothing)
    second.send(stream, b"again", (), True)
    assert await everything(sink) == b"again"
    second.close()
    await listener.stop()


async def test_a_gateway_that_cannot_be_reached_is_an_error_for_each_that_tries() -> None:
    listener, reply_to = await listening()
    await listener.stop()
    links = Links()
    for _ in range(2):
        with pytest.raises(OSError, match="Connect call failed"):
            await links.join(reply_to, 1, nothing)


async def test_a_link_that_failed_to_open_after_all_had_left_is_opened_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    listener, links = Listener(), Links()
    reply_to = await listener.start("127.0.0.1")
    opened, refused = links._open, asyncio.Event()

    async def refuse(_: object) -> Any:
        await refused.wait()
        raise ConnectionRefusedError

    monkeypatch.setattr(links, "_open", refuse)
    joining = asyncio.create_task(links.join(reply_to, 1, nothing))
    await asyncio.sleep(0)
    opening = links._links[reply_to]
    joining.cancel()
    refused.set()
    await asyncio.wait((joining, opening))
    monkeypatch.setattr(links, "_open", opened)
    (await links.join(reply_to, 2, nothing)).close()
    await listener.stop()
