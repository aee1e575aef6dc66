"""/v1/batches: files of requests that may take a day, as rows; batch_runs sees to them."""

import json
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from fastapi import FastAPI, Request, Response

from cluster.errors import Conflict, InvalidRequest, Overloaded
from cluster.family import Gateway
from deployments.gateway.api_files import ApiFiles
from deployments.gateway.asgi import json_response, read_body
from deployments.gateway.batch_lines import ENDPOINTS
from deployments.gateway.batch_runs import BatchRuns
from deployments.gateway.body import Strict, parsed
from deployments.gateway.description import Described
from deployments.gateway.objects_wire import (
    DAY_S,
    MONTH_S,
    ExpiresAfter,
    Listing,
    Metadata,
    Who,
    found,
    listed,
)
from deployments.gateway.video_form import json_fields
from deployments.stores.objects import Object, Objects
from deployments.stores.threads import in_thread

MOST_OPEN = 100  # batches of a key that have not ended
RETRY_AFTER_S = 60.0
MOST_TRIES = 5
MOMENTS = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


class _Create(Strict):
    completion_window: Literal["24h"]
    endpoint: ENDPOINTS
    input_file_id: str
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None


class Batches:
    """`now_s`: Unix seconds."""

    def __init__(
        self,
        limits: Gateway,
        files: ApiFiles,
        objects: Objects,
        runs: BatchRuns,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._limits, self._files, self._objects, self._runs, self._now_s = limits, files, objects, runs, now_s

    def add_routes(self, app: FastAPI, who: Who) -> None:
        self._who = who
        app.add_api_route("/v1/batches", self._create, methods=["POST"])
        app.add_api_route("/v1/batches", self._list, methods=["GET"])
        app.add_api_route("/v1/batches/{batch_id}", self._retrieve, methods=["GET"])
        app.add_api_route("/v1/batches/{batch_id}/cancel", self._cancel, methods=["POST"])

    @Described(body=_Create, gives="batch")
    async def _create(self, request: Request) -> Response:
        owner = self._who(request.scope).id
        body = await read_body(request.scope, request.receive, self._limits.max_body_bytes)
        asked = parsed(_Create, json_fields(body))
        source = await self._files.file(owner, asked.input_file_id)
        if source.label != "batch":
            raise InvalidRequest(
                f"input_file_id: {source.id} has purpose {source.label}; one of purpose batch is allowed; send it so",
                param="input_file_id",
            )
        waiting = await in_thread(self._objects.unfinished, owner, "batch")
        if waiting >= MOST_OPEN:
            told = f"batches: {waiting} of this key have not ended; at most {MOST_OPEN} may; wait for one"
            raise Overloaded(told, retry_after_s=RETRY_AFTER_S)
        batch_id, created_s = f"batch_{secrets.token_hex(12)}", int(self._now_s())
        batch = {
            "id": batch_id,
            "object": "batch",
            "endpoint": asked.endpoint,
            "model": None,
            "errors": None,
            "input_file_id": asked.input_file_id,
            "completion_window": asked.completion_window,
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": created_s,
            "expires_at": created_s + DAY_S,
            **{f"{moment}_at": None for moment in MOMENTS},
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "usage": None,
            "metadata": asked.metadata,
        }
        expires = asked.output_expires_after
        document = {"batch": batch, "output_expires_s": expires.seconds if expires else None}
        row = Object(
            id=batch_id,
            kind="batch",
            owner=owner,
            document=json.dumps(document),
            open=True,
            expires_at_s=created_s + MONTH_S,
        )
        await in_thread(self._objects.create, row)
        self._runs.wake()
        return json_response(batch)

    @Described(query=Listing, gives="batch", listing=True)
    async def _list(self, request: Request) -> Response:
        owner = self._who(request.scope).id
        asked = parsed(Listing, request.query_params)
        rows, more = await in_thread(self._objects.page, owner, "batch", asked.page())
        return json_response(listed([await self._told(row) for row in rows], more))

    @Described(gives="batch")
    async def _retrieve(self, batch_id: str, request: Request) -> Response:
        row = await found(self._objects, self._who(request.scope).id, "batch", batch_id)
        return json_response(await self._told(row))

    @Described(gives="batch")
    async def _cancel(self, batch_id: str, request: Request) -> Response:
        """Lines that run are cancelled; what is answered stays."""
        owner = self._who(request.scope).id
        for _ in range(MOST_TRIES):
            row = await found(self._objects, owner, "batch", batch_id)
            document = json.loads(row.document)
            status = document["batch"]["status"]
            if status in ("cancelling", "cancelled"):
                return json_response(await self._told(row))
            if status not in ("validating", "in_progress"):
                raise Conflict(
                    f"batches: {batch_id} is {status}; one that is validating or in_progress is allowed; leave it",
                    code="batch_not_cancellable",
                )
            document["batch"] |= {"status": "cancelling", "cancelling_at": int(self._now_s())}
            now = await in_thread(self._objects.update, replace(row, document=json.dumps(document)))
            if now is not None:
                self._runs.wake()
                return json_response(await self._told(now))
        raise Conflict("batches: it is written at the same time; ask again", code="batch_changed")

    async def _told(self, row: Object) -> dict[str, object]:
        """With what is answered so far."""
        batch: dict[str, object] = json.loads(row.document)["batch"]
        if row.open and batch["status"] != "validating":
            counts = await in_thread(self._objects.counts, row.id)
            batch["request_counts"] = {**_dict(batch["request_counts"]), **counts}
        return batch


def _dict(value: object) -> dict[str, int]:
    assert isinstance(value, dict)
    return value
