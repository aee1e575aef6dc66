"""The ingress: one FastAPI application on Ray Serve, OpenAI's wire in front, the family's handles behind."""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from secrets import token_hex
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp

from cluster.errors import InvalidRequest, MethodNotAllowed, NotFound
from cluster.family import Family
from deployments import seen
from deployments.control.fleet import tier_app
from deployments.control.words import Hello, Standing
from deployments.gateway.admin import Admin
from deployments.gateway.announce import Announcer
from deployments.gateway.api_files import ApiFiles, swept
from deployments.gateway.asgi import Envelope, authorize, json_response
from deployments.gateway.batch_runs import BatchRuns
from deployments.gateway.batches import Batches
from deployments.gateway.booking import Bookings, journal_of
from deployments.gateway.chat import ChatCompletions
from deployments.gateway.completions import Completions
from deployments.gateway.console.routes import Console
from deployments.gateway.conversations import Conversations
from deployments.gateway.description import Described, Description
from deployments.gateway.desk import Desk
from deployments.gateway.embeddings import Embeddings
from deployments.gateway.file_sweep import Rows, Swept, sweeping
from deployments.gateway.metrics import GatewayMetrics
from deployments.gateway.moderation import Moderator
from deployments.gateway.objects_wire import keyed
from deployments.gateway.quota import Quotas
from deployments.gateway.rescue import Courses
from deployments.gateway.response_runs import Runs
from deployments.gateway.responses import Responses
from deployments.gateway.storyboard_cut import Cuts
from deployments.gateway.storyboards import Storyboards
from deployments.gateway.tokens import Pushed, Streamed, TokenPath
from deployments.gateway.tracing import Tracer
from deployments.gateway.video_booking import VideoBookings
from deployments.gateway.video_edits import VideoEdits
from deployments.gateway.video_inputs import taking
from deployments.gateway.videos import Videos
from deployments.gateway.wire import model_object, models_list
from deployments.link import Listener
from deployments.ranks import node_address
from deployments.stores.files import files_at, files_of
from deployments.stores.jobs import jobs_of
from deployments.stores.key_rows import unsecret
from deployments.stores.keys import keys_of
from deployments.stores.limits import limits_of
from deployments.stores.objects import Objects, objects_of
from deployments.stores.storyboards import boards_of
from deployments.stores.usage import usage_of
from monitoring.scrape import TARGETS_PATH, discovered

VERSION = version("moray")  # read from files: once


