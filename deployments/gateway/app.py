"""The ingress: one FastAPI application on Ray Serve, OpenAI's wire in front, the family's handles behind."""

import asyncio
import contextlib
import json
import time
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp

from cluster.errors import InvalidRequest, NotFound
from cluster.family import Family
from deployments import seen
from deployments.gateway.asgi import Envelope, authorize
from deployments.gateway.chat import ChatCompletions
from deployments.gateway.metrics import GatewayMetrics
from deployments.gateway.tokens import Pushed, Streamed, TokenPath
from deployments.gateway.videos import Videos
from deployments.gateway.wire import model_object, models_list
from deployments.link import Listener
from deployments.ranks import node_address
from deployments.stores.jobs import JOBS_FILE, JobStore
from deployments.stores.keys import KEYS_FILE, KeyStore


class Gateway:
    """One per ingress replica. State on disk lies in the family's state folder."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, family: Family, tiers: dict[str, DeploymentHandle[Any]], video: DeploymentHandle[Any] | None
    ) -> None:
        folder = Path(family.state_folder)
        self._family = family
        self._started_s = int(time.time())
        self._keys = KeyStore(folder / KEYS_FILE)
        listener = Listener()
        jobs = JobStore(folder / JOBS_FILE)
        self._metrics = GatewayMetrics(listener.counts, jobs.counts if video is not None else None)
        path: TokenPath = Streamed()
        if family.gateway.tokens == "pushed":
            await listener.start(node_address())
            path = Pushed(listener)
        self._chat = ChatCompletions(family, tiers, path, self._keys, self._metrics)
        self._videos = None
        if family.video is not None and video is not None:
            self._videos = Videos(family, video, jobs, folder / "videos", self._metrics)
            self._videos.resume()
        # A router of Serve meets its replicas with its first call: not a user's, and none that wakes a sleeping tier.
        warm = [handle for key, handle in tiers.items() if family.tiers[key].replicas.initial]
        self._greetings = [asyncio.ensure_future(_greet(handle)) for handle in warm]

    def __serve_build_asgi_app__(self) -> ASGIApp:
        app = FastAPI(title="Moray", docs_url=None, redoc_url=None, openapi_url=None)
        app.add_middleware(Envelope)
        app.add_exception_handler(HTTPException, _unknown_route)
        app.router.routes.append(Route("/v1/chat/completions", self._chat, methods=["POST"]))
        app.add_api_route("/v1/models", self._models, methods=["GET"])
        app.add_api_route("/v1/models/{name}", self._model, methods=["GET"])
        app.add_api_route("/health", self._health, methods=["GET"])
        app.add_api_route("/metrics", self._metrics_page, methods=["GET"])
        if self._videos is not None:
            self._videos.add_routes(app, self._keys)
        return app

    async def _models(self, request: Request) -> Response:
        authorize(request.scope, self._keys)
        return _json(models_list(self._family, self._started_s))

    async def _model(self, name: str, request: Request) -> Response:
        authorize(request.scope, self._keys)
        return _json(model_object(self._family, name, self._started_s))

    async def _health(self) -> Response:
        """Open to all. `replicas` counts those that this gateway may send to; a tier with none sleeps."""
        replicas = {key: len(seen.replicas(key)) for key in self._family.tiers}
        return _json({"status": "ok", "family": self._family.name, "replicas": replicas})

    async def _metrics_page(self, only: str = "") -> Response:
        page = await self._metrics.page(only_gateway=only == "gateway")
        return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")


async def _greet(handle: DeploymentHandle[Any]) -> None:
    with contextlib.suppress(Exception):  # Serve tells of replicas that cannot start; this is only a greeting
        await handle.greet.remote()


def _json(value: Any) -> Response:
    return Response(json.dumps(value), media_type="application/json")


async def _unknown_route(request: Request, error: Exception) -> Response:
    """Starlette's 404 and 405 as OpenAI's error object, by way of the envelope."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"
    if error.status_code == 405:
        wrong = InvalidRequest(
            f"{where}: the method is not allowed here; see the API reference", code="method_not_allowed"
        )
        wrong.status = 405
        raise wrong
    raise NotFound(f"{where}: no such route; routes begin with /v1; see the API reference", code="route_not_found")
