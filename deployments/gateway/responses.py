"""/v1/responses: a chat in other words, kept for 30 days, also in the background.

A response is answered by the chat endpoint itself: plans, promises, spill, rescue, ledger and metrics are a chat's.
Kept responses are rows before their client hears that they are complete; one in the background is a row before its
client gets the id. What a conversation gains is written with it.
"""

import asyncio
import functools
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from pydantic import Field
from starlette.responses import StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from cluster.errors import InvalidRequest, MorayError, NotFound, Overloaded
from cluster.family import Gateway
from deployments.gateway.asgi import REQUEST_ID, json_response, read_body
from deployments.gateway.body import Strict, parsed
from deployments.gateway.chat import ChatCompletions, Given
from deployments.gateway.description import JSON, SSE, Described
from deployments.gateway.objects_wire import Listing, Who, found, listed
from deployments.gateway.response_items import MOST_ITEMS, Item, kept
from deployments.gateway.response_request import ResponseBody, chat_body, chat_of, parse_response, retell
from deployments.gateway.response_rows import gained, kept_of, row_of
from deployments.gateway.response_runs import Runs
from deployments.gateway.response_told import Told, heard
from deployments.gateway.response_wire import Answer, Kept, Narration, begun, cancelled, ended, rendered
from deployments.gateway.wishes import WISHES
from deployments.stores.keys import KeyRecord
from deployments.stores.objects import MOST_AT_ONCE, Objects, Page
from deployments.stores.threads import in_thread

HEADERS = (b"moray-floor", b"moray-hint", b"moray-ceiling-usd-per-mtok", b"traceparent")  # what tiers are chosen by
FOLLOW_S = 0.1  # between looks at a response whose stream is followed
MOST_WAITING = 1000  # responses of a key in the background that have not ended
RETRY_AFTER_S = 30.0
AT_ONCE = 20  # items of a conversation: each may be as large as a body
MOST_SIZE = 4  # times a body: of all items of a conversation, as they are kept
MOST_TRIES = 5  # to write over what was read


class _Retrieve(Strict):
    """Numbers and truths of a query are text."""

    stream: Annotated[bool, Field(strict=False)] = False
    starting_after: Annotated[int, Field(ge=0, strict=False)] | None = None
    include: Any = None
    include_obfuscation: Any = None


