"""GET /openapi.json: the API as it is served, in OpenAPI 3.1, made of the routes and of the models that read requests.

A route says beside its code what it reads and gives (`Described`); paths, methods, scopes and errors are found. Open to
all who reach the gateway, as /health is: it tells what the program can do, nothing of who uses it.
"""

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, WithJsonSchema
from pydantic.json_schema import GenerateJsonSchema, models_json_schema
from starlette.routing import BaseRoute, Route

from cluster.access import scope_of
from cluster.errors import MorayError

PATH = "/openapi.json"
PAGES = "/console"  # for eyes
FORM = "multipart/form-data"
JSON = "application/json"
SSE = "text/event-stream"
TEXT: Final = {"type": "string"}
UPLOAD = WithJsonSchema({"type": "string", "format": "binary"})
_REFERENCE = "#/components/schemas/{model}"
_KEYED = "/v1/"
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
_MEANING = {
    400: "the request is wrong",
    401: "no key, or one that is not valid",
    403: "not for this key",
    404: "there is no such thing, or it is another key's",
    408: "the body did not come in time",
    409: "something else changed it, or it is over",
    413: "the body is too large",
    416: "it has no such part",
    429: "too much is asked, or a limit is reached; Retry-After says when to come back",
    431: "the headers are too large",
    500: "a fault of ours",
    503: "a part is away; ask again",
}
_C = TypeVar("_C", bound=Callable[..., Any])
Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """Of a route what its path does not say.

    `body`: what reads it, of JSON or with `form` of a form, too. `query`: what reads the query, or its parameters by
    name. `gives`: the `object` of what comes back, or its schema; `listing`: a list of such. `media`: of the answer.
    `ranges`: it may be a part of it. `optional`: the body may be left out. `headers`: that are heeded.
    """

    body: type[BaseModel] | None = None
    form: bool = False
    optional: bool = False
    query: type[BaseModel] | Mapping[str, Schema] | None = None
    headers: Mapping[str, Schema] | None = None
    gives: str | Schema | None = None
    listing: bool = False
    media: tuple[str, ...] = (JSON,)
    ranges: bool = False

    def __call__(self, endpoint: _C) -> _C:
        """Marks what answers a route. An endpoint that is an object has it as an attribute."""
        endpoint.described = self  # type: ignore[attr-defined]
        return endpoint


