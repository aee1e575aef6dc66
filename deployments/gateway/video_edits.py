"""Videos made from videos: remixes, edits, extensions; and characters, who appear in several.

Each is a job of its own, its clip's child: the clip stays as it is, so that every version can be fetched.
"""

import contextlib
import secrets
import time
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response

from cluster.errors import Conflict, InvalidRequest, NotFound, Unavailable
from deployments.gateway.asgi import HEADERS, authorize, json_response
from deployments.gateway.description import Described
from deployments.gateway.video_inputs import VideoInputs
from deployments.gateway.video_requests import Asked, Caller, edited, extended, remixed
from deployments.gateway.videos import Videos, idempotency_key, seed_of
from deployments.gateway.videos_wire import (
    CharacterBody,
    EditBody,
    ExtendBody,
    Pointer,
    RemixBody,
    body_of,
    character_object,
)
from deployments.stores.files import KEPT, Files
from deployments.stores.key_rows import KeyRows
from deployments.stores.keys import KeyRecord
from deployments.stores.threads import in_thread
from deployments.video.jobs import Character, Jobs, VideoJob


class VideoEdits:
    """`videos` accepts the jobs. `now_s`: Unix seconds."""

    def __init__(self, videos: Videos, store: Jobs, files: Files, now_s: Callable[[], float] = time.time) -> None:
        self._videos = videos
        self._inputs: VideoInputs = videos.inputs
        self._store = store
        self._files = files
        self._now_s = now_s

    def add_routes(self, app: FastAPI, keys: KeyRows) -> None:
        self._keys = keys
        app.add_api_route("/v1/videos/{job_id}/remix", self._remix, methods=["POST"])
        app.add_api_route("/v1/videos/edits", self._edit, methods=["POST"])
        app.add_api_route("/v1/videos/extensions", self._extend, methods=["POST"])
        app.add_api_route("/v1/videos/characters", self._create_character, methods=["POST"])
        app.add_api_route("/v1/videos/characters", self._characters, methods=["GET"])
        app.add_api_route("/v1/videos/characters/{character_id}", self._character, methods=["GET"])
        app.add_api_route("/v1/videos/characters/{character_id}", self._delete_character, methods=["DELETE"])

    @Described(body=RemixBody, form=True, gives="video")
    async def _remix(self, job_id: str, request: Request) -> Response:
        record, key, caller = self._admitted(request)
        async with self._inputs.fields(request, data_urls=True) as fields:
            parent = await self._parent(record, job_id)
            return await self._accepted(remixed(fields, self._inputs.video, caller, parent), request, record, key)

    @Described(body=EditBody, form=True, gives="video")
    async def _edit(self, request: Request) -> Response:
        record, key, caller = self._admitted(request)
        async with self._inputs.fields(request, data_urls=True) as fields:
            body = body_of(EditBody, fields)
            parent = await self._named(record, body.video)
            return await self._accepted(edited(body, self._inputs.video, caller, parent), request, record, key)

    @Described(body=ExtendBody, form=True, gives="video")
    async def _extend(self, request: Request) -> Response:
        record, key, caller = self._admitted(request)
        async with self._inputs.fields(request, data_urls=True) as fields:
            body = body_of(ExtendBody, fields)
            parent = await self._named(record, body.video)
            asked = extended(body, self._inputs.video, caller, parent)
            return await self._accepted(asked, request, record, key, more_seconds=body.seconds)

    def _admitted(self, request: Request) -> tuple[KeyRecord, str | None, Caller]:
        """Before anything of the body is read. Raises Unauthorized, NotInPlan, InvalidRequest, Overloaded."""
        record, key = authorize(request.scope, self._keys), idempotency_key(request)
        self._videos.admit(record.id, key)
        return record, key, self._inputs.caller(record, seed_of(record.id, key))

    async def _accepted(
        self, asked: Asked, request: Request, record: KeyRecord, key: str | None, *, more_seconds: int = 0
    ) -> Response:
        await self._videos.moderate(request.scope, record.id, asked.texts)
        headers = request.scope.setdefault(HEADERS, [])
        async with self._inputs.ready(asked, record.id, more_seconds=more_seconds) as (whole, files):
            return self._videos.told(await self._videos.accept(whole, record.id, key, files, headers=headers))

    async def _named(self, record: KeyRecord, given: Any) -> VideoJob | None:
        """The clip of an id; None where a video is sent along. Raises InvalidRequest, NotFound."""
        if given is None:
            raise InvalidRequest("video: not given; it is required; add it", param="video", code="missing_parameter")
        match given:
            case Pointer(id=str(job_id)):
                return await self._parent(record, job_id)
        return None

    async def _parent(self, record: KeyRecord, job_id: str) -> VideoJob:
        """A completed one whose latents are still there. Raises InvalidRequest, NotFound, Unavailable."""
        job = await in_thread(self._store.get, record.id, job_id)
        if job is None:
            raise NotFound(
                f"video: {job_id[:64]!r} is unknown; list your videos", param="video", code="video_not_found"
            )
        if job.status != "completed":
            raise InvalidRequest(
                f"video: {job.id} is {job.status}; a completed one is allowed; poll it until then",
                param="video",
                code="video_not_ready",
            )
        if await self._files.size(f"{job.id}/{KEPT}") is None:
            raise InvalidRequest(
                f"video: of {job.id} nothing is kept to begin from; one that has not expired, of a model whose steps "
                "are run here, is allowed; send its file instead",
                param="video",
                code="video_not_kept",
            )
        return job

    @Described(body=CharacterBody, form=True)
    async def _create_character(self, request: Request) -> Response:
        owner, most = authorize(request.scope, self._keys).id, self._inputs.video.max_characters
        if len(await in_thread(self._store.characters, owner)) >= most:  # before anything of the body is read
            raise _too_many(most)
        async with self._inputs.fields(request, data_urls=True) as fields:
            body = body_of(CharacterBody, fields)
            if body.video is None:
                raise InvalidRequest(
                    "video: not given; it is required; add it", param="video", code="missing_parameter"
                )
            await self._videos.moderate(request.scope, owner, (body.name,))
            character_id = f"char_{secrets.token_hex(12)}"
            key = f"characters/{character_id}"
            await self._inputs.character(body.video, key)
        made = Character(id=character_id, owner=owner, name=body.name, file=key, created_at_s=int(self._now_s()))
        # Where this fails nobody knows whether there is a row, so its picture stays: see file_sweep.
        if not await in_thread(self._store.put_character, made, most):  # others came meanwhile
            with contextlib.suppress(Unavailable):
                await self._files.delete(key)
            raise _too_many(most)
        return json_response(character_object(made))

    @Described(listing=True)
    async def _characters(self, request: Request) -> Response:
        owner = authorize(request.scope, self._keys).id
        found = await in_thread(self._store.characters, owner)
        return json_response({"object": "list", "data": [character_object(each) for each in found], "has_more": False})

    async def _character(self, character_id: str, request: Request) -> Response:
        owner = authorize(request.scope, self._keys).id
        found = await in_thread(self._store.character, owner, character_id)
        if found is None:
            raise _unknown(character_id)
        return json_response(character_object(found))

    @Described(gives="character.deleted")
    async def _delete_character(self, character_id: str, request: Request) -> Response:
        owner = authorize(request.scope, self._keys).id
        found = await in_thread(self._store.character, owner, character_id)
        if found is None:
            raise _unknown(character_id)
        await self._files.delete(found.file)  # first: what fails on the way can be asked again
        await in_thread(self._store.delete_character, owner, character_id)
        return json_response({"id": character_id, "object": "character.deleted", "deleted": True})


def _too_many(most: int) -> Conflict:
    return Conflict(
        f"characters: this key has {most}; at most {most} are allowed; delete one that no new video needs",
        code="too_many_characters",
    )


def _unknown(character_id: str) -> NotFound:
    return NotFound(f"characters: {character_id[:64]!r} is unknown; list your characters", code="character_not_found")
