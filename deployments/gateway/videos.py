"""/v1/videos: jobs in a store, one task per unfinished job, a folder for each.

A job is a row before its client gets the id, so a restart finds it and renders it again from its beginning. One gateway
owns the rows; several would each resume all of them. The store flushes to disk, so it is asked in threads.
"""

import asyncio
import contextlib
import contextvars
import json
import logging
import secrets
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from ray.serve.handle import DeploymentHandle
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse

from cluster.errors import InvalidRequest, MorayError, NotFound, Overloaded, ReplicaLost
from cluster.family import Family
from deployments.gateway.asgi import authorize, read_body
from deployments.gateway.metrics import GatewayMetrics
from deployments.gateway.tokens import lost
from deployments.gateway.videos_wire import (
    parse_form,
    parse_json,
    parse_listing,
    video_deleted,
    video_list,
    video_object,
)
from deployments.stores.jobs import JobStore
from deployments.stores.keys import KeyStore
from deployments.video.jobs import VideoJob, VideoRequest, queued, video_id
from deployments.video.replica import Rendered

log = logging.getLogger("ray.serve")
MAX_ATTEMPTS = 3  # a job that takes its replica down each time must not do so for ever
LONGEST_PAUSE_S = 30.0
RETRY_AFTER_S = 30.0


