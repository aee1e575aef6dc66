"""A response as a row, and what a conversation gains by it."""

import json

from deployments.gateway.objects_wire import MONTH_S
from deployments.gateway.response_wire import KEPT, Kept
from deployments.stores.objects import Object


def row_of(owner: str, state: Kept) -> Object:
    response = state.response
    return Object(
        id=response["id"],
        kind="response",
        owner=owner,
        document=state.dumped(),
        open=not state.ended,
        expires_at_s=response["created_at"] + MONTH_S,
    )


def kept_of(row: Object) -> Kept:
    return KEPT.validate_json(row.document)


def gained(owner: str, done: Kept) -> list[Object]:
    """The items that were sent and those that were answered; none where it failed."""
    conversation = done.response["conversation"]
    if conversation is None or done.response["status"] not in ("completed", "incomplete"):
        return []
    return item_rows(owner, conversation["id"], [*done.input, *done.response["output"]])


def item_rows(owner: str, conversation: str, items: list[dict[str, object]]) -> list[Object]:
    return [
        Object(id=str(item["id"]), kind="item", owner=owner, parent=conversation, document=json.dumps(item))
        for item in items
    ]
