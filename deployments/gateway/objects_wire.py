"""What the routes of files, responses, conversations and batches share: ids, listings, metadata, and JSON."""

import json
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Literal

from fastapi import Response
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError
from starlette.types import Scope

from cluster import access
from cluster.errors import NotFound, Unauthorized
from deployments.gateway.asgi import json_response
from deployments.gateway.body import Strict
from deployments.stores.key_rows import KeyRows
from deployments.stores.keys import KeyRecord
from deployments.stores.objects import Kind, Object, Objects, Order, Page
from deployments.stores.threads import in_thread

DAY_S = 86_400
MONTH_S = 30 * DAY_S
Who = Callable[[Scope], KeyRecord]  # the key that a request carries, which may ask for its route
KeyOf = Callable[[str, str], Awaitable[KeyRecord]]  # by its id, for a path, as it stands when it is asked
_ID = r"^[A-Za-z0-9_.-]{1,80}$"


def _short(metadata: dict[str, str]) -> dict[str, str]:
    if any(len(key) > 64 or len(value) > 512 for key, value in metadata.items()):
        raise PydanticCustomError("metadata", "keys up to 64 and values up to 512 characters are allowed")
    return metadata


Metadata = Annotated[dict[str, str], Field(max_length=16), AfterValidator(_short)]


class ExpiresAfter(Strict):
    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=MONTH_S, strict=False)]  # a form has it as text


class Listing(Strict):
    """The query of a listing, whose numbers are text."""

    after: Annotated[str, Field(pattern=_ID)] | None = None
    limit: Annotated[int, Field(ge=1, le=100, strict=False)] = 20
    order: Order = "desc"
    include: Any = None  # of fields that are always there, or never

    def page(self, *, parent: str | None = None, label: str | None = None) -> Page:
        return Page(parent=parent, label=label, after=self.after, limit=self.limit, order=self.order)


def keyed(keys: KeyRows, now_s: Callable[[], float] = time.time) -> KeyOf:
    """For what nobody holds a connection for. Its answer raises Unauthorized, Forbidden, Unavailable."""

    async def key_of(key_id: str, path: str) -> KeyRecord:
        record = await in_thread(keys.get, key_id)
        if record is None or record.revoked_s is not None:
            raise Unauthorized("authorization: the API key is revoked; a valid one is allowed; ask with it")
        if (refused := access.refusal(record, path, now_s())) is not None:
            raise refused
        return record

    return key_of


async def found(objects: Objects, owner: str, kind: Kind, object_id: str) -> Object:
    """One of the caller's own. Raises NotFound, Unavailable."""
    known = None
    if re.fullmatch(_ID, object_id):
        known = await in_thread(objects.get, owner, kind, object_id)
    if known is None:
        raise NotFound(
            f"{kind}: {object_id[:64]!r} is unknown, deleted or expired; ids of your own are allowed; mend the id",
            code=f"{kind}_not_found",
        )
    return known


async def page(objects: Objects, owner: str, kind: Kind, asked: Page) -> Response:
    """Raises InvalidRequest, Unavailable."""
    rows, more = await in_thread(objects.page, owner, kind, asked)
    return json_response(listed([json.loads(row.document) for row in rows], more))


def listed(data: Sequence[dict[str, Any]], more: bool) -> dict[str, Any]:
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return {"object": "list", "data": data, **ends, "has_more": more}
