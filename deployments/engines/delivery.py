"""From an engine's thread to its event loop: how its start ended, and the pieces of its streams.

A stream is closed on the loop alone, so that nothing is emitted after a cancellation.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from cluster.request import Piece
from deployments.engines.torch_engine.streams import Stream

T = TypeVar("T")
log = logging.getLogger(__name__)


class Delivery:
    """Made on the loop; its methods may be called from any thread. `started` raises why the engine did not start."""

    def __init__(self, cancel: Callable[[str], None]) -> None:
        """`cancel`: called on the loop with the id of a stream whose receiver fails."""
        self._cancel = cancel
        self._loop = asyncio.get_running_loop()
        self.started: asyncio.Future[None] = self._loop.create_future()

    def settle(self, error: Exception | None = None) -> None:
        """It has started, or never will. Only the first word counts, and none where nobody waits any more."""
        self._call(self._settle, error)

    def send(self, pieces: Sequence[tuple[Stream, Piece]]) -> None:
        """All in one call on the loop. What is for a stream that was closed meanwhile is dropped."""
        self._call(self._emit, pieces)

    def _settle(self, error: Exception | None) -> None:
        if self.started.done():
            return
        if error is None:
            self.started.set_result(None)
        else:
            self.started.set_exception(error)

    def _emit(self, pieces: Sequence[tuple[Stream, Piece]]) -> None:
        for stream, piece in pieces:
            if not stream.open:
                continue
            stream.open = not piece.last
            try:
                stream.emit(piece)
            except Exception:
                log.exception("%s: its receiver failed; the stream is cancelled", stream.generation.request_id)
                self._cancel(stream.generation.request_id)

    def _call(self, function: Callable[[T], None], argument: T) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(function, argument)