class Description:
    """`version`: of the program. Made when it is first asked for, of the routes that there are then."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._made: bytes | None = None

    def add_routes(self, app: FastAPI) -> None:
        self._app = app
        app.add_api_route(PATH, self._told, methods=["GET"])

    async def _told(self, request: Request) -> Response:
        """This description."""
        if self._made is None:
            self._made = json.dumps(description(self._app, self._version)).encode()
        return Response(self._made, media_type=JSON)


def description(app: FastAPI, version: str) -> dict[str, Any]:
    """The document. Of two routes for the same requests the first counts, as when they are answered."""
    found = [(route, method) for route in app.routes if _told(route) for method in _methods(route)]
    models = {words.body for route, _ in found if (words := _words(route)).body is not None}
    ordered = sorted(models, key=lambda model: (model.__name__, model.__module__))
    names, schemas = models_json_schema(
        [(model, "validation") for model in ordered], ref_template=_REFERENCE, schema_generator=_Schemas
    )
    refs = {model: names[model, "validation"] for model in ordered}
    paths: dict[str, dict[str, Any]] = {}
    for route, method in found:
        paths.setdefault(_path(route), {}).setdefault(method.lower(), _operation(route, method, refs))
    return {
        "openapi": "3.1.0",
        "info": {"title": "Moray", "version": version},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas.get("$defs", {}) | {"Error": _ERROR},
            "responses": {f"E{status}": _refusal(status, codes) for status, codes in _codes().items()},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


class _Schemas(GenerateJsonSchema):
    """Names of models as readers want them; of two alike the module's goes before. Bounds in JSON Schema's words."""

    def normalize_name(self, name: str) -> str:
        *modules, last = name.split(".")
        module = modules[-1].title().replace("_", "") if modules else ""
        return super().normalize_name(module + last.lstrip("_"))

    def generate_inner(self, schema: Any) -> dict[str, Any]:
        return {_BOUNDS.get(key, key): value for key, value in super().generate_inner(schema).items()}

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


_ERROR: Final = {
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
            "properties": {
                "message": TEXT,
                "type": TEXT,
                "param": {"type": ["string", "null"]},
                "code": TEXT,
            },
        }
    },
}


def _codes() -> dict[int, list[str]]:
    """Of each status the codes that it comes with, but for those that a route adds."""
    codes: dict[int, set[str]] = {}
    pending = [MorayError]
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        codes.setdefault(kind.status, set()).add(kind.code)
    return {status: sorted(codes[status]) for status in sorted(codes)}


def _refusal(status: int, codes: list[str]) -> dict[str, Any]:
    told = f"{_MEANING.get(status, 'it is refused')}: code {', '.join(codes)}, or one that says more"
    return {"description": told, "content": {JSON: {"schema": {"$ref": _REFERENCE.format(model="Error")}}}}


def _told(route: BaseRoute) -> bool:
    return isinstance(route, Route | APIRoute) and not _path(route).startswith(PAGES)


def _path(route: Any) -> str:
    return str(route.path)


def _methods(route: Any) -> list[str]:
    return sorted(set(route.methods) - {"HEAD", "OPTIONS"})


def _words(route: Any) -> Described:
    found = getattr(route.endpoint, "described", None)
    return found if isinstance(found, Described) else Described()


def _operation(route: Any, method: str, refs: Mapping[type[BaseModel], Schema]) -> dict[str, Any]:
    path, words = _path(route), _words(route)
    parts = [part.strip("{}") for part in path.strip("/").split("/")]
    told: dict[str, Any] = {
        "operationId": "_".join([method.lower(), *(part.replace(".", "_") for part in parts)]),
        "tags": [parts[1] if parts[0] == "v1" else "operator"],
        "parameters": [*_parameters(route, words)],
        "responses": {"200": _answer(words)} | ({"206": _answer(words)} if words.ranges else {}),
    }
    told["responses"] |= _refusals(route, method, words)
    if inspect.ismethod(route.endpoint) and route.endpoint.__doc__:
        told["summary"] = route.endpoint.__doc__.partition("\n")[0]
    if words.body is not None:
        content = {media: {"schema": refs[words.body]} for media in ((JSON, FORM) if words.form else (JSON,))}
        told["requestBody"] = {"required": not words.optional, "content": content}
    scope = scope_of(path) if path.startswith(_KEYED) else None
    told["security"] = [{"key": [scope] if scope else []}] if path.startswith(_KEYED) else []
    return told


def _parameters(route: Any, words: Described) -> Iterator[dict[str, Any]]:
    for name in route.param_convertors:
        yield {"name": name, "in": "path", "required": True, "schema": TEXT}
    query = words.query or {}
    if isinstance(query, type):
        schema = query.model_json_schema(schema_generator=_Schemas)
        for name, field in schema.get("properties", {}).items():
            yield {"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": field}
    else:
        for name, field in query.items():
            yield {"name": name, "in": "query", "schema": field}
    for name, field in (words.headers or {}).items():
        yield {"name": name, "in": "header", "schema": field}


def _answer(words: Described) -> dict[str, Any]:
    content = {media: {"schema": _given(words)} if media == JSON else {} for media in words.media}
    return {"description": "the answer", "content": content}


def _given(words: Described) -> Schema:
    if words.listing:
        items = _object(words.gives)
        list_of = {"object": {"const": "list"}, "data": {"type": "array", "items": items}}
        return {"type": "object", "required": ["object", "data"], "properties": list_of}
    return _object(words.gives)


def _object(name: str | Schema | None) -> Schema:
    if name is None:
        return {"type": "object"}
    if not isinstance(name, str):
        return name
    return {"type": "object", "required": ["object"], "properties": {"object": {"const": name}}}


def _refusals(route: Any, method: str, words: Described) -> dict[str, Any]:
    statuses = {431, 500}
    if _path(route).startswith(_KEYED):
        statuses |= {401, 403, 503}
    if words.query is not None or words.body is not None or route.param_convertors:
        statuses |= {400, 404}
    if words.body is not None:
        statuses |= {408, 413}
    if method != "GET":
        statuses |= {400, 409, 429}
    if words.ranges:
        statuses.add(416)
    return {str(status): {"$ref": f"#/components/responses/E{status}"} for status in sorted(statuses)}
