"""/v1/conversations: items that responses begin with and add to, as rows, until their conversation is deleted."""

import json
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from pydantic import Field

from cluster.errors import Conflict
from cluster.family import Gateway
from deployments.gateway.asgi import json_response, read_body
from deployments.gateway.body import Strict, parsed
from deployments.gateway.description import Described
from deployments.gateway.objects_wire import Listing, Metadata, Who, found, listed, page
from deployments.gateway.response_items import Items, kept
from deployments.gateway.response_rows import item_rows
from deployments.gateway.video_form import json_fields
from deployments.stores.keys import KeyRecord
from deployments.stores.objects import Object, Objects
from deployments.stores.threads import in_thread

MOST_ITEMS = 20  # of one request, as in the API
MOST_TRIES = 5
_Items = Annotated[Items, Field(max_length=MOST_ITEMS)]


class _Create(Strict):
    items: _Items | None = None
    metadata: Metadata | None = None


class _Update(Strict):
    metadata: Metadata | None


class _Add(Strict):
    items: _Items


class Conversations:
    """`now_s`: Unix seconds."""

    def __init__(self, limits: Gateway, objects: Objects, now_s: Callable[[], float] = time.time) -> None:
        self._limits, self._objects, self._now_s = limits, objects, now_s

    def add_routes(self, app: FastAPI, who: Who) -> None:
        self._who = who
        one, items = "/v1/conversations/{conversation_id}", "/v1/conversations/{conversation_id}/items"
        app.add_api_route("/v1/conversations", self._create, methods=["POST"])
        app.add_api_route(one, self._retrieve, methods=["GET"])
        app.add_api_route(one, self._update, methods=["POST"])
        app.add_api_route(one, self._delete, methods=["DELETE"])
        app.add_api_route(items, self._add, methods=["POST"])
        app.add_api_route(items, self._list, methods=["GET"])
        app.add_api_route(items + "/{item_id}", self._item, methods=["GET"])
        app.add_api_route(items + "/{item_id}", self._delete_item, methods=["DELETE"])

    @Described(body=_Create, optional=True, gives="conversation")
    async def _create(self, request: Request) -> Response:
        record = self._who(request.scope)
        asked = parsed(_Create, await self._fields(request))
        suffix = secrets.token_hex(16)
        told = {
            "id": f"conv_{suffix}",
            "object": "conversation",
            "created_at": int(self._now_s()),
            "metadata": asked.metadata or {},
        }
        row = Object(id=str(told["id"]), kind="conversation", owner=record.id, document=json.dumps(told))
        items = item_rows(record.id, row.id, kept(asked.items or (), suffix))
        await in_thread(self._objects.create, row, *items)
        return json_response(told)

    @Described(gives="conversation")
    async def _retrieve(self, conversation_id: str, request: Request) -> Response:
        return _told(await self._found(conversation_id, self._who(request.scope)))

    @Described(body=_Update, gives="conversation")
    async def _update(self, conversation_id: str, request: Request) -> Response:
        record = self._who(request.scope)
        asked = parsed(_Update, await self._fields(request))
        for _ in range(MOST_TRIES):
            row = await self._found(conversation_id, record)
            told = json.loads(row.document) | {"metadata": asked.metadata or {}}
            if await in_thread(self._objects.update, replace(row, document=json.dumps(told))) is not None:
                return json_response(told)
        raise Conflict("conversations: others change it at the same time; ask again", code="conversation_changed")

    @Described(gives="conversation.deleted")
    async def _delete(self, conversation_id: str, request: Request) -> Response:
        """Its items go with it."""
        row = await self._found(conversation_id, self._who(request.scope))
        await in_thread(self._objects.delete, row.owner, row.id)
        return json_response({"id": row.id, "object": "conversation.deleted", "deleted": True})

    @Described(body=_Add, listing=True)
    async def _add(self, conversation_id: str, request: Request) -> Response:
        row = await self._found(conversation_id, self._who(request.scope))
        asked = parsed(_Add, await self._fields(request))
        items = kept(asked.items, secrets.token_hex(16))
        if items:
            await in_thread(self._objects.create, *item_rows(row.owner, row.id, items))
        return json_response(listed(items, more=False))

    @Described(query=Listing, listing=True)
    async def _list(self, conversation_id: str, request: Request) -> Response:
        row = await self._found(conversation_id, self._who(request.scope))
        asked = parsed(Listing, {name.removesuffix("[]"): value for name, value in request.query_params.items()})
        return await page(self._objects, row.owner, "item", asked.page(parent=row.id))

    async def _item(self, conversation_id: str, item_id: str, request: Request) -> Response:
        return _told(await self._found_item(conversation_id, item_id, self._who(request.scope)))

    @Described(gives="conversation")
    async def _delete_item(self, conversation_id: str, item_id: str, request: Request) -> Response:
        record = self._who(request.scope)
        item = await self._found_item(conversation_id, item_id, record)
        await in_thread(self._objects.delete, record.id, item.id)
        return _told(await self._found(conversation_id, record))

    async def _fields(self, request: Request) -> dict[str, Any]:
        body = await read_body(request.scope, request.receive, self._limits.max_body_bytes)
        return json_fields(body) if body else {}

    async def _found(self, conversation_id: str, record: KeyRecord) -> Object:
        return await found(self._objects, record.id, "conversation", conversation_id)

    async def _found_item(self, conversation_id: str, item_id: str, record: KeyRecord) -> Object:
        """Raises NotFound also where it is another conversation's."""
        item = await found(self._objects, record.id, "item", item_id)
        return item if item.parent == conversation_id else await found(self._objects, "", "item", item_id)


def _told(row: Object) -> Response:
    return Response(row.document, media_type="application/json")
