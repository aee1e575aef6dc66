"""What every route of the gateway shares: request ids, bounded bodies, keys, and OpenAI's error object."""

import asyncio
import json
import logging
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.access import KeyRecord, refusal
from cluster.errors import (
    BodyTooLarge,
    ConfigurationError,
    HeadersTooLarge,
    InvalidRequest,
    MorayError,
    TooSlow,
    Unauthorized,
)
from deployments.gateway.wire import error_body, error_headers
from deployments.log import event
from deployments.stores.key_rows import PREFIX, KeyRows, masked

log = logging.getLogger("ray.serve")
REQUEST_ID = "moray.request_id"
LOG_FIELDS = "moray.log_fields"  # what a route has to say in the request's line of the log
HEADERS = "moray.headers"  # a list, to be filled before the answer begins: headers of whatever it is
_SAFE_ID = re.compile(rf"(?!.*{PREFIX})[A-Za-z0-9._:-]{{1,128}}".encode())  # a key in the wrong place is none
MOST_HEADERS = 128
LONGEST_HEAD_BYTES = 32_768
MOST_DIGITS = 20  # of a length that is declared
FIRST_S = 30.0  # that a body may take
SLOWEST_BYTES_PER_S = 65_536  # and beyond, for each byte that it may have
Header = tuple[bytes, bytes]


def header(scope: Scope, name: bytes) -> bytes:
    """The first header of that name, lower case; empty where there is none."""
    return next((value for key, value in scope["headers"] if key == name), b"")


async def respond(send: Send, status: int, body: bytes, headers: Iterable[Header] = ()) -> None:
    """A whole JSON response."""
    base = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*base, *headers]})
    await send({"type": "http.response.body", "body": body})


def json_response(value: Any, headers: Mapping[str, str] | None = None) -> Response:
    return Response(json.dumps(value), media_type="application/json", headers=headers)


async def refuse(send: Send, error: MorayError) -> None:
    headers = [(k.encode(), v.encode()) for k, v in error_headers(error).items()]
    await respond(send, error.status, error_body(error), headers)


class Envelope:
    """The outermost layer: gives each request its id, and turns what escapes the routes into OpenAI's error object."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = header(scope, b"x-request-id")  # Serve gives one where the client does not, and puts it in the response
        scope[REQUEST_ID] = given.decode() if _SAFE_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        begun_s, status = time.monotonic(), 0
        shared: list[Header] = []
        scope[HEADERS] = shared

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status, message = message["status"], {**message, "headers": [*message.get("headers", ()), *shared]}
            await send(message)

        try:
            _bound_head(scope)
            await self._app(scope, receive, watched)
        except Exception as error:
            told = _told(error, scope[REQUEST_ID])
            if status:
                raise
            await refuse(watched, told)
        finally:
            event(
                log,
                logging.INFO,
                "request",
                request_id=scope[REQUEST_ID],
                method=scope["method"],
                path=masked(scope["path"]),
                status=status,
                seconds=round(time.monotonic() - begun_s, 3),
                **scope.get(LOG_FIELDS, {}),
            )


def _bound_head(scope: Scope) -> None:
    """Raises HeadersTooLarge. Servers bound less, or nothing."""
    headers = scope["headers"]
    size = sum(len(name) + len(value) for name, value in headers)
    size += len(scope.get("raw_path") or scope["path"]) + len(scope.get("query_string", b""))
    if size > LONGEST_HEAD_BYTES or len(headers) > MOST_HEADERS:
        raise HeadersTooLarge(
            f"headers: {len(headers)} of them, {size} bytes with the address; at most {MOST_HEADERS} and "
            f"{LONGEST_HEAD_BYTES} bytes are accepted; send less"
        )


def _told(error: Exception, request_id: str) -> MorayError:
    """What the client may know: an error of ours as it is, but for those that speak of the operator's files."""
    if isinstance(error, MorayError) and not isinstance(error, ConfigurationError):
        event(log, logging.INFO, "refused", request_id=request_id, code=error.code, **logged(error))
        return error
    log.error("request_id=%s", request_id, exc_info=error)
    return MorayError("gateway: internal error; give the request id to the operator")


def logged(error: MorayError) -> dict[str, str]:
    """What is wrong with a request quotes it, and prompts have no place in logs: its client alone is told."""
    return {} if isinstance(error, InvalidRequest) else {"why": masked(error.message)}


def authorize(scope: Scope, keys: KeyRows) -> KeyRecord:
    """The key that a request carries, which may ask for its route. Raises Unauthorized, Forbidden, Unavailable."""
    record = known(scope, keys)
    refused = refusal(record, scope["path"], time.time())
    if refused is not None:
        raise refused
    return record


def known(scope: Scope, keys: KeyRows) -> KeyRecord:
    """The key that a request carries, whatever it may do. Raises Unauthorized, Unavailable."""
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(given) > 1:  # which of them counts is what a proxy before us may see otherwise
        raise Unauthorized("authorization: given twice; one API key is allowed; send one")
    scheme, _, secret = (given[0] if given else b"").partition(b" ")
    if scheme.lower() != b"bearer" or not secret:
        raise Unauthorized(
            "authorization: no API key; send the header `Authorization: Bearer sk-moray-...`; "
            "`moray keys create` makes a key"
        )
    record = keys.find(secret.strip().decode("latin-1"))
    if record is None:
        raise Unauthorized("authorization: the API key is unknown or revoked; `moray keys create` makes a new one")
    return record


async def read_body(scope: Scope, receive: Receive, limit_bytes: int) -> bytes:
    """The whole body. Raises BodyTooLarge before reading where the length is declared, else while reading; TooSlow."""
    declared = header(scope, b"content-length")
    if declared.isdigit() and (len(declared) > MOST_DIGITS or int(declared) > limit_bytes):
        raise _too_large(declared.decode()[:MOST_DIGITS], limit_bytes)
    async with InTime(limit_bytes):
        return await _read(receive, limit_bytes)


class InTime:
    """For what reads a body of so many bytes at most. Raises TooSlow.

    No generator: that would cost each request ten times more.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._seconds = FIRST_S + limit_bytes / SLOWEST_BYTES_PER_S
        self._limit = asyncio.timeout(self._seconds)

    async def __aenter__(self) -> None:
        await self._limit.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._limit.__aexit__(kind, error, trace)
        except TimeoutError:
            told = f"body: not there after {self._seconds:.0f} s; so long is allowed; send it faster"
            raise TooSlow(told) from None


async def _read(receive: Receive, limit_bytes: int) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    if not message.get("more_body"):
        if len(body) > limit_bytes:
            raise _too_large(len(body), limit_bytes)
        return body
    parts, size = [body], len(body)
    while message.get("more_body"):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise InvalidRequest("body: the connection ended before the body did; send the whole of it")
        part = message.get("body", b"")
        size += len(part)
        if size > limit_bytes:
            raise _too_large(size, limit_bytes)
        parts.append(part)
    return b"".join(parts)


def _too_large(size_bytes: object, limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"body: {size_bytes} bytes; at most {limit_bytes} are accepted; shorten the request")
