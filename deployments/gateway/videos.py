"""/v1/videos: jobs in a store and in a queue for the video replicas, their files in a store of their own.

A job is a row before its client gets the id, so a restart finds it and goes on with it. The store flushes to disk,
so it is asked in threads.
"""

import asyncio
import contextlib
import hashlib
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fastapi import FastAPI, Request, Response

from autoscaling.signals import JobSeen
from cluster.errors import Conflict, InvalidRequest, NotFound, Overloaded, Unavailable
from cluster.family import Family
from deployments.control.words import Worker
from deployments.gateway.asgi import HEADERS, Header, authorize, json_response
from deployments.gateway.description import Described
from deployments.gateway.moderation import Check, unjudged
from deployments.gateway.video_booking import VideoBookings
from deployments.gateway.video_content import MEDIA, QUERY, content
from deployments.gateway.video_inputs import VideoInputs
from deployments.gateway.video_jobs import VideoJobs
from deployments.gateway.video_metrics import VideoMetrics
from deployments.gateway.video_requests import created
from deployments.gateway.videos_wire import (
    Outlook,
    Query,
    VideoBody,
    parse_listing,
    video_deleted,
    video_list,
    video_object,
)
from deployments.stores.files import Files
from deployments.stores.key_rows import KeyRows
from deployments.stores.threads import in_thread
from deployments.video.jobs import Jobs, VideoJob, VideoRequest, queued, video_id

RETRY_AFTER_S = 30.0
IDEMPOTENCY_KEY = "idempotency-key"
_SAFE_KEY = re.compile(r"[\x21-\x7e]{1,255}")


