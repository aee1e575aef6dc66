"""/v1/videos: jobs in a store and in a queue for the video workers, a folder for each.

A job is a row before its client gets the id, so a restart finds it and goes on with it. One gateway owns the rows;
several would each resume all of them. The store flushes to disk, so it is asked in threads.
"""

import asyncio
import contextlib
import json
import secrets
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse

from autoscaling.signals import JobSeen
from cluster.errors import InvalidRequest, NotFound, Overloaded
from cluster.family import Family
from deployments.control.words import Worker
from deployments.gateway.asgi import authorize, read_body
from deployments.gateway.metrics import GatewayMetrics
from deployments.gateway.video_jobs import VideoJobs
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

RETRY_AFTER_S = 30.0


class Videos:
    """`store` and `folder` keep the jobs and their files."""

    def __init__(self, family: Family, store: JobStore, folder: Path, metrics: GatewayMetrics) -> None:
        self._store = store
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        assert family.video is not None
        self._jobs = VideoJobs(family.video, store, self._file, metrics)
        self.follow(family)

    def follow(self, family: Family) -> None:
        """Serve a changed family; jobs stay as they were asked for."""
        assert family.video is not None
        self._video = self._jobs.video = family.video
        self._headers = {"moray-engine": "simulated"} if self._video.engine == "simulated" else {}
        self._max_body_bytes = family.gateway.max_body_bytes

    def resume(self) -> None:
        """Jobs that the last stop interrupted go back to the queue."""
        self._jobs.resume()

    def take(self, workers: tuple[Worker, ...]) -> None:
        """The video workers that there are now. Raises nothing."""
        self._jobs.take(workers)

    def jobs(self) -> tuple[JobSeen, ...]:
        """Those that are not finished, the most urgent first."""
        return self._jobs.seen()

    def add_routes(self, app: FastAPI, keys: KeyStore) -> None:
        self._keys = keys
        app.add_api_route("/v1/videos", self._create, methods=["POST"])
        app.add_api_route("/v1/videos", self._list, methods=["GET"])
        app.add_api_route("/v1/videos/{job_id}", self._retrieve, methods=["GET"])
        app.add_api_route("/v1/videos/{job_id}", self._delete, methods=["DELETE"])
        app.add_api_route("/v1/videos/{job_id}/content", self._content, methods=["GET"])

    async def _create(self, request: Request) -> Response:
        owner = authorize(request.scope, self._keys).id
        if len(self._jobs) >= self._video.max_waiting:
            raise Overloaded(
                f"videos: {len(self._jobs)} jobs are unfinished; at most {self._video.max_waiting} may be; try again "
                "when one has ended",
                retry_after_s=RETRY_AFTER_S,
            )
        asked = await self._asked(request)
        job = queued(asked, video_id(secrets.token_hex), owner, int(time.time()))
        await asyncio.shield(self._accept(job))  # a client that leaves meanwhile leaves no row that nobody renders
        return _json(video_object(job), self._headers)

    async def _accept(self, job: VideoJob) -> None:
        await asyncio.to_thread(self._store.create, job)
        self._jobs.add(job)

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
        return _json(video_object(await self._job(job_id, request)), self._headers)

    async def _delete(self, job_id: str, request: Request) -> Response:
        """Deleting a job that runs frees its GPU at the next step."""
        job = await self._job(job_id, request)
        await asyncio.to_thread(self._store.delete, job.owner, job.id)
        self._jobs.drop(job.id)
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
        name = f"{job.id}.mp4"
        return FileResponse(self._file(job.id), media_type="video/mp4", filename=name, headers=self._headers)

    async def _job(self, job_id: str, request: Request) -> VideoJob:
        owner = authorize(request.scope, self._keys).id
        job = await asyncio.to_thread(self._store.get, owner, job_id)
        if job is None:
            raise NotFound(f"videos: {job_id[:64]!r} is unknown; list your videos", code="video_not_found")
        return job

    def _file(self, job_id: str) -> Path:
        """Absolute: workers have working directories of their own."""
        return self._folder.resolve() / job_id / "video.mp4"


def _remove(folder: Path) -> None:
    """Its name goes first: a replica that is just finishing a deleted job finds no place to put the file."""
    nameless = folder.with_name(f"{folder.name}.deleted")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(nameless)
        shutil.rmtree(nameless)


def _json(value: Any, headers: Mapping[str, str] | None = None) -> Response:
    return Response(json.dumps(value), media_type="application/json", headers=headers)
