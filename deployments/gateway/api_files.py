"""/v1/files: what clients send and fetch, as bytes in the store of files and a row beside them, seen by one key alone.

Bytes are put before their row and deleted before it, so that no row names what is not there.
"""

import asyncio
import json
import logging
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from pydantic import Field
from starlette.datastructures import UploadFile
from starlette.responses import StreamingResponse

from cluster.errors import BodyTooLarge, InvalidRequest, NotFound, Unavailable
from cluster.family import Gateway
from deployments.gateway.asgi import json_response
from deployments.gateway.body import Strict, parsed
from deployments.gateway.description import UPLOAD, Described
from deployments.gateway.file_sweep import Rows, Swept
from deployments.gateway.objects_wire import (
    MONTH_S,
    ExpiresAfter,
    Listing,
    Who,
    found,
    page,
)
from deployments.gateway.video_form import fields, no_room
from deployments.stores.files import Files
from deployments.stores.objects import Kind, Object, Objects
from deployments.stores.threads import in_thread

log = logging.getLogger("ray.serve")
SWEEP_S = 60.0
EXPIRING: tuple[Kind, ...] = ("response", "batch")
PURPOSES = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
MOST_FORM_BYTES = 65_536  # of all fields but the file
MOST_NAME = 255


class _Create(Strict):
    file: Annotated[Any, UPLOAD]
    purpose: PURPOSES
    expires_after: ExpiresAfter | None = None


class _Listing(Listing):
    limit: Annotated[int, Field(ge=1, le=10_000, strict=False)] = 10_000
    purpose: Annotated[str, Field(pattern=r"^[a-z_-]{1,64}$")] | None = None


class Named(NamedTuple):
    """What a file is called and for. `file_id`: None draws one; one that is there already is written again."""

    name: str
    purpose: str
    expires_s: int | None
    file_id: str | None = None


