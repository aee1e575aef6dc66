"""In the place of a chat's client: hears the answer, and tells it as a response, once that is kept."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace

from starlette.types import Message, Scope, Send

from cluster.errors import MorayError, Unavailable
from deployments.gateway.chat import ChatCompletions, Given
from deployments.gateway.response_wire import Answer, Kept, Narration, ended, failed, rendered, so_far
from deployments.gateway.wire import DONE

Keep = Callable[[Kept], Awaitable[None]]


class Chunks:
    """The events of a chat's stream, put together as an answer. `error`: how it broke."""

    def __init__(self) -> None:
        self.answer = Answer()
        self.error: MorayError | None = None
        self.done = False
        self._rest = b""

    def hear(self, data: bytes) -> bytes:
        """Returns the comments among them: they are for the client."""
        comments: list[bytes] = []
        *whole, self._rest = (self._rest + data).split(b"\n\n")
        for event in whole:
            if not event.startswith(b"data: "):
                comments.append(event + b"\n\n")
            elif event + b"\n\n" == DONE:
                self.done = True
            else:
                self._hear(json.loads(event.removeprefix(b"data: ")))
        return b"".join(comment for comment in comments if comment.strip())

    def _hear(self, chunk: dict[str, object]) -> None:
        match chunk:
            case {"error": {"message": str(message), "code": code}}:
                self.error = MorayError(message, code=str(code))
            case _:
                self.answer.hear(chunk)


class Told:
    """An ASGI `send`. `keep`: called once, before the client hears that the answer has ended. Where it raises

    Unavailable, a stream ends as failed.
    """

    def __init__(self, kept: Kept, send: Send, keep: Keep, now_s: Callable[[], float]) -> None:
        self._kept, self._send, self._keep, self._now_s = kept, send, keep, now_s
        self._narration, self._chunks = Narration(), Chunks()
        self._start: Message = {}

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            if self._kept.streamed:
                await self._send(message)
                await self._tell(self._kept)
        elif self._kept.streamed:
            await self._piece(message)
        else:
            await self._whole(message["body"])

    async def _whole(self, body: bytes) -> None:
        answer = Answer()
        answer.hear(json.loads(body))
        done = replace(self._kept, response=ended(self._kept.response, answer, int(self._now_s())))
        await self._keep(done)
        told = json.dumps(done.response).encode()
        headers = [pair for pair in self._start["headers"] if pair[0] != b"content-length"]
        headers.append((b"content-length", str(len(told)).encode()))
        await self._send({**self._start, "headers": headers})
        await self._send({"type": "http.response.body", "body": told})

    async def _piece(self, message: Message) -> None:
        chunks, response = self._chunks, self._kept.response
        comments = chunks.hear(message.get("body", b""))
        if comments:
            await self._send({"type": "http.response.body", "body": comments, "more_body": True})
        if not self._kept.ended:
            if chunks.error is not None:
                await self._end(failed(response, chunks.answer, chunks.error))
            elif chunks.done:
                await self._end(ended(response, chunks.answer, int(self._now_s())))
            elif chunks.answer.cuts:
                await self._tell(self._now(so_far(response, chunks.answer)))
        if not message.get("more_body"):
            await self._send({"type": "http.response.body", "body": b""})

    def _now(self, response: dict[str, object]) -> Kept:
        return replace(self._kept, response=response, cuts=self._chunks.answer.cuts)

    async def _end(self, response: dict[str, object]) -> None:
        done = self._now(response)
        try:
            await self._keep(done)
        except Unavailable as error:  # a stream that has begun must say how it ends
            done = self._now(failed(response, self._chunks.answer, error))
        self._kept = done
        await self._tell(done)

    async def _tell(self, state: Kept) -> None:
        events = self._narration.until(state.response, state.cuts)
        data = b"".join(map(rendered, events))
        if data:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})


async def heard(chat: ChatCompletions, scope: Scope, given: Given) -> bytes:
    """The body of a whole completion. Raises MorayError."""
    bodies: list[bytes] = []

    async def send(message: Message) -> None:
        bodies.append(message.get("body", b""))

    await chat.answer(scope, nobody, send, given)
    return b"".join(bodies)


async def nobody() -> Message:
    """An ASGI `receive` of a client that stays and says nothing more."""
    await asyncio.Event().wait()
    raise AssertionError