class Videos:
    """`store` and `files` keep the jobs and what belongs to them. `now_s`: Unix seconds."""

    def __init__(
        self,
        family: Family,
        store: Jobs,
        files: Files,
        metrics: VideoMetrics,
        bookings: VideoBookings,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        assert family.video is not None
        self._store = store
        self._files = files
        self._now_s = now_s
        self.bookings = bookings
        self._jobs = VideoJobs(family.video, store, files, metrics, bookings.ended, now_s)
        self.inputs = VideoInputs(family, files, store)
        self.moderate: Check = unjudged
        metrics.begin()
        self.follow(family)

    def follow(self, family: Family) -> None:
        """Serve a changed family; jobs stay as they were asked for."""
        assert family.video is not None
        self._video = self._jobs.queue.video = family.video
        self._headers = {"moray-engine": "simulated"} if self._video.engine == "simulated" else {}
        self.inputs.follow(family)

    async def run(self) -> None:
        """Has jobs rendered, those too that were accepted before this process began. Never ends."""
        await self._jobs.run()

    def take(self, workers: tuple[Worker, ...]) -> None:
        """The video replicas that there are now. Raises nothing."""
        self._jobs.take(workers)

    def jobs(self) -> tuple[JobSeen, ...]:
        """Those that are not finished, the most urgent first."""
        return self._jobs.queue.for_scaling()

    def add_routes(self, app: FastAPI, keys: KeyRows) -> None:
        self._keys = keys
        app.add_api_route("/v1/videos", self._create, methods=["POST"])
        app.add_api_route("/v1/videos", self._list, methods=["GET"])
        app.add_api_route("/v1/videos/{job_id}", self._retrieve, methods=["GET"])
        app.add_api_route("/v1/videos/{job_id}", self._delete, methods=["DELETE"])
        app.add_api_route("/v1/videos/{job_id}/content", self._content, methods=["GET", "HEAD"])

    @Described(body=VideoBody, form=True, gives="video")
    async def _create(self, request: Request) -> Response:
        record, key = authorize(request.scope, self._keys), idempotency_key(request)
        self.admit(record.id, key)
        async with self.inputs.fields(request, data_urls=True) as fields:
            caller = self.inputs.caller(record, seed_of(record.id, key))
            wanted = created(fields, self._video, caller)
            await self.moderate(request.scope, record.id, wanted.texts)
            async with self.inputs.ready(wanted, record.id) as (asked, files):
                headers = request.scope.setdefault(HEADERS, [])
                return self.told(await self.accept(asked, record.id, key, files, headers=headers))

    def admit(self, owner: str, key: str | None) -> None:
        """Raises Overloaded where no more jobs may wait. A request that is sent again adds none."""
        queue = self._jobs.queue
        if len(queue) >= self._video.max_waiting and not queue.waits(owner, key):
            raise Overloaded(
                f"videos: {len(queue)} jobs are unfinished; at most {self._video.max_waiting} may be; try again "
                "when one has ended",
                retry_after_s=RETRY_AFTER_S,
            )

    async def accept(
        self,
        asked: VideoRequest,
        owner: str,
        key: str | None,
        inputs: Mapping[str, Path] | None = None,
        *,
        headers: list[Header] | None = None,
        reserved: str | None = None,
    ) -> VideoJob:
        """The new job, or the earlier one of this idempotency key. `inputs`: by the names that `asked.inputs` has.

        The seed of `asked` is to be that of `seed_of` where its client gave none. `headers` gain what is left of its
        limits. `reserved`: what the job's id is to be, for which limits are reserved already, and for which others may
        ask at the same time. Raises Conflict, RateLimited, Unavailable.
        """
        named = dict(inputs or {})
        sent = replace(asked, inputs_sha256=await asyncio.to_thread(_digest, named) if named else None)
        job_id = reserved or video_id(secrets.token_hex)
        job = queued(sent, job_id, owner, int(self._now_s()), idempotency_key=key)
        made = await in_thread(self._store.asked, owner, key) if key else None
        if made is None:
            told = [] if headers is None else headers
            # A client that leaves meanwhile leaves no row that nobody renders.
            made = await asyncio.shield(self._kept(job, named) if reserved else self._reserved(job, named, told))
        return _same(made, job)

    async def _reserved(self, job: VideoJob, inputs: Mapping[str, Path], headers: list[Header]) -> VideoJob:
        await self.bookings.reserve(job.owner, {job.id: job}, headers)
        made = None
        try:
            made = await self._kept(job, inputs)
        finally:
            if made is None or made.id != job.id:
                self.unmade(job.owner, job.id)
        return made

    async def _kept(self, job: VideoJob, inputs: Mapping[str, Path]) -> VideoJob:
        try:
            for name, file in inputs.items():  # before the row: a replica may begin at once
                await self._files.put(f"{job.id}/{name}", file)
        except BaseException:
            await self._leave(job)
            raise
        # Where this fails nobody knows whether there is a row, so its inputs stay: see file_sweep.
        made = await in_thread(self._store.create, job)
        if made.id != job.id:
            await self._leave(job)
        elif not made.finished:
            self._jobs.add(made)
        return made

    def unmade(self, owner: str, job_id: str) -> None:
        """What was reserved for it comes back, if there is no such job."""
        self.bookings.unmade(owner, (job_id,), lambda: self._store.get(owner, job_id) is not None)

    async def _leave(self, job: VideoJob) -> None:
        """Delete what a job without a row has, as far as can be done now: what is left is swept."""
        with contextlib.suppress(Unavailable):
            if await in_thread(self._store.get, job.owner, job.id) is None:
                await self._files.delete(job.id)

    @Described(query=Query, gives="video", listing=True)
    async def _list(self, request: Request) -> Response:
        owner = authorize(request.scope, self._keys).id
        asked = parse_listing(dict(request.query_params))
        jobs, more = await in_thread(self._store.page, owner, after=asked.after, limit=asked.limit, order=asked.order)
        children = await in_thread(self._store.children, owner, [job.id for job in jobs])
        return json_response(video_list(jobs, more, outlooks=self.outlooks(), children=children))

    @Described(gives="video")
    async def _retrieve(self, job_id: str, request: Request) -> Response:
        job = await self.job(job_id, request)
        children = await in_thread(self._store.children, job.owner, [job.id])
        return self.told(job, children.get(job.id, ()))

    @Described(gives="video.deleted")
    async def _delete(self, job_id: str, request: Request) -> Response:
        """Deleting a job that runs frees its GPU at the next step."""
        job = await self.job(job_id, request)
        if job.finished:  # first: what fails on the way can be asked again
            await self._files.delete(job.id)
        await asyncio.shield(self._deleted(job))  # a client that leaves meanwhile leaves nothing half done
        await self._files.delete(job.id)  # what is put meanwhile goes with the job's last word
        return json_response(video_deleted(job.id))

    async def _deleted(self, job: VideoJob) -> None:
        deleted = await in_thread(self._store.delete, job.owner, job.id)
        self._jobs.drop(job)
        if deleted and not job.finished:
            await self.bookings.deleted(job)

    @Described(query=QUERY, media=MEDIA, ranges=True)
    async def _content(self, job_id: str, request: Request) -> Response:
        return await content(await self.job(job_id, request), self._files, request, self._headers)

    async def job(self, job_id: str, request: Request) -> VideoJob:
        """One of the caller's own. Raises Unauthorized, NotFound."""
        owner = authorize(request.scope, self._keys).id
        job = await in_thread(self._store.get, owner, job_id)
        if job is None:
            raise NotFound(f"videos: {job_id[:64]!r} is unknown; list your videos", code="video_not_found")
        return job

    def told(self, job: VideoJob, children: Sequence[str] = ()) -> Response:
        return json_response(video_object(job, outlook=self.outlooks().get(job.id), children=children), self._headers)

    def outlooks(self) -> dict[str, Outlook]:
        """By unfinished job."""
        now_s = self._now_s()
        return {
            job_id: Outlook(
                queue_position=found.position or None,
                estimated_start_at=round(now_s + found.begins_s) if found.position else None,
                estimated_completed_at=round(now_s + found.ends_s),
            )
            for job_id, found in self._jobs.outlooks().items()
        }


def _same(made: VideoJob, asked: VideoJob) -> VideoJob:
    """What was made is what was asked. Raises Conflict."""
    # A job of an earlier version says nothing of its inputs.
    if made.asked != replace(asked.asked, inputs_sha256=made.inputs_sha256 and asked.inputs_sha256):
        raise Conflict(
            f"{IDEMPOTENCY_KEY}: it was sent with another request; the same request again is allowed; "
            "send a new key with a new request",
            code="idempotency_key_reused",
        )
    return made


def idempotency_key(request: Request) -> str | None:
    """Raises InvalidRequest."""
    key = request.headers.get(IDEMPOTENCY_KEY)
    if key is not None and not _SAFE_KEY.fullmatch(key):
        raise InvalidRequest(
            f"{IDEMPOTENCY_KEY}: given {len(key)} characters; 1 to 255 of ASCII, no spaces, are allowed; send a UUID",
            param=IDEMPOTENCY_KEY,
        )
    return key


def seed_of(owner: str, key: str | None) -> int:
    """Of a request that names none: drawn, but the same for a request that is sent again."""
    if key is None:
        return secrets.randbits(63)
    return int.from_bytes(hashlib.sha256(f"{owner} {key}".encode()).digest()[:8]) >> 1


def _digest(inputs: Mapping[str, Path]) -> str:
    """Of names and what is in the files."""
    digest = hashlib.sha256()
    for name, file in sorted(inputs.items()):
        with file.open("rb") as read:
            digest.update(f"{name} {hashlib.file_digest(read, 'sha256').hexdigest()} ".encode())
    return digest.hexdigest()
