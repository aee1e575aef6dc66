"""Responses in the background: rows that any gateway claims, answers, and writes down.

A gateway holds a row under a lease and renews it; the rows of a gateway that dies are claimed by the next when their
leases end. The answer is then asked for again with the same seed; a stream goes on behind the pieces that it was told
in, where the new answer begins with them. What a busy tier refuses, or a replica loses, waits and is asked again.
"""

import asyncio
import contextlib
import functools
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from secrets import token_hex
from typing import Any

from starlette.types import Message, Scope

from cluster.errors import (
    EngineFailed,
    MorayError,
    Overloaded,
    QuotaExceeded,
    RateLimited,
    Unavailable,
)
from deployments.gateway.asgi import REQUEST_ID
from deployments.gateway.chat import ChatCompletions, Given
from deployments.gateway.objects_wire import KeyOf
from deployments.gateway.response_request import chat_of
from deployments.gateway.response_rows import gained, kept_of
from deployments.gateway.response_told import Chunks, nobody
from deployments.gateway.response_wire import Answer, Kept, ended, failed, so_far
from deployments.stores.objects import MOST_AT_ONCE, Object, Objects
from deployments.stores.threads import in_thread

log = logging.getLogger("ray.serve")
MOST_RUNNING = 256  # of one gateway
MOST_ATTEMPTS = 3  # that ended by a fault of ours
PAUSE_S = 2.0  # before the next attempt
LEASE_S = 10.0  # a gateway that says nothing for so long holds no response any more
TURN_S = 1.0  # between looks at the rows, and between writes of a stream that goes on
PATH = "/v1/responses"


class _LostError(Exception):
    """Its row may not be written any more: deleted, cancelled, or claimed by another gateway."""


class Runs:
    """On one event loop. `key_of`: the key of an owner. `now_s`: Unix seconds."""

    def __init__(
        self, chat: ChatCompletions, objects: Objects, key_of: KeyOf, now_s: Callable[[], float] = time.time
    ) -> None:
        self._chat, self._objects, self._key_of, self._now_s = chat, objects, key_of, now_s
        self._gateway = token_hex(6)
        self._mine: dict[str, _Run] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """A row was added."""
        self._wake.set()

    def state(self, response_id: str) -> Kept | None:
        """Of one that this gateway answers, newer than its row."""
        run = self._mine.get(response_id)
        return run.state if run is not None else None

    def drop(self, response_id: str) -> None:
        """It was deleted or cancelled."""
        if (task := self._tasks.get(response_id)) is not None:
            task.cancel()

    async def run(self) -> None:
        """Answers what nobody answers. Never ends, whatever fails."""
        while True:
            try:
                await self._turn()
            except Exception as failure:  # without this loop no response in the background would begin
                log.error("responses: %s", failure, exc_info=not isinstance(failure, Unavailable))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TURN_S):
                    await self._wake.wait()
            self._wake.clear()

    async def _turn(self) -> None:
        mine = tuple(self._mine)[:MOST_RUNNING]
        held = await in_thread(self._objects.renew, self._gateway, mine, self._now_s(), LEASE_S)
        for name in mine:
            if name not in held and name in self._mine and not self._mine[name].state.ended:
                self.drop(name)
        while len(self._mine) < MOST_RUNNING:
            claim = self._objects.claim
            row = await in_thread(claim, "response", self._gateway, self._now_s(), LEASE_S)
            if row is None:
                return
            if row.id in self._mine:  # its lease ran out while the store did not answer, and nobody took it
                self._mine[row.id].row = row
                continue
            self._mine[row.id] = _Run(row, self._objects, self._now_s)
            task = self._tasks[row.id] = asyncio.create_task(self._see_to(self._mine[row.id]))
            task.add_done_callback(functools.partial(self._over, row.id))

    def _over(self, response_id: str, task: asyncio.Task[None]) -> None:
        del self._mine[response_id], self._tasks[response_id]
        self._wake.set()
        if not task.cancelled() and (failure := task.exception()) is not None:
            log.error("response %s: %s", response_id, failure, exc_info=failure)

    async def _see_to(self, run: "_Run") -> None:
        """One attempt, however it ends. Where the store does not answer, the row comes back when its lease ends."""
        try:
            try:
                await self._attempt(run)
            except (Overloaded, RateLimited) as error:
                if error.retry_after_s is None or isinstance(error, QuotaExceeded):
                    await run.end(failed(run.state.response, run.told, error))
                else:
                    await run.back(error.retry_after_s, counts=False)
            except MorayError as error:
                if error.status < 500 or run.hopeless or run.state.attempts >= MOST_ATTEMPTS:
                    await run.end(failed(run.state.response, run.told, error))
                else:
                    await run.back(PAUSE_S, counts=True)
        except _LostError:
            return
        except Unavailable as failure:
            log.warning("response %s: %s", run.row.id, failure)

    async def _attempt(self, run: "_Run") -> None:
        await run.begin()
        record = await self._key_of(run.row.owner, PATH)
        scope = scope_of(run.row.id, PATH, run.state.headers)
        state = run.state
        assert state.chat is not None
        created_s = state.response["created_at"]
        chat = chat_of(state.chat, state.origins, run.row.id, created_s, stream=state.streamed)
        await self._chat.answer(scope, nobody, run, Given(record=record, chat=chat))
        await run.ended()


