"""/v1/storyboards: shots rendered side by side as ordinary video jobs, and joined once all of them are there.

A storyboard is a row before its client gets the id; what it still lacks, jobs or its cut, is made up for by whichever
gateway looks next, also after a restart. A shot that fails, or a cut that does, takes nothing from the others: each
is a video of its own, stays one when the storyboard is deleted, and can be rendered again alone.
"""

import asyncio
import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.types import ASGIApp

from cluster.errors import Conflict, InvalidRequest, NotFound, Overloaded, RequestError
from cluster.family import Family
from cluster.storyboard import Model, Shot, warnings
from deployments.gateway.asgi import HEADERS, authorize, json_response
from deployments.gateway.body import parsed
from deployments.gateway.description import Described
from deployments.gateway.script import writer, written
from deployments.gateway.storyboard_cut import Cuts
from deployments.gateway.storyboard_progress import Progress
from deployments.gateway.storyboards_wire import (
    RetakeBody,
    StoryboardBody,
    cast_of,
    check_names,
    digest,
    noted,
    said,
    shot_of,
    status_of,
    storyboard_object,
    video_fields,
)
from deployments.gateway.video_requests import Caller, created
from deployments.gateway.videos import IDEMPOTENCY_KEY, RETRY_AFTER_S, Videos, idempotency_key
from deployments.gateway.videos_wire import Query, parse_listing
from deployments.stores.key_rows import KeyRows
from deployments.stores.keys import KeyRecord
from deployments.stores.storyboards import Retake, Storyboard, StoryboardStore, Take
from deployments.stores.threads import in_thread
from deployments.video.jobs import Jobs, VideoRequest, video_id

SHARED = ("model", "size", "style", "negative_prompt", "num_inference_steps")  # what all shots have
MOST_TRIES = 5  # to write over what was read


