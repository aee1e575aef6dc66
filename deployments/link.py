"""The pushed token path: a replica sends tokens to a gateway over one TCP connection, beside Serve's handle call.

Serve's unary call is the request's life (routing, queueing, scaling, draining, cancellation); only tokens travel here.
    replica -> gateway: token (32 bytes), then frames: length u32 | stream u32 | ids u32 | flags u8 | id u32 ... | bytes
`ids` counts the ids of the tokens behind the bytes, with which another replica can go on; `length` covers both.
A dead process closes its socket and is noticed at once. A lost node or a frozen process sends nothing: the replica
pings each PING_S, the gateway drops a link that was silent for SILENT_S, and the kernel drops one that is not
acknowledged for SILENT_S. Its streams go on elsewhere, so that is how long their clients wait; an event loop that lives
is never late by so much.
The link is shared, so it is never paused: a stream whose client does not read is cut.
"""

import asyncio
import hmac
import secrets
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from cluster.errors import ReplicaLost
from deployments.sink import Sink

PING_S = 1.0
SILENT_S = 5.0
FRAME_LIMIT_BYTES = 16 << 20
TOKEN_BYTES = 32
_HEAD = struct.Struct("!IIIB")
_ID_BYTES = 4
_DATA, _LAST, _PING = 0, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyTo:
    """Where a gateway listens. The token keeps strangers on the network from writing into its streams."""

    host: str
    port: int
    token: bytes


@dataclass(slots=True)
class LinkCounts:
    """What went over a gateway's links. `failures`: streams that broke because their link was lost."""

    links: int = 0
    frames: int = 0
    bytes: int = 0
    failures: int = 0


class Listener:
    """The gateway's side: accepts links from replicas and hands their frames to sinks by stream id."""

    def __init__(self) -> None:
        self._token = secrets.token_bytes(TOKEN_BYTES)
        self._sinks: dict[int, Sink] = {}
        self._next = 0
        self._server: asyncio.Server | None = None
        self._inbound: set[_Inbound] = set()
        self.counts = LinkCounts()
        self.reply_to: ReplyTo | None = None

    async def start(self, host: str) -> ReplyTo:
        """Listen on a free port of `host`, which replicas on other nodes must be able to reach."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Inbound(self), host, 0)
        port = self._server.sockets[0].getsockname()[1]
        self.reply_to = ReplyTo(host=host, port=port, token=self._token)
        return self.reply_to

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for inbound in list(self._inbound):
            inbound.close()

    def open(self, on_overflow: Callable[[], None]) -> tuple[int, Sink]:
        self._next = self._next % 0xFFFFFFFF + 1
        while self._next in self._sinks:
            self._next = self._next % 0xFFFFFFFF + 1
        sink = self._sinks[self._next] = Sink(on_overflow)
        return self._next, sink

    def close(self, stream: int) -> None:
        self._sinks.pop(stream, None)

    def opened(self, inbound: "_Inbound", token: bytes) -> bool:
        if not hmac.compare_digest(token, self._token):
            return False
        self._inbound.add(inbound)
        self.counts.links = len(self._inbound)
        return True

    def frame(self, link: asyncio.Transport, stream: int, data: bytes, ids: Sequence[int], last: bool) -> None:
        self.counts.frames += 1
        self.counts.bytes += _HEAD.size + _ID_BYTES * len(ids) + len(data)
        sink = self._sinks.get(stream)
        if sink is not None:
            sink.link = link
            sink.push(data, ids, last)

    def lost(self, inbound: "_Inbound", link: asyncio.Transport) -> None:
        self._inbound.discard(inbound)
        self.counts.links = len(self._inbound)
        for sink in self._sinks.values():
            if sink.link is link and not sink.ended:
                self.counts.failures += 1
                sink.fail(ReplicaLost("stream: its replica was lost; the answer so far stands; send the request again"))


class _Inbound(asyncio.Protocol):
    """One accepted link: splits bytes into frames. Nothing is believed before the token has been seen."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._buffer = bytearray()
        self._trusted = False
        self._transport: asyncio.Transport | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._silent_looks = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._watch()

    def _watch(self) -> None:
        """Looks are counted, not seconds: a gateway that itself stood still must not take every link for dead."""
        if self._silent_looks * PING_S >= SILENT_S:
            self.close()
        else:
            self._silent_looks += 1
            self._watchdog = asyncio.get_running_loop().call_later(PING_S, self._watch)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
        if self._transport is not None:
            self._listener.lost(self, self._transport)

    def data_received(self, data: bytes) -> None:
        self._silent_looks = 0
        self._buffer += data
        if not self._trusted:
            if len(self._buffer) < TOKEN_BYTES:
                return
            self._trusted = self._listener.opened(self, bytes(self._buffer[:TOKEN_BYTES]))
            if not self._trusted:
                self.close()
                return
            del self._buffer[:TOKEN_BYTES]
        self._frames()

    def _frames(self) -> None:
        assert self._transport is not None
        buffer, at, end = self._buffer, 0, len(self._buffer)
        while end - at >= _HEAD.size:
            length, stream, count, flags = _HEAD.unpack_from(buffer, at)
            if length > FRAME_LIMIT_BYTES or count * _ID_BYTES > length:
                self.close()
                return
            if end - at - _HEAD.size < length:
                break
            begin = at + _HEAD.size
            at = begin + length
            if flags != _PING:
                ids = struct.unpack_from(f"!{count}I", buffer, begin)
                data = bytes(buffer[begin + count * _ID_BYTES : at])
                self._listener.frame(self._transport, stream, data, ids, flags == _LAST)
        del buffer[:at]