class Gateway:
    """One per ingress replica. State on disk lies in the family's state folder."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, family: Family, clock: Callable[[], float] = time.monotonic
    ) -> None:
        folder = Path(family.state_folder)
        self._id = token_hex(6)
        self._family = family
        self._version = 0  # of the family, as the control loop counts from 1
        self._started_s = int(time.time())
        self._keys = keys_of(family)
        listener = Listener()
        jobs = jobs_of(family.video, folder) if family.video else None
        boards = boards_of(family.video, folder) if family.video else None
        self._announcer = Announcer(family, self._hello, self._heard)
        self._desk = Desk(family, clock=clock, on_sleep=self._announcer.wake)
        self._metrics = GatewayMetrics(
            listener.counts, jobs.counts if jobs else None, self._desk, boards.counts if boards else None
        )
        self._address = self._metrics.serve(node_address())
        self._clock = clock
        self._told: tuple[float, Standing] | None = None  # by the control loop, and when
        path: TokenPath = Streamed()
        if family.gateway.tokens == "pushed":
            await listener.start(node_address())
            path = Pushed(listener)
        self._handles: dict[str, DeploymentHandle[Any]] = {}
        self._courses = Courses(family, self._handles, path, self._desk, self._metrics)
        objects = objects_of(family.gateway, folder)
        self._api_files = ApiFiles(family.gateway, objects, files_at(family.gateway.files, folder / "files"))
        limits = limits_of(family, folder)
        kept = journal_of(family, self._id, self._metrics), Quotas(limits, self._metrics)
        bookings, booked = Bookings(*kept), VideoBookings(*kept, self._keys, lambda: self._family)
        self._admin = Admin(lambda: self._family, self._keys, usage_of(family), limits)
        self._chat = ChatCompletions(self._courses, self._keys, self._metrics, bookings, clock, Tracer(family))
        self._chat.inputs.file_of = self._api_files.read
        self._runs = Runs(self._chat, objects, keyed(self._keys))
        self._responses = Responses(family.gateway, self._chat, objects, self._runs)
        self._conversations = Conversations(family.gateway, objects)
        self._batch_runs = BatchRuns(self._courses, self._responses, self._api_files, objects, keyed(self._keys))
        self._batches = Batches(family.gateway, self._api_files, objects, self._batch_runs)
        stores = [self._api_files.stored]
        self._videos: Videos | None = None
        if family.video is not None and jobs is not None and boards is not None:
            files = files_of(family.video, folder)
            self._videos = Videos(family, jobs, files, self._metrics.video, booked)
            self._videos.inputs.sent = self._api_files.read
            self._edits = VideoEdits(self._videos, jobs, files)
            cuts = Cuts(files, folder, self._metrics.video)
            self._storyboards = Storyboards(self._videos, boards, jobs, cuts, self._chat)
            rows: Rows = {"video": jobs.present, "character": jobs.present, "storyboard": boards.present}
            stores.append(Swept(name="videos", files=files, database=family.video.database, rows=rows))
        self._console = Console(lambda: self._family, self._desk, self._metrics, self._unfinished, clock)
        self._judge()
        self._follow(family)
        self._go_on(objects, stores, folder)

    def _judge(self) -> None:
        """What is said on any route that takes text."""
        self._moderator = Moderator(self._keys, self._metrics)
        self._chat.moderate = self._moderator.check
        if self._videos is not None:
            self._videos.moderate = self._moderator.check

    def _go_on(self, objects: Objects, stores: list[Swept], folder: Path) -> None:
        """With what needs no request."""
        self._sweeping = asyncio.create_task(swept(objects, self._api_files))
        self._tidying = asyncio.create_task(sweeping(stores, folder))
        if self._videos is not None:
            self._rendering = asyncio.create_task(self._videos.run())
            self._joining = asyncio.create_task(self._storyboards.run())
        self._talk = asyncio.create_task(self._announcer.run())
        self._answering = asyncio.create_task(self._runs.run())
        self._batching = asyncio.create_task(self._batch_runs.run())

    def _follow(self, family: Family) -> None:
        family = taking(family)
        for tier in family.tiers.keys() - self._handles.keys():
            self._handles[tier] = serve.get_deployment_handle(tier, app_name=tier_app(tier))
            # Its router meets the replicas: a first call would too, but where one waits for a replica Serve wants one,
            # whatever its policy says.
            self._handles[tier]._init()
        self._metrics.follow(family.tiers, {limit.name for plan in family.plans.values() for limit in plan.limits})
        self._desk.follow(family)
        self._moderator.follow(family.gateway.moderation)
        if self._videos is not None:
            self._videos.follow(family)
            self._storyboards.follow(family)
        self._family = self._courses.family = family

    def _hello(self) -> Hello:
        replicas = {r.metrics_address: r.replica_id for each in seen.everywhere().values() for r in each}
        replicas.pop("", None)
        jobs = self._videos.jobs() if self._videos is not None else None
        return Hello(gateway_id=self._id, metrics=(self._address, *replicas), replica_of=replicas, jobs=jobs)

    def _unfinished(self) -> int | None:
        return len(self._videos.jobs()) if self._videos is not None else None

    def _heard(self, standing: Standing) -> None:
        if standing.version > self._version:
            self._follow(standing.family)
            self._version = standing.version
        self._metrics.control_address = standing.metrics_address
        self._told = self._clock(), standing
        self._console.heard(standing)
        if self._videos is not None:
            self._videos.take(standing.workers)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        app = FastAPI(title="Moray", docs_url=None, redoc_url=None, openapi_url=None)
        app.add_middleware(Envelope)
        app.add_exception_handler(HTTPException, _unknown_route)
        app.add_exception_handler(RequestValidationError, _wrong_part)
        app.router.routes.append(Route("/v1/chat/completions", self._chat, methods=["POST"]))
        app.router.routes.append(Route("/v1/completions", Completions(self._chat), methods=["POST"]))
        app.router.routes.append(Route("/v1/embeddings", Embeddings(self._chat), methods=["POST"]))
        app.add_api_route("/v1/models", self._models, methods=["GET"])
        app.add_api_route("/v1/models/{name}", self._model, methods=["GET"])
        app.add_api_route("/health", self._health, methods=["GET"])
        app.add_api_route("/metrics", self._metrics_page, methods=["GET"])
        app.add_api_route(TARGETS_PATH, self._targets, methods=["GET"])
        for routes in (self._api_files, self._responses, self._conversations, self._batches):
            routes.add_routes(app, partial(authorize, keys=self._keys))
        self._console.add_routes(app)
        self._admin.add_routes(app)
        Description(VERSION).add_routes(app)
        if self._videos is not None:
            self._edits.add_routes(app, self._keys)  # first: its paths look like ids of videos
            self._videos.add_routes(app, self._keys)
            self._storyboards.add_routes(app, self._keys)
        return app

    @Described(gives="model", listing=True)
    async def _models(self, request: Request) -> Response:
        authorize(request.scope, self._keys)
        return json_response(models_list(self._family, self._started_s))

    @Described(gives="model")
    async def _model(self, name: str, request: Request) -> Response:
        authorize(request.scope, self._keys)
        return json_response(model_object(self._family, name, self._started_s))

    async def _health(self) -> Response:
        """Open to all. `replicas` counts those that this gateway may send to; a tier with none sleeps.

        `family_version` grows with every change of the family while it is served. `control` is null until the control
        loop is heard of: its version, and how old its last word and its picture of the cluster are.
        """
        health = {
            "status": "ok",
            "version": VERSION,
            "family": self._family.name,
            "family_version": self._version,
            "replicas": {key: len(seen.replicas(key)) for key in self._family.tiers},
            "control": None,
        }
        if self._told is not None:
            at_s, standing = self._told
            age_s = self._clock() - at_s
            picture_s = None if standing.picture is None else age_s + standing.picture.age_s
            health["control"] = {"version": standing.moray, "heard_age_s": age_s, "picture_age_s": picture_s}
        return json_response(health)

    @Described(query={"only": {"enum": ["gateway"]}}, media=("text/plain",))
    async def _metrics_page(self, only: str = "") -> Response:
        page = await self._metrics.page(only_gateway=only == "gateway")
        return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")

    @Described(gives={"type": "array", "items": {"type": "object"}})
    async def _targets(self) -> Response:
        """For Prometheus: all pages of the family. Where the loop is silent, those it told of last, and our own."""
        pages: dict[str, str | None] = {}
        if self._told is not None:
            pages = {**self._told[1].pages, self._told[1].metrics_address: None}
        own = self._hello()
        return json_response(discovered({**pages, **dict.fromkeys(own.metrics), **own.replica_of}))


async def _wrong_part(request: Request, error: Exception) -> Response:
    """Of an address, which is all that FastAPI reads here."""
    assert isinstance(error, RequestValidationError)
    fault = error.errors()[0]
    name, allowed = str(fault["loc"][-1]), fault["msg"][:1].lower() + fault["msg"][1:]
    raise InvalidRequest(f"{name}: not allowed so in the address; {allowed}; mend it", param=name)


async def _unknown_route(request: Request, error: Exception) -> Response:
    """Starlette's 404 and 405 as OpenAI's error object, by way of the envelope."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {unsecret(request.scope['path'])[:64]}"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        raise MethodNotAllowed(f"{where}: the method is not allowed here; {allowed} are; use one", allowed=allowed)
    raise NotFound(f"{where}: no such route; routes begin with /v1; see the API reference", code="route_not_found")
