"""/v1/admin: keys, plans, limits and usage, for keys of scope admin.

Each act of a key, refused or not, is in a log that only grows. /v1/organization: usage and costs of all, for the same
keys. /v1/usage: what a key used itself, for any key.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import ValidationError

from cluster.access import DEFAULT, USUAL, Grant, KeyRecord
from cluster.errors import InvalidRequest, MorayError, NotFound
from cluster.family import Family
from cluster.usage import By, Sum
from deployments.gateway.admin_views import AdminViews, Query
from deployments.gateway.admin_wire import ActsQuery, KeysQuery, LimitsQuery, ProjectsQuery, UsageQuery, key_object
from deployments.gateway.asgi import authorize, json_response, known, read_body
from deployments.gateway.body import Strict, refusal
from deployments.gateway.description import Described
from deployments.gateway.usage_wire import QUERY, Page, completions, costs, embeddings, parse_page
from deployments.stores.key_rows import Act, KeyRows, unsecret
from deployments.stores.limits import Limits
from deployments.stores.threads import in_thread
from deployments.stores.usage_rows import UsageRows

MOST_BYTES = 16_384


class NewKey(Strict):
    name: str
    plan: str | None = None
    organization_id: str = DEFAULT
    project_id: str = DEFAULT
    scopes: tuple[str, ...] | None = None
    expires_at: int | None = None


class Rotation(Strict):
    grace_seconds: float = 0.0


@dataclass(slots=True)
class _Acting:
    """`subject`: what is done to, as far as it is known."""

    record: KeyRecord
    body: bytes
    subject: str = ""


class Admin:
    """`family`: that of new requests. `now_s`: Unix seconds."""

    def __init__(
        self,
        family: Callable[[], Family],
        keys: KeyRows,
        usage: UsageRows,
        limits: Limits,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._family, self._keys, self._usage, self._now_s = family, keys, usage, now_s
        self._views = AdminViews(family, keys, usage, limits, now_s)

    def add_routes(self, app: FastAPI) -> None:
        app.add_api_route("/v1/admin/keys", self._list, methods=["GET"])
        app.add_api_route("/v1/admin/keys", self._create, methods=["POST"])
        app.add_api_route("/v1/admin/keys/{key_id}/rotate", self._rotate, methods=["POST"])
        app.add_api_route("/v1/admin/keys/{key_id}", self._revoke, methods=["DELETE"])
        app.add_api_route("/v1/admin/plans", self._plans, methods=["GET"])
        app.add_api_route("/v1/admin/acts", self._acts, methods=["GET"])
        app.add_api_route("/v1/admin/projects", self._projects, methods=["GET"])
        app.add_api_route("/v1/admin/limits", self._limits, methods=["GET"])
        app.add_api_route("/v1/admin/usage", self._all_usage, methods=["GET"])
        app.add_api_route("/v1/organization/usage/completions", self._completions, methods=["GET"])
        app.add_api_route("/v1/organization/usage/embeddings", self._embeddings, methods=["GET"])
        app.add_api_route("/v1/organization/costs", self._costs, methods=["GET"])
        app.add_api_route("/v1/usage", self._own, methods=["GET"])

    @Described(query=KeysQuery, gives="organization.project.api_key", listing=True)
    async def _list(self, request: Request) -> Response:
        return await self._view("keys.list", request, self._views.keys)

    @Described(body=NewKey, gives="organization.project.api_key")
    async def _create(self, request: Request) -> Response:
        async def done(acting: _Acting) -> Any:
            asked = _parsed(NewKey, acting.body)
            plans = self._family().plans
            if asked.plan is not None and asked.plan not in plans:
                known_plans = ", ".join(plans) or "none"
                raise InvalidRequest(
                    f"plan: {asked.plan[:64]!r}; plans are {known_plans}; choose one, or leave it out", param="plan"
                )
            grant = Grant(
                org=asked.organization_id,
                project=asked.project_id,
                scopes=USUAL if asked.scopes is None else asked.scopes,
                expires_s=asked.expires_at,
            )
            name, now_s, plan = asked.name, self._now_s(), asked.plan
            secret, record = await in_thread(self._keys.create, name, now_s, plan, grant)
            acting.subject = record.id
            return key_object(record) | {"value": secret}

        return await self._act("keys.create", request, done)

    @Described(body=Rotation, optional=True, gives="organization.project.api_key")
    async def _rotate(self, key_id: str, request: Request) -> Response:
        async def done(acting: _Acting) -> Any:
            grace_s = _parsed(Rotation, acting.body or b"{}").grace_seconds
            key = await self._whole(key_id)
            secret, record = await in_thread(self._keys.rotate, key.id, self._now_s(), grace_s)
            return key_object(record) | {"value": secret}

        return await self._act("keys.rotate", request, done, key_id)

    @Described(gives="organization.project.api_key")
    async def _revoke(self, key_id: str, request: Request) -> Response:
        async def done(acting: _Acting) -> Any:
            key = await self._whole(key_id)
            return key_object(await in_thread(self._keys.revoke, key.id, self._now_s()))

        return await self._act("keys.revoke", request, done, key_id)

    @Described(gives="plan", listing=True)
    async def _plans(self, request: Request) -> Response:
        async def done(acting: _Acting) -> Any:
            plans = self._family().plans
            rows = [{"object": "plan", "id": name} | one.model_dump(mode="json") for name, one in plans.items()]
            return {"object": "list", "data": rows, "has_more": False}

        return await self._act("plans.list", request, done)

    @Described(query=ActsQuery, gives="act", listing=True)
    async def _acts(self, request: Request) -> Response:
        return await self._view("acts.list", request, self._views.acts)

    @Described(query=ProjectsQuery, gives="organization.project", listing=True)
    async def _projects(self, request: Request) -> Response:
        return await self._view("projects.list", request, self._views.projects)

    @Described(query=LimitsQuery, gives="plan.standing", listing=True)
    async def _limits(self, request: Request) -> Response:
        return await self._view("limits.list", request, self._views.limits)

    @Described(query=UsageQuery, gives="page")
    async def _all_usage(self, request: Request) -> Response:
        return await self._view("usage.all", request, self._views.usage)

    @Described(query=QUERY, gives="page")
    async def _completions(self, request: Request) -> Response:
        async def done(acting: _Acting) -> Any:
            page = self._page(request)
            return completions(page, await self._sums(page, "chat"))

        return await self._act("usage.completions", request, done)

    @Described(query=QUERY, gives="page")
    async def _embeddings(self, request: Request) -> Response:
        async def done(acting: _Acting) -> Any:
            page = self._page(request)
            return embeddings(page, await self._sums(page, "embedding"))

        return await self._act("usage.embeddings", request, done)

    @Described(query=QUERY, gives="page")
    async def _costs(self, request: Request) -> Response:
        async def done(acting: _Acting) -> Any:
            page = self._page(request)
            return costs(page, await self._sums(page))

        return await self._act("usage.costs", request, done)

    @Described(query=QUERY, gives="page")
    async def _own(self, request: Request) -> Response:
        """Of the key that asks, alone."""
        record = authorize(request.scope, self._keys)
        page = self._page(request)
        return json_response(completions(page, await self._sums(page, "chat", record.id)))

    async def _view(self, act: str, request: Request, view: Callable[[Query], Awaitable[Any]]) -> Response:
        return await self._act(act, request, lambda acting: view(request.query_params.multi_items()))

    async def _act(
        self, act: str, request: Request, done: Callable[[_Acting], Awaitable[Any]], subject: str = ""
    ) -> Response:
        """Does it where the key may, and writes down what became of it. Its answer waits for the log.

        Raises Unauthorized, and then writes nothing.
        """
        actor = known(request.scope, self._keys).id  # before all: whoever has no key fills no log
        acting, outcome = None, "internal_error"
        try:
            acting = _Acting(record=authorize(request.scope, self._keys), body=b"", subject=subject)
            acting.body = await read_body(request.scope, request.receive, MOST_BYTES)
            answer, outcome = await done(acting), "ok"
        except MorayError as error:
            outcome = error.code
            raise
        except asyncio.CancelledError:  # what was begun in a thread is done
            outcome = "client_gone"
            raise
        finally:
            wrote = Act(
                at_s=self._now_s(),
                actor=actor,
                from_=request.client.host if request.client else "unknown",
                act=act,
                subject=unsecret(acting.subject if acting else subject).replace("\0", "")[:64],
                outcome=outcome,
            )
            await in_thread(self._keys.log, wrote)
        return json_response(answer)

    async def _whole(self, key_id: str) -> KeyRecord:
        """By its whole id: nobody means a key by half of it over a wire."""
        record = await in_thread(self._keys.get, key_id)
        if record is None:
            raise NotFound(
                f"keys: {unsecret(key_id)[:64]!r} is unknown; ids as listed are allowed; list the keys",
                code="key_not_found",
            )
        return record

    def _page(self, request: Request) -> Page:
        return parse_page(request.query_params.multi_items(), int(self._now_s()))

    async def _sums(self, page: Page, kind: str | None = None, key_id: str | None = None) -> tuple[Sum, ...]:
        only: list[tuple[By, Sequence[str]]] = [*page.only]
        only += [("kind", (kind,))] if kind else []
        only += [("key_id", (key_id,))] if key_id else []
        of = page.start_s, page.page_end_s, page.bucket_s
        return await in_thread(self._usage.report, *of, page.by, only)


def _parsed(model: type[Any], body: bytes) -> Any:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise refusal(error, model.model_fields) from None