class Link(asyncio.Protocol):
    """The replica's side: frames of one loop turn leave in one write."""

    def __init__(self, token: bytes, on_lost: Callable[[], None]) -> None:
        self._token = token
        self._on_lost = on_lost
        self._out: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._ping: asyncio.TimerHandle | None = None
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(SILENT_S * 1000))
        self._transport.write(self._token)
        self._beat()

    def _beat(self) -> None:
        assert self._transport is not None
        self._transport.write(_HEAD.pack(0, 0, 0, _PING))
        self._ping = asyncio.get_running_loop().call_later(PING_S, self._beat)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self._ping is not None:
            self._ping.cancel()
        self._on_lost()

    def send(self, stream: int, data: bytes, ids: Sequence[int], last: bool) -> None:
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        count = len(ids)
        length = count * _ID_BYTES + len(data)
        self._out.append(struct.pack(f"!IIIB{count}I", length, stream, count, _LAST if last else _DATA, *ids))
        self._out.append(data)

    def _flush(self) -> None:
        if self._transport is not None and not self.lost:
            self._transport.writelines(self._out)
        self._out.clear()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class Links:
    """A replica's links, one per gateway, opened on first use. Losing one runs `on_lost` of every stream on it."""

    def __init__(self) -> None:
        self._links: dict[ReplyTo, asyncio.Task[Link]] = {}
        self._streams: dict[ReplyTo, dict[int, Callable[[], object]]] = {}

    async def join(self, reply_to: ReplyTo, stream: int, on_lost: Callable[[], object]) -> Link:
        """The link to that gateway. Raises OSError where it cannot be reached."""
        opening = self._links.get(reply_to)
        if opening is None:
            opening = self._links[reply_to] = asyncio.ensure_future(self._open(reply_to))
            opening.add_done_callback(lambda opened: self._opened(reply_to, opened))
        link = await asyncio.shield(opening)
        if link.lost:
            raise ConnectionError(f"link to {reply_to.host}:{reply_to.port}: lost")
        self._streams.setdefault(reply_to, {})[stream] = on_lost
        return link

    def _opened(self, reply_to: ReplyTo, opened: asyncio.Task[Link]) -> None:
        """One that could not be opened is tried anew by whoever joins next, though all who waited for it have left."""
        if (opened.cancelled() or opened.exception() is not None) and self._links.get(reply_to) is opened:
            del self._links[reply_to]

    def leave(self, reply_to: ReplyTo, stream: int) -> None:
        self._streams.get(reply_to, {}).pop(stream, None)

    async def _open(self, reply_to: ReplyTo) -> Link:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(SILENT_S):
            _, link = await loop.create_connection(
                lambda: Link(reply_to.token, lambda: self._drop(reply_to)), reply_to.host, reply_to.port
            )
        return link

    def _drop(self, reply_to: ReplyTo) -> None:
        self._links.pop(reply_to, None)
        for on_lost in self._streams.pop(reply_to, {}).values():
            on_lost()