class Storyboards:
    """`chat`: the endpoint that scripts are sent to. `now_s`: Unix seconds."""

    def __init__(
        self,
        videos: Videos,
        boards: StoryboardStore,
        jobs: Jobs,
        cuts: Cuts,
        chat: ASGIApp,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._videos, self._boards, self._jobs, self._cuts, self._chat = videos, boards, jobs, cuts, chat
        self._progress, self._now_s = Progress(videos, boards, jobs, cuts, now_s), now_s

    def follow(self, family: Family) -> None:
        """Serve a changed family; shots stay as they were asked for."""
        assert family.video is not None
        self._family, self._video = family, family.video
        self._progress.follow(family)
        takes = family.video.takes
        references = takes is not None and "image_references" in takes.inputs
        self._model = Model(seconds=family.video.seconds, references=references)

    def add_routes(self, app: FastAPI, keys: KeyRows) -> None:
        self._keys = keys
        app.add_api_route("/v1/storyboards", self._create, methods=["POST"])
        app.add_api_route("/v1/storyboards", self._list, methods=["GET"])
        app.add_api_route("/v1/storyboards/{board_id}", self._retrieve, methods=["GET"])
        app.add_api_route("/v1/storyboards/{board_id}", self._delete, methods=["DELETE"])
        app.add_api_route("/v1/storyboards/{board_id}/content", self._content, methods=["GET", "HEAD"])
        app.add_api_route("/v1/storyboards/{board_id}/shots/{index}", self._retake, methods=["POST"])

    async def run(self) -> None:
        """Sees to what is unsettled. Never ends."""
        await self._progress.run()

    @Described(body=StoryboardBody, gives="storyboard")
    async def _create(self, request: Request) -> Response:
        record, key = authorize(request.scope, self._keys), idempotency_key(request)
        async with self._videos.inputs.fields(request) as fields:
            body = parsed(StoryboardBody, fields)
        await self._videos.moderate(request.scope, record.id, said(body))
        asked = digest(body.model_dump(mode="json"))
        made = await in_thread(self._boards.asked, record.id, key)
        if made is None:
            board, shots = await self._drawn(body, asked, record, key, request)
            made = await self._written(board, shots, request, self._boards.create)
            assert made is not None
        _same(made.request, asked)
        return await self._told(await self._progress.begun(made))

    async def _written(
        self,
        board: Storyboard,
        jobs: Mapping[str, VideoRequest],
        request: Request,
        write: Callable[[Storyboard], Storyboard | None],
    ) -> Storyboard | None:
        """What `write` says of it. `jobs`: of its new takes, by id.

        They are reserved first: nothing is kept of what a limit refuses, and a client that leaves meanwhile leaves
        nothing held. Raises RateLimited, Unavailable.
        """

        def kept() -> bool:
            found = self._boards.get(board.owner, board.id)
            return found is not None and jobs.keys() <= {take.job_id for take in found.takes}

        async def whole() -> Storyboard | None:
            await self._videos.bookings.reserve(board.owner, jobs, request.scope.setdefault(HEADERS, []))
            now = None
            try:
                now = await in_thread(write, board)
            finally:
                if now is None or now.id != board.id:
                    self._videos.bookings.unmade(board.owner, tuple(jobs), kept)
            return now

        return await asyncio.shield(whole())

    async def _drawn(
        self, body: StoryboardBody, asked: str, record: KeyRecord, key: str | None, request: Request
    ) -> tuple[Storyboard, Mapping[str, VideoRequest]]:
        """With the jobs of its shots, by id. Every fault of the caller's is told here.

        Raises InvalidRequest, NotFound, Overloaded.
        """
        cast = cast_of(body)
        for one in cast:
            if one.reference and await in_thread(self._jobs.character, record.id, one.reference) is None:
                raise NotFound(
                    "characters: a reference is unknown; ids of your characters are allowed; list them",
                    param="characters",
                    code="character_not_found",
                )
        if (body.shots is None) == (body.script is None):
            raise InvalidRequest("shots: one of shots and script is allowed; give one of the two", param="shots")
        given = body.shots
        if given is None:
            by = writer(self._family, record, body.script_model, self._chat)
            assert body.script is not None
            given = (await written(body.script, by, cast, self._model, request.scope)).shots
        shots = tuple(shot_of(one, cast, index) for index, one in enumerate(given))
        self._admit(len(shots))
        shared = body.model_dump(include=set(SHARED))
        drawn = secrets.randbits(61) if body.seed is None else body.seed
        caller = self._videos.inputs.caller(record, drawn)
        takes, jobs = [], dict[str, VideoRequest]()
        for index, shot in enumerate(shots):
            sound = given[index].audio_reference
            others = shared | {"seed": drawn + index, "audio_reference": sound and sound.model_dump()}
            fields = video_fields(shot, cast, self._model, others)
            job_id = video_id(secrets.token_hex)
            jobs[job_id] = sized = self._check(fields, caller, f"shots[{index}]")
            takes.append(Take(shot=shot, asked=json.dumps(fields), job_id=job_id))
        board = Storyboard(
            id=f"storyboard_{secrets.token_hex(12)}",
            owner=record.id,
            created_at_s=int(self._now_s()),
            request=asked,
            title=body.title,
            cast=cast,
            takes=tuple(takes),
            warnings=warnings(shots, cast, self._model, rendered=sized.size, delivered=sized.delivered_size),
            priority=caller.priority,
            idempotency_key=key,
        )
        return board, jobs

    def _admit(self, shots: int) -> None:
        waiting, most = len(self._videos.jobs()), self._video.max_waiting
        if shots > most:
            raise InvalidRequest(f"shots: {shots} given; up to {most} are allowed; make two storyboards", param="shots")
        if waiting + shots > most:
            raise Overloaded(
                f"storyboards: {shots} shots beside {waiting} unfinished videos; at most {most} may be; try again when "
                "some have ended",
                retry_after_s=RETRY_AFTER_S,
            )

    def _check(self, fields: Mapping[str, Any], caller: Caller, where: str) -> VideoRequest:
        """Its job. Raises RequestError that names the shot."""
        try:
            return created(fields, self._video, caller).request
        except RequestError as error:
            error.message, error.param = f"{where}: {error.message}", error.param and f"{where}.{error.param}"
            raise

    @Described(body=RetakeBody, gives="storyboard")
    async def _retake(self, board_id: str, index: int, request: Request) -> Response:
        """One shot again: another seed, or other words. Its earlier videos stay."""
        record, key = authorize(request.scope, self._keys), idempotency_key(request)
        async with self._videos.inputs.fields(request) as fields:
            body = parsed(RetakeBody, fields)
        await self._videos.moderate(request.scope, record.id, (body.prompt, body.camera, body.dialogue))
        asked = digest({"index": index, **body.model_dump(mode="json")})
        for _ in range(MOST_TRIES):
            board = await self._board(board_id, record)
            if key is not None and (before := {each.key: each.request for each in board.retakes}.get(key)):
                _same(before, asked)
                return await self._told(await self._progress.begun(board))
            self._videos.admit(record.id, None)
            seen = noted(board, await self._progress.jobs_of(board))
            new, jobs = self._retaken(seen, index, body, record)
            if key is not None:
                new = replace(new, retakes=(*board.retakes, Retake(key=key, request=asked)))
            now = await self._written(new, jobs, request, self._boards.update)
            if now is not None:
                self._progress.dropped(board.owner, (board.takes[index],))
                self._progress.count(board, seen)
                await self._cuts.forget(board)
                return await self._told(await self._progress.begun(now))
        raise Conflict("storyboards: others change it at the same time; ask again", code="storyboard_changed")

    def _retaken(
        self, board: Storyboard, index: int, body: RetakeBody, record: KeyRecord
    ) -> tuple[Storyboard, Mapping[str, VideoRequest]]:
        """With the job of its new take, by id."""
        if not 0 <= index < len(board.takes):
            raise NotFound(
                f"shots: given {index}; 0 to {len(board.takes) - 1} are allowed; mend it", code="shot_not_found"
            )
        take = board.takes[index]
        given = body.model_dump(exclude={"seed", "audio_reference"}, exclude_none=True)
        given |= {"characters": tuple(body.characters)} if body.characters is not None else {}
        shot = Shot(**{**asdict(take.shot), **given})
        check_names(shot, board.cast, index)
        kept = json.loads(take.asked)
        seed = secrets.randbits(61) if body.seed is None else body.seed
        others = {name: kept.get(name) for name in (*SHARED, "audio_reference")} | {"seed": seed}
        if body.audio_reference is not None:
            others["audio_reference"] = body.audio_reference.model_dump()
        fields = video_fields(shot, board.cast, self._model, others)
        job = self._check(fields, self._videos.inputs.caller(record, seed), f"shots[{index}]")
        earlier = take.earlier if take.video_id is None else (*take.earlier, take.video_id)
        job_id = video_id(secrets.token_hex)
        new = Take(shot=shot, asked=json.dumps(fields), job_id=job_id, earlier=earlier)
        takes = (*board.takes[:index], new, *board.takes[index + 1 :])
        doubts = warnings(
            [each.shot for each in takes], board.cast, self._model, rendered=job.size, delivered=job.delivered_size
        )
        anew = replace(board, takes=takes, warnings=doubts, state="in_progress", expires_at_s=None)
        return replace(anew, cut_error=None, joined=(), joining_until_s=0.0), {job_id: job}

    @Described(query=Query, gives="storyboard", listing=True)
    async def _list(self, request: Request) -> Response:
        owner = authorize(request.scope, self._keys).id
        asked = parse_listing(dict(request.query_params))
        page = await in_thread(self._boards.page, owner, after=asked.after, limit=asked.limit, order=asked.order)
        boards, more = page
        told = [storyboard_object(board, await self._progress.jobs_of(board), {}) for board in boards]
        ends = {"first_id": boards[0].id if boards else None, "last_id": boards[-1].id if boards else None}
        return json_response({"object": "list", "data": told, **ends, "has_more": more})

    @Described(gives="storyboard")
    async def _retrieve(self, board_id: str, request: Request) -> Response:
        return await self._told(await self._board(board_id, authorize(request.scope, self._keys)))

    @Described(gives="storyboard.deleted")
    async def _delete(self, board_id: str, request: Request) -> Response:
        """The storyboard and its cut; the shots' videos stay."""
        board = await self._board(board_id, authorize(request.scope, self._keys))
        await self._cuts.delete(board)  # first: what fails on the way can be asked again
        await in_thread(self._boards.delete, board.owner, board.id)
        self._progress.dropped(board.owner, board.takes)
        return json_response({"id": board.id, "object": "storyboard.deleted", "deleted": True})

    @Described(media=("video/mp4",), ranges=True)
    async def _content(self, board_id: str, request: Request) -> Response:
        board = await self._board(board_id, authorize(request.scope, self._keys))
        status = status_of(board, await self._progress.jobs_of(board))
        if status != "completed":
            raise InvalidRequest(
                f"storyboards: {board.id} is {status}; a completed one has a cut; poll it, render again the shots that "
                "failed, or fetch each shot's own video",
                code="storyboard_not_ready",
            )
        return await self._cuts.content(board, request)

    async def _board(self, board_id: str, record: KeyRecord) -> Storyboard:
        board = await in_thread(self._boards.get, record.id, board_id)
        if board is None:
            raise NotFound(
                f"storyboards: {board_id[:64]!r} is unknown; list your storyboards", code="storyboard_not_found"
            )
        return board

    async def _told(self, board: Storyboard) -> Response:
        return json_response(storyboard_object(board, await self._progress.jobs_of(board), self._videos.outlooks()))


def _same(before: str, asked: str) -> None:
    """Both digests of what came with one idempotency key. Raises Conflict."""
    if before != asked:
        raise Conflict(
            f"{IDEMPOTENCY_KEY}: it was sent with another request; the same request again is allowed; "
            "send a new key with a new request",
            code="idempotency_key_reused",
        )