class Videos:
    def __init__(
        self, family: Family, handle: DeploymentHandle[Any], store: JobStore, folder: Path, metrics: GatewayMetrics
    ) -> None:
        assert family.video is not None
        self._video = family.video
        self._max_body_bytes = family.gateway.max_body_bytes
        self._handle = handle
        self._store = store
        self._folder = folder
        self._metrics = metrics
        self._tasks: dict[str, asyncio.Task[None]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def add_routes(self, app: FastAPI, keys: KeyStore) -> None:
        self._keys = keys
        app.add_api_route("/v1/videos", self._create, methods=["POST"])
        app.add_api_route("/v1/videos", self._list, methods=["GET"])
        app.add_api_route("/v1/videos/{job_id}", self._retrieve, methods=["GET"])
        app.add_api_route("/v1/videos/{job_id}", self._delete, methods=["DELETE"])
        app.add_api_route("/v1/videos/{job_id}/content", self._content, methods=["GET"])

    def resume(self) -> None:
        """Jobs that the last stop interrupted go back to the queue."""
        for job in self._store.unfinished():
            again = job.requeued()
            self._store.update(again)
            self._start(again)

    def _start(self, job: VideoJob) -> None:
        # A context of its own: Serve counts calls as children of the request in whose context they are made, and would
        # cancel a rendering with the request that asked for it.
        task = self._tasks[job.id] = asyncio.create_task(self._render(job), context=contextvars.Context())
        task.add_done_callback(lambda _: self._tasks.pop(job.id, None))

    async def _create(self, request: Request) -> Response:
        owner = authorize(request.scope, self._keys).id
        if len(self._tasks) >= self._video.max_waiting:
            raise Overloaded(
                f"videos: {len(self._tasks)} jobs are unfinished; at most {self._video.max_waiting} may be; try again "
                "when one has ended",
                retry_after_s=RETRY_AFTER_S,
            )
        asked = await self._asked(request)
        job = queued(asked, video_id(secrets.token_hex), owner, int(time.time()))
        await asyncio.shield(self._accept(job))  # a client that leaves meanwhile does not leave a row without a task
        return _json(video_object(job))

    async def _accept(self, job: VideoJob) -> None:
        await asyncio.to_thread(self._store.create, job)
        self._start(job)

    async def _asked(self, request: Request) -> VideoRequest:
        body = await read_body(request.scope, request.receive, self._max_body_bytes)
        seed = secrets.randbits(63)
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            return parse_json(body, self._video, seed)
        request._body = body
        try:
            async with request.form(max_files=4) as form:
                fields = [(k, "file" if isinstance(v, UploadFile) else v) for k, v in form.multi_items()]
        except (HTTPException, ValueError) as error:
            fault = error.detail if isinstance(error, HTTPException) else error
            raise InvalidRequest(f"body: {fault}; multipart/form-data or JSON is allowed; mend the body") from error
        return parse_form(fields, self._video, seed)

    async def _list(self, request: Request) -> Response:
        owner = authorize(request.scope, self._keys).id
        asked = parse_listing(dict(request.query_params))
        jobs, more = await asyncio.to_thread(
            self._store.page, owner, after=asked.after, limit=asked.limit, order=asked.order
        )
        return _json(video_list(jobs, more))

    async def _retrieve(self, job_id: str, request: Request) -> Response:
        return _json(video_object(await self._job(job_id, request)))

    async def _delete(self, job_id: str, request: Request) -> Response:
        """Deleting a job that runs frees its GPU at the next step."""
        job = await self._job(job_id, request)
        await asyncio.to_thread(self._store.delete, job.owner, job.id)
        task = self._tasks.get(job.id)
        if task is not None:
            task.cancel()
        await asyncio.to_thread(_remove, self._file(job.id).parent)
        return _json(video_deleted(job.id))

    async def _content(self, job_id: str, request: Request) -> Response:
        job = await self._job(job_id, request)
        variant = request.query_params.get("variant", "video")
        if variant != "video":
            raise InvalidRequest(
                f"variant: {variant!r} is not made here; video is allowed; leave it out",
                param="variant",
                code="unsupported_parameter",
            )
        if job.status != "completed":
            raise InvalidRequest(
                f"videos: {job.id} is {job.status}; a completed one has content; poll it until then",
                code="video_not_ready",
            )
        return FileResponse(self._file(job.id), media_type="video/mp4", filename=f"{job.id}.mp4")

    async def _job(self, job_id: str, request: Request) -> VideoJob:
        owner = authorize(request.scope, self._keys).id
        job = await asyncio.to_thread(self._store.get, owner, job_id)
        if job is None:
            raise NotFound(f"videos: {job_id[:64]!r} is unknown; list your videos", code="video_not_found")
        return job

    def _file(self, job_id: str) -> Path:
        return self._folder / job_id / "video.mp4"

    async def _render(self, job: VideoJob) -> None:
        """From the queue to an end. A job whose replica is lost goes back to the queue, as often as it may begin."""
        losses = 0
        while True:
            try:
                job = await (self._attempt(job) if job.attempts < MAX_ATTEMPTS else self._give_up(job))
                break
            except Exception as failure:  # whatever Serve or the store raises: an accepted job is not dropped for it
                losses += 1
                log.warning("video %s: %s", job.id, lost(failure).message)
                await asyncio.sleep(min(LONGEST_PAUSE_S, 2.0**losses))
                job = await self._requeued(job)
        self._metrics.video_finished(job.error_code or "ok")

    async def _give_up(self, job: VideoJob) -> VideoJob:
        job = job.failed(ReplicaLost(f"{job.id}: its replica was lost {job.attempts} times; try again"))
        await asyncio.to_thread(self._store.update, job)
        return job

    async def _requeued(self, job: VideoJob) -> VideoJob:
        """As the store last knew it: the attempt counts if a replica had begun."""
        with contextlib.suppress(sqlite3.Error):  # its next change is written anyway
            job = (await asyncio.to_thread(self._store.get, job.owner, job.id) or job).requeued()
            await asyncio.to_thread(self._store.update, job)
        return job

    async def _attempt(self, job: VideoJob) -> VideoJob:
        """One rendering to its end, its steps written to the store. Waits in Serve's queue until a replica is free."""
        file = self._file(job.id).resolve()
        file.parent.mkdir(exist_ok=True)
        response = self._handle.options(stream=True).render.remote(job.spec(), str(file))
        error: MorayError | None = ReplicaLost(f"{job.id}: the rendering ended without a result; try again")
        try:
            async for news in response:
                if isinstance(news, Rendered):
                    error = news.error
                    break
                job = job.stepped(news.done, news.total) if news.done else job.begun()
                if news.done:
                    self._metrics.video_step(news.seconds)
                await asyncio.to_thread(self._store.update, job)
        except BaseException:
            response.cancel()
            raise
        job = job.failed(error) if error else job.completed(int(time.time()))
        await asyncio.to_thread(self._store.update, job)
        return job


def _remove(folder: Path) -> None:
    """Its name goes first: a replica that is just finishing a deleted job finds no place to put the file."""
    nameless = folder.with_name(f"{folder.name}.deleted")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(nameless)
        shutil.rmtree(nameless)


def _json(value: Any) -> Response:
    return Response(json.dumps(value), media_type="application/json")