class Responses:
    """`now_s`: Unix seconds."""

    described = Described(body=ResponseBody, headers=WISHES, gives="response", media=(JSON, SSE))

    def __init__(
        self,
        limits: Gateway,
        chat: ChatCompletions,
        objects: Objects,
        runs: Runs,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._limits, self.chat, self._objects, self._runs, self._now_s = limits, chat, objects, runs, now_s

    def add_routes(self, app: FastAPI, who: Who) -> None:
        self._who = who
        app.router.routes.append(Route("/v1/responses", self, methods=["POST"]))
        app.add_api_route("/v1/responses/{response_id}", self._retrieve, methods=["GET"])
        app.add_api_route("/v1/responses/{response_id}", self._delete, methods=["DELETE"])
        app.add_api_route("/v1/responses/{response_id}/cancel", self._cancel, methods=["POST"])
        app.add_api_route("/v1/responses/{response_id}/input_items", self._input_items, methods=["GET"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = self._who(scope)
        body = await read_body(scope, receive, self._limits.max_body_bytes)
        state = await self._ready(record.id, parse_response(body), scope)
        if state.response["background"]:
            response = await self._in_background(record.id, state)
            await response(scope, receive, send)
            return
        told = Told(state, send, functools.partial(self._keep, record.id), self._now_s)
        try:
            await self.chat.answer(scope, receive, told, _given(record, state, scope[REQUEST_ID]))
        except MorayError as error:
            retell(error, state.origins)
            raise

    async def answered(self, record: KeyRecord, body: bytes, scope: Scope, *, spare: bool) -> dict[str, Any]:
        """The whole response, for a batch: after every plan's requests. Raises MorayError."""
        asked = parse_response(body)
        if asked.stream or asked.background:
            raise InvalidRequest("stream: not in a batch; leave stream and background out", param="stream")
        state = await self._ready(record.id, asked, scope)
        given = replace(_given(record, state, scope[REQUEST_ID]), last=True, spare=spare)
        answer = Answer()
        answer.hear(json.loads(await heard(self.chat, scope, given)))
        done = replace(state, response=ended(state.response, answer, int(self._now_s())))
        await self._keep(record.id, done)
        return done.response

    async def _ready(self, owner: str, asked: ResponseBody, scope: Scope) -> Kept:
        """Everything that the caller got wrong is told here. Raises InvalidRequest, NotFound, Unavailable."""
        suffix = secrets.token_hex(16)
        own = kept(asked.input, suffix)
        context = await self._context(owner, asked)
        where = [f"input[{index}]" for index in range(len(own))] if not isinstance(asked.input, str) else ["input"]
        body, origins = chat_body(asked, [*context, *zip(own, where, strict=True)], secrets.randbits(63))
        created_s = int(self._now_s())
        chat_of(body, origins, "", created_s, stream=False)  # what is wrong is told before anything is kept
        response = begun(asked, f"resp_{suffix}", created_s)
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in HEADERS}
        return Kept(
            response=response,
            input=own,
            chat=body,
            origins=origins,
            headers=headers,
            streamed=bool(asked.stream),
        )

    async def _context(self, owner: str, asked: ResponseBody) -> list[tuple[Item, str]]:
        """What came before, oldest first."""
        if asked.conversation_id is not None:
            await found(self._objects, owner, "conversation", asked.conversation_id)
            return [(item, "conversation") for item in await self._items(owner, asked.conversation_id)]
        turns: list[list[Item]] = []
        name = asked.previous_response_id
        while name is not None:
            before = await self._previous(owner, name)
            turns.append([*before.input, *before.response["output"]])
            name = before.response["previous_response_id"]
            if len(turns) > MOST_ITEMS:
                break  # more than a chat may have: it says so
        return [(item, "previous_response_id") for turn in reversed(turns) for item in turn]

    async def _items(self, owner: str, conversation: str) -> list[Item]:
        """All of a conversation. Raises InvalidRequest where they are more than any chat may have."""
        items: list[Item] = []
        size, most, after, more = 0, MOST_SIZE * self._limits.max_body_bytes, None, True
        while more:
            page = Page(parent=conversation, after=after, limit=AT_ONCE, order="asc")
            rows, more = await in_thread(self._objects.page, owner, "item", page)
            items += [json.loads(row.document) for row in rows]
            size, after = size + sum(len(row.document) for row in rows), rows[-1].id if rows else None
            if len(items) > MOST_ITEMS or size > most:
                raise InvalidRequest(
                    f"conversation: it has more than {MOST_ITEMS} items, or than {most} bytes; as many are allowed; "
                    "begin another one",
                    param="conversation",
                )
        return items

    async def _previous(self, owner: str, name: str) -> Kept:
        try:
            before = kept_of(await found(self._objects, owner, "response", name))
        except NotFound as error:
            raise NotFound(
                f"previous_response_id: {error.message}",
                param="previous_response_id",
                code="previous_response_not_found",
            ) from None
        if before.response["status"] not in ("completed", "incomplete"):
            raise InvalidRequest(
                f"previous_response_id: {name} is {before.response['status']}; one that is completed is allowed; wait "
                "for its end, or name another",
                param="previous_response_id",
            )
        return before

    async def _keep(self, owner: str, done: Kept) -> None:
        """Raises Unavailable."""
        rows = gained(owner, done)
        if done.response["store"]:
            rows.append(row_of(owner, replace(done, chat=None, origins=[], headers={})))
        for begin in range(0, len(rows), MOST_AT_ONCE):
            await in_thread(self._objects.create, *rows[begin : begin + MOST_AT_ONCE])

    async def _in_background(self, owner: str, state: Kept) -> Response:
        waiting = await in_thread(self._objects.unfinished, owner, "response")
        if waiting >= MOST_WAITING:
            raise Overloaded(
                f"responses: {waiting} of this key go on in the background; at most {MOST_WAITING} may; try again when "
                "some have ended",
                retry_after_s=RETRY_AFTER_S,
            )
        await in_thread(self._objects.create, row_of(owner, state))
        self._runs.wake()
        if state.streamed:
            return self._followed(owner, state.response["id"], -1)
        return json_response(state.response)

    def _followed(self, owner: str, response_id: str, after: int) -> Response:
        headers = {"cache-control": "no-cache"}
        return StreamingResponse(
            self._events(owner, response_id, after), media_type="text/event-stream", headers=headers
        )

    async def _events(self, owner: str, response_id: str, after: int) -> AsyncIterator[bytes]:
        """Those numbered behind `after`, as they come. One that is deleted meanwhile ends its stream with an error."""
        narration = Narration()
        while True:
            try:
                state = self._runs.state(response_id) or kept_of(
                    await found(self._objects, owner, "response", response_id)
                )
            except MorayError as error:
                told = {"type": "error", "code": error.code, "message": error.message, "param": None}
                yield rendered(told | {"sequence_number": narration.number})
                return
            events = narration.until(state.response, state.cuts)
            data = b"".join(rendered(event) for event in events if event["sequence_number"] > after)
            if data:
                yield data
            if state.ended:
                return
            await asyncio.sleep(FOLLOW_S)

    @Described(query=_Retrieve, gives="response", media=(JSON, SSE))
    async def _retrieve(self, response_id: str, request: Request) -> Response:
        owner = self._who(request.scope).id
        query: Mapping[str, str] = {name.removesuffix("[]"): value for name, value in request.query_params.items()}
        asked = parsed(_Retrieve, query)
        state = kept_of(await found(self._objects, owner, "response", response_id))
        if not asked.stream:
            return json_response(state.response)
        if not state.streamed:
            raise InvalidRequest(
                f"stream: {response_id} was not made as a stream; one made with stream true is allowed; leave it out",
                param="stream",
            )
        return self._followed(owner, response_id, -1 if asked.starting_after is None else asked.starting_after)

    @Described(gives="response")
    async def _delete(self, response_id: str, request: Request) -> Response:
        """One that goes on in the background stops."""
        row = await found(self._objects, self._who(request.scope).id, "response", response_id)
        await in_thread(self._objects.delete, row.owner, row.id)
        self._runs.drop(row.id)
        return json_response({"id": row.id, "object": "response", "deleted": True})

    @Described(gives="response")
    async def _cancel(self, response_id: str, request: Request) -> Response:
        owner = self._who(request.scope).id
        for _ in range(MOST_TRIES):
            row = await found(self._objects, owner, "response", response_id)
            state = kept_of(row)
            if not state.response["background"]:
                raise InvalidRequest(
                    f"responses: {response_id} is not in the background; one made with background true is allowed; "
                    "close the connection of others"
                )
            if state.ended:
                return json_response(state.response)
            state = self._runs.state(response_id) or state
            over = replace(state, response=cancelled(state.response), chat=None, origins=[], headers={})
            now = replace(row, document=over.dumped(), open=False)
            if await in_thread(self._objects.update, now, free_at_s=0.0) is not None:
                self._runs.drop(row.id)
                return json_response(over.response)
        raise Overloaded("responses: it is written at the same time; ask again", retry_after_s=1.0)

    @Described(query=Listing, listing=True)
    async def _input_items(self, response_id: str, request: Request) -> Response:
        owner = self._who(request.scope).id
        asked = parsed(Listing, {name.removesuffix("[]"): value for name, value in request.query_params.items()})
        items = kept_of(await found(self._objects, owner, "response", response_id)).input
        items = items if asked.order == "asc" else items[::-1]
        names = [item["id"] for item in items]
        if asked.after is not None and asked.after not in names:
            raise InvalidRequest(
                f"after: {asked.after!r} is no item of {response_id}; the id of one is allowed; leave it out",
                param="after",
            )
        begin = 0 if asked.after is None else names.index(asked.after) + 1
        page = items[begin : begin + asked.limit]
        return json_response(listed(page, len(items) > begin + asked.limit))


def _given(record: KeyRecord, state: Kept, request_id: str) -> Given:
    assert state.chat is not None
    chat = chat_of(state.chat, state.origins, request_id, state.response["created_at"], stream=state.streamed)
    return Given(record=record, chat=chat)
