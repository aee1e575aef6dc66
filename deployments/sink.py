"""The gateway's end of one stream of tokens, whichever way they come."""

import asyncio
from collections.abc import Callable, Iterable

from cluster.errors import Overloaded

SINK_LIMIT_BYTES = 1 << 20


class Sink:
    """Bytes pushed in as they come, read out by the response, ended exactly once.

    `ids` are those of the tokens behind all bytes that `next` has given out.
    """

    __slots__ = ("_chunks", "_ended", "_error", "_fresh", "_size_bytes", "_waiter", "ids", "link", "on_overflow")

    def __init__(self, on_overflow: Callable[[], None]) -> None:
        self._chunks: list[bytes] = []
        self._fresh: list[int] = []  # ids behind the chunks
        self.ids: list[int] = []
        self._size_bytes = 0
        self._ended = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.link: asyncio.Transport | None = None
        self.on_overflow = on_overflow

    @property
    def ended(self) -> bool:
        return self._ended

    def push(self, data: bytes, ids: Iterable[int], last: bool) -> None:
        if self._ended:
            return
        if data:
            self._chunks.append(data)
            self._fresh.extend(ids)
            self._size_bytes += len(data)
        if self._size_bytes > SINK_LIMIT_BYTES and not last:  # behind the last ones no more can gather
            self.fail(
                Overloaded(
                    f"stream: {self._size_bytes} bytes lie unread; {SINK_LIMIT_BYTES} are kept; read faster",
                    retry_after_s=1.0,
                )
            )
            self.on_overflow()
            return
        self._ended = last
        if data or last:
            self._wake()

    def fail(self, error: Exception) -> None:
        """End the stream with an error, after what has already arrived. Later calls change nothing."""
        if not self._ended:
            self._ended, self._error = True, error
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self, timeout_s: float | None = None) -> bytes | None:
        """All bytes that wait, b"" when timeout_s passed without any, None at the end. Raises the stream's error."""
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._waiter
            except TimeoutError:
                if not self._chunks and not self._ended:  # they may have come in the turn in which the time was up
                    return b""
            finally:
                self._waiter = None
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self.ids += self._fresh
        self._fresh.clear()
        self._size_bytes = 0
        return data