class _Run:
    """One attempt: an ASGI `send` that hears the chat. `told`: the answer as far as it may be told."""

    def __init__(self, row: Object, objects: Objects, now_s: Callable[[], float]) -> None:
        self.row, self._objects, self._now_s = row, objects, now_s
        self.state = kept_of(row)
        self.hopeless = False  # another attempt would not help
        self._before = self.state
        self._chunks = Chunks()
        self._body = b""
        self._wrote_s = now_s()
        self.told = Answer(text=self.state.text, cuts=list(self.state.cuts))

    async def __call__(self, message: Message) -> None:
        data = message.get("body", b"")
        if not self.state.streamed:
            self._body += data
            return
        self._chunks.hear(data)
        if self._chunks.error is not None:
            raise self._chunks.error
        self._follow(whole=self._chunks.done)
        self.state = replace(self.state, response=so_far(self.state.response, self.told), cuts=self.told.cuts)
        if self._now_s() >= self._wrote_s + TURN_S:
            self._wrote_s = self._now_s()
            await self._write(self.state)

    def _follow(self, *, whole: bool) -> None:
        """Raises EngineFailed where the answer is another one than the one that was told before."""
        answer, before = self._chunks.answer, self._before.text
        shared = min(len(answer.text), len(before))
        if answer.text[:shared] != before[:shared] or (whole and len(answer.text) < len(before)):
            self.hopeless = True
            raise EngineFailed("response: taken up by another gateway, it had another answer; ask again")
        if shared == len(before):
            self.told = replace(answer, cuts=behind(self._before.cuts, answer.cuts))

    async def begin(self) -> None:
        response = self.state.response | {"status": "in_progress"}
        await self._write(replace(self.state, response=response, attempts=self.state.attempts + 1))

    async def ended(self) -> None:
        """The chat has answered. Raises _LostError, Unavailable."""
        if not self.state.streamed:
            self.told.hear(json.loads(self._body))
        await self.end(ended(self.state.response, self.told, int(self._now_s())))

    async def end(self, response: dict[str, Any]) -> None:
        """What its conversation gains comes first: written twice it is there once."""
        done = replace(self.state, response=response, cuts=self.told.cuts, chat=None, origins=[], headers={})
        rows = gained(self.row.owner, done)
        for begin in range(0, len(rows), MOST_AT_ONCE):
            await in_thread(self._objects.create, *rows[begin : begin + MOST_AT_ONCE])
        await self._write(done, free_at_s=0.0)

    async def back(self, pause_s: float, *, counts: bool) -> None:
        """To whoever claims it next, not before the pause is over."""
        attempts = self.state.attempts if counts else self.state.attempts - 1
        waits = replace(self.state, response=self.state.response | {"status": "queued"}, attempts=attempts)
        await self._write(waits, free_at_s=self._now_s() + pause_s)

    async def _write(self, state: Kept, *, free_at_s: float | None = None) -> None:
        changed = replace(self.row, document=state.dumped(), open=not state.ended)
        now = await in_thread(self._objects.update, changed, free_at_s=free_at_s)
        if now is None:
            raise _LostError
        self.row, self.state = now, state


def behind(told: Sequence[tuple[int, int]], cuts: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The pieces that were told, and of those of a new answer what goes beyond."""
    pieces = list(told)
    chars, logprobs = sum(cut[0] for cut in told), sum(cut[1] for cut in told)
    seen_chars = seen_logprobs = 0
    for cut in cuts:
        seen_chars, seen_logprobs = seen_chars + cut[0], seen_logprobs + cut[1]
        more = max(0, seen_chars - chars), max(0, seen_logprobs - logprobs)
        if any(more):
            pieces.append(more)
            chars, logprobs = chars + more[0], logprobs + more[1]
    return pieces


def scope_of(request_id: str, path: str, headers: dict[str, str]) -> Scope:
    """Of a request that nobody holds a connection for."""
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": raw,
        REQUEST_ID: request_id,
    }
