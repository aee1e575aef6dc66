"""How tokens reach the gateway: pushed over a link, or as items of Serve's stream. Same bytes from both.

Both are one interface: bytes out of a sink, then how the request ended. Serve's call is the request's life in either.
With the bytes come the ids of their tokens, so that a stream that broke can go on at another replica.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from cluster.errors import MorayError, ReplicaLost, StartTimeout
from cluster.request import Chat
from deployments.link import Listener
from deployments.sink import Sink
from deployments.stream import Outcome

LAST_FRAME_S = 5.0  # a call may return before its last frame, which travels on another connection


class Answering:
    """One request under way at a replica."""

    def __init__(self, sink: Sink, call: Coroutine[Any, Any, Outcome]) -> None:
        self._sink = sink
        self.call = asyncio.ensure_future(call)

    @property
    def ids(self) -> tuple[int, ...]:
        """Of the tokens behind all bytes that `next` has given out: with them another replica can go on."""
        return tuple(self._sink.ids)

    async def next(self, timeout_s: float) -> bytes | None:
        """Bytes of the stream; b"" after a silence of timeout_s; None at its end. Raises MorayError where it broke."""
        data = await self._sink.next(timeout_s)
        if data is None:
            outcome = await self.call
            if outcome.error is not None:
                raise outcome.error
        return data

    def cancel(self) -> None:
        self.call.cancel()


class TokenPath(Protocol):
    def ask(self, handle: DeploymentHandle[Any], chat: Chat) -> Answering: ...


def lost(error: Exception) -> MorayError:
    """A call that failed of itself: its replica died, or could not be reached."""
    cause = getattr(error, "cause", error)
    if isinstance(cause, MorayError):
        return cause
    if isinstance(error, DeploymentUnavailableError):  # Serve's word for having given up starting one
        return StartTimeout("replica: none could be started; the operator's log says why; try again later")
    return ReplicaLost(f"replica: lost during the request ({type(error).__name__}); send the request again")


class Pushed:
    """The replica pushes frames to our listener; the handle's unary call returns the outcome."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def ask(self, handle: DeploymentHandle[Any], chat: Chat) -> Answering:
        stream, sink = self._listener.open(lambda: answering.cancel())
        answering = Answering(sink, self._call(handle, chat, stream, sink))
        answering.call.add_done_callback(lambda _: self._settle(stream, sink))
        return answering

    async def _call(self, handle: DeploymentHandle[Any], chat: Chat, stream: int, sink: Sink) -> Outcome:
        response: Any = None
        try:
            response = handle.push.remote(chat, self._listener.reply_to, stream)
            outcome: Outcome = await response
            return outcome
        except asyncio.CancelledError:
            response.cancel()
            raise
        except Exception as error:  # whatever Serve raises, the stream must end
            broken = lost(error)
            sink.fail(broken)
            return Outcome(error=broken)

    def _settle(self, stream: int, sink: Sink) -> None:
        asyncio.get_running_loop().call_later(0 if sink.ended else LAST_FRAME_S, self._close, stream, sink)

    def _close(self, stream: int, sink: Sink) -> None:
        self._listener.close(stream)
        sink.fail(ReplicaLost("stream: its last frame never came; the answer may be cut; send the request again"))


class Streamed:
    """Needs no port of its own: coalesced bytes are items of the handle's stream, the outcome its last item."""

    def ask(self, handle: DeploymentHandle[Any], chat: Chat) -> Answering:
        sink = Sink(lambda: answering.cancel())
        answering = Answering(sink, self._call(handle, chat, sink))
        return answering

    async def _call(self, handle: DeploymentHandle[Any], chat: Chat, sink: Sink) -> Outcome:
        response: Any = None
        outcome = Outcome(error=ReplicaLost("stream: ended without an outcome; send the request again"))
        try:
            response = handle.options(stream=True).stream.remote(chat)
            async for item in response:
                if isinstance(item, Outcome):
                    outcome = item
                else:
                    data, ids = item
                    sink.push(data, ids, False)
        except asyncio.CancelledError:
            response.cancel()
            raise
        except Exception as error:  # whatever Serve raises, the stream must end
            outcome = Outcome(error=lost(error))
        sink.push(b"", (), True)
        return outcome