class ApiFiles:
    """`now_s`: Unix seconds."""

    def __init__(self, limits: Gateway, objects: Objects, files: Files, now_s: Callable[[], float] = time.time) -> None:
        self._limits, self._objects, self._files, self._now_s = limits, objects, files, now_s

    @property
    def stored(self) -> Swept:
        rows: Rows = {"file": self._objects.present}
        return Swept(name="files", files=self._files, database=self._limits.database, rows=rows)

    def add_routes(self, app: FastAPI, who: Who) -> None:
        self._who = who
        app.add_api_route("/v1/files", self._create, methods=["POST"])
        app.add_api_route("/v1/files", self._list, methods=["GET"])
        app.add_api_route("/v1/files/{file_id}", self._retrieve, methods=["GET"])
        app.add_api_route("/v1/files/{file_id}", self._delete, methods=["DELETE"])
        app.add_api_route("/v1/files/{file_id}/content", self._content, methods=["GET"])

    async def put(self, owner: str, file: Path, named: Named) -> Object:
        """Raises Unavailable."""
        created_s, size = int(self._now_s()), (await asyncio.to_thread(file.stat)).st_size
        expires_at_s = None if named.expires_s is None else created_s + named.expires_s
        file_id = named.file_id or f"file-{secrets.token_hex(12)}"
        told = {
            "id": file_id,
            "object": "file",
            "bytes": size,
            "created_at": created_s,
            "expires_at": expires_at_s,
            "filename": named.name,
            "purpose": named.purpose,
            "status": "processed",
            "status_details": None,
        }
        row = Object(
            id=file_id,
            kind="file",
            owner=owner,
            label=named.purpose,
            document=json.dumps(told),
            expires_at_s=expires_at_s,
        )
        return await asyncio.shield(self._put(row, file))  # a client that leaves leaves no bytes without a row

    async def _put(self, row: Object, file: Path) -> Object:
        try:
            await self._files.put(row.id, file)
            await in_thread(self._objects.create, row)
        except BaseException:
            await self._files.delete(row.id)
            raise
        return row

    async def file(self, owner: str, file_id: str) -> Object:
        """Raises NotFound, Unavailable."""
        return await found(self._objects, owner, "file", file_id)

    async def copy(self, row: Object, file: Path) -> None:
        """Raises NotFound, Unavailable."""
        await self._files.get(row.id, file)

    def stream(self, row: Object) -> AsyncIterator[bytes]:
        """Its bytes. Raises NotFound, Unavailable."""
        return self._files.stream(row.id, 0, _size(row))

    async def read(self, owner: str, file_id: str, most_bytes: int) -> bytes:
        """All of a file that is small. Raises NotFound, InvalidRequest, Unavailable."""
        row = await self.file(owner, file_id)
        if _size(row) > most_bytes:
            raise InvalidRequest(
                f"file_id: {file_id} has {_size(row)} bytes; at most {most_bytes} are allowed here; send a smaller file"
            )
        data = await self._files.read(row.id)
        if data is None:
            raise NotFound(f"file: {file_id} is deleted; send it again", code="file_not_found")
        return data

    async def delete(self, row: Object) -> None:
        """Raises Unavailable."""
        await self._files.delete(row.id)
        await in_thread(self._objects.delete, row.owner, row.id)

    async def expire(self) -> None:
        """Delete what has expired. Raises Unavailable."""
        for row in await in_thread(self._objects.expired, "file", self._now_s()):
            await self.delete(row)

    @Described(body=_Create, form=True, gives="file")
    async def _create(self, request: Request) -> Response:
        owner, most = self._who(request.scope).id, self._limits.max_file_bytes
        async with fields(request, max_body_bytes=MOST_FORM_BYTES, max_input_bytes=most) as given:
            asked = parsed(_Create, given)
            if not isinstance(asked.file, UploadFile):
                raise InvalidRequest(
                    "file: not a file; one in a form of multipart/form-data is allowed; send it so", param="file"
                )
            if (asked.file.size or 0) > most:
                raise BodyTooLarge(f"file: {asked.file.size} bytes; at most {most} are accepted; send a smaller file")
            expires = asked.expires_after.seconds if asked.expires_after else None
            if expires is None and asked.purpose == "batch":
                expires = MONTH_S  # as in the API
            with tempfile.NamedTemporaryFile(prefix="moray-file-") as made:
                try:
                    await asyncio.to_thread(shutil.copyfileobj, asked.file.file, made)
                    await asyncio.to_thread(made.flush)
                except OSError as error:
                    raise no_room(error) from error
                name = (asked.file.filename or "file").rpartition("/")[2][:MOST_NAME]
                row = await self.put(owner, Path(made.name), Named(name, asked.purpose, expires))
        return _told(row)

    @Described(query=_Listing, gives="file", listing=True)
    async def _list(self, request: Request) -> Response:
        owner = self._who(request.scope).id
        asked = parsed(_Listing, request.query_params)
        return await page(self._objects, owner, "file", asked.page(label=asked.purpose))

    @Described(gives="file")
    async def _retrieve(self, file_id: str, request: Request) -> Response:
        return _told(await self.file(self._who(request.scope).id, file_id))

    @Described(gives="file")
    async def _delete(self, file_id: str, request: Request) -> Response:
        row = await self.file(self._who(request.scope).id, file_id)
        await self.delete(row)
        return json_response({"id": row.id, "object": "file", "deleted": True})

    @Described(media=("application/octet-stream",))
    async def _content(self, file_id: str, request: Request) -> Response:
        row = await self.file(self._who(request.scope).id, file_id)
        name = json.loads(row.document)["filename"]
        headers = {
            "content-length": str(_size(row)),
            "content-disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
        }
        chunks = self.stream(row)
        first = await anext(chunks, b"")  # so that a file which cannot be read is an error, not half an answer
        return StreamingResponse(_with(first, chunks), media_type="application/octet-stream", headers=headers)


async def swept(objects: Objects, files: ApiFiles) -> None:
    """Deletes what has expired. Never ends, whatever fails."""
    while True:
        try:
            await files.expire()
            for kind in EXPIRING:
                for row in await in_thread(objects.expired, kind, time.time()):
                    await in_thread(objects.delete, row.owner, row.id)
        except Exception as failure:  # the next sweep finds it again
            log.error("objects: not swept: %s", failure, exc_info=not isinstance(failure, Unavailable))
        await asyncio.sleep(SWEEP_S)


async def _with(first: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in chunks:
        yield chunk


def _size(row: Object) -> int:
    return int(json.loads(row.document)["bytes"])


def _told(row: Object) -> Response:
    return Response(row.document, media_type="application/json")
