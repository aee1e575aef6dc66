"""The files of a finished video: its variants, whole or a range of bytes, streamed from the file store."""

from collections.abc import AsyncIterator
from typing import NamedTuple

from fastapi import Request, Response
from starlette.responses import StreamingResponse

from cluster.errors import InvalidRequest, NotFound
from deployments.gateway.ranges import RangeNotSatisfiable, asked_bytes
from deployments.gateway.wire import error_body
from deployments.stores.files import MASTER, SPRITESHEET, THUMBNAIL, VIDEO, Files
from deployments.video.jobs import VideoJob


class _Variant(NamedTuple):
    file: str
    media_type: str


class Part(NamedTuple):
    """A file to be sent: `name` is that of the download, `version` another where the file is another."""

    key: str
    media_type: str
    name: str
    version: str


VARIANTS = {
    "video": _Variant(VIDEO, "video/mp4"),
    "thumbnail": _Variant(THUMBNAIL, "image/webp"),
    "spritesheet": _Variant(SPRITESHEET, "image/jpeg"),
    "master": _Variant(MASTER, "video/matroska"),
}
MEDIA = tuple(each.media_type for each in VARIANTS.values())
QUERY = {"variant": {"enum": list(VARIANTS)}}


async def content(job: VideoJob, files: Files, request: Request, headers: dict[str, str]) -> Response:
    """200, 206 or 416. Raises InvalidRequest, NotFound, Unavailable; a fault later breaks the connection off."""
    name = request.query_params.get("variant", "video")
    if name not in VARIANTS:
        raise InvalidRequest(
            f"variant: given {name[:64]!r}; {', '.join(VARIANTS)} are allowed; choose one", param="variant"
        )
    if job.status != "completed":
        raise InvalidRequest(
            f"videos: {job.id} is {job.status}; a completed one has content; poll it until then", code="video_not_ready"
        )
    variant = VARIANTS[name]
    key = f"{job.id}/{variant.file}"
    if await files.size(key) is None:
        raise NotFound(
            f"videos: {job.id} has no {name}; other variants may be there; ask for one", code="file_not_found"
        )
    version = f"{job.id}-{name}-{job.completed_at_s}"
    part = Part(key=key, media_type=variant.media_type, name=job.id, version=version)
    return await sent(part, files, request, headers)


async def sent(found: Part, files: Files, request: Request, headers: dict[str, str]) -> Response:
    """The file, or what of it is asked; raises as `content` does."""
    size = await files.size(found.key)
    if size is None:
        raise NotFound(f"{found.name}: its file is gone; make it again", code="file_not_found")
    etag = f'"{found.version}-{size}"'
    told = headers | {
        "accept-ranges": "bytes",
        "content-disposition": f'attachment; filename="{found.name}.{found.key.rpartition(".")[2]}"',
        "etag": etag,
    }
    try:
        part = asked_bytes(request.headers.get("range"), request.headers.get("if-range"), etag, size)
    except RangeNotSatisfiable as error:
        whole = headers | {"content-range": f"bytes */{size}"}
        return Response(error_body(error), error.status, media_type="application/json", headers=whole)
    start, end = part or (0, size)
    told["content-length"] = str(end - start)
    if part:
        told["content-range"] = f"bytes {start}-{end - 1}/{size}"
    status = 206 if part else 200
    if request.method == "HEAD":
        return Response(status_code=status, media_type=found.media_type, headers=told)
    chunks = files.stream(found.key, start, end)
    first = await anext(chunks, b"")  # so that a file which cannot be read is an error, not half an answer
    return StreamingResponse(_with(first, chunks), status, media_type=found.media_type, headers=told)


async def _with(first: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in chunks:
        yield chunk
