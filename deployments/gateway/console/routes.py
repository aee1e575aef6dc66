"""GET /console, /console/studio and /console/accounts: the pages, their parts, the console's data once and as a stream.

Open to all who reach the gateway, as /metrics and /health are: it shows no prompt, no answer and no key, and a chat on
it, a video in the studio, or what accounts tell, needs a key as any other does. A page takes nothing from elsewhere and
runs no script but its own files; a video that it plays is one that its script has fetched with the key.
"""

import asyncio
import contextlib
import hashlib
import json
import time
from collections import deque
from collections.abc import Callable
from importlib.resources import files

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from cluster.errors import Overloaded
from cluster.family import Family
from deployments import seen
from deployments.control.words import Standing
from deployments.gateway.console.figures import Reading, figures, reading, refusals
from deployments.gateway.console.snapshot import Known, snapshot
from deployments.gateway.desk import Desk
from deployments.gateway.metrics import GatewayMetrics

PERIOD_S = 1.0
WINDOW_S = 60.0
READ_S = 10.0  # between readings while nobody looks: who opens the page sees the last minute, not all that was before
LIFE_S = 5.0  # of one stream: a gateway that stops waits for its streams, and a browser comes back by itself
LAST_WORD_S = 1.0
MOST_STREAMS = 32
RETRY_MS = 1000  # how soon a browser comes back
TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
GUARDS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Console:
    """One per gateway. `family`: that of new requests; `jobs`: unfinished video jobs, None where none are kept.

    `clock`: seconds that never go back.
    """

    def __init__(
        self,
        family: Callable[[], Family],
        desk: Desk,
        metrics: GatewayMetrics,
        jobs: Callable[[], int | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._family, self._desk, self._metrics, self._jobs, self._clock = family, desk, metrics, jobs, clock
        self._standing: tuple[float, Standing] | None = None
        self._begun_s = clock()
        # The first reading is of the gateway's start: everything is 0.
        self._readings: deque[tuple[float, Reading]] = deque([(clock(), {})])
        self._made: tuple[float, bytes] | None = None
        self.streams = 0

    def heard(self, standing: Standing) -> None:
        """The control loop's word."""
        now_s = self._clock()
        self._standing = now_s, standing
        if now_s - self._readings[-1][0] >= READ_S:
            self._read(now_s)

    def add_routes(self, app: FastAPI) -> None:
        for part in files(__package__).joinpath("static").iterdir():
            path = "/console" if part.name == "index.html" else f"/console/{part.name.removesuffix('.html')}"
            app.router.routes.append(Route(path, _Part(part.name, part.read_bytes()), methods=["GET"]))
        app.router.routes.append(Route("/console/state", self._state_once, methods=["GET"]))
        app.router.routes.append(Route("/console/events", Events(self), methods=["GET"]))

    def state(self) -> bytes:
        """The snapshot as JSON; those who ask within half a period get the same."""
        now_s = self._clock()
        if self._made is None or now_s - self._made[0] >= PERIOD_S / 2:
            self._made = now_s, json.dumps(snapshot(self._known(now_s)), allow_nan=False).encode()
        return self._made[1]

    def _known(self, now_s: float) -> Known:
        family, now = self._family(), self._read(now_s)
        before_s, before = self._readings[0]
        window_s = max(PERIOD_S, now_s - before_s)
        heard_s, standing = self._standing or (now_s, None)
        return Known(
            family=family,
            at_s=time.time(),
            standing=standing,
            standing_age_s=now_s - heard_s,
            seen=seen.everywhere(),
            held=self._desk.held(),
            ongoing=self._desk.ongoing(),
            breakers=self._desk.open_breakers(),
            figures={key: figures(now, before, key, window_s) for key in family.tiers},
            jobs=self._jobs(),
            refusals=refusals(now),
            up_s=now_s - self._begun_s,
        )

    def _read(self, now_s: float) -> Reading:
        """The counters now. Of those of before, the youngest that is WINDOW_S old stays the oldest."""
        now = reading(self._metrics.own())
        self._readings.append((now_s, now))
        while now_s - self._readings[1][0] >= WINDOW_S:
            self._readings.popleft()
        return now

    async def _state_once(self, request: Request) -> Response:
        return _whole(request.method, self.state(), {"content-type": "application/json", "cache-control": "no-store"})


class _Part:
    """A file of the page, sent again only where it has changed."""

    def __init__(self, name: str, body: bytes) -> None:
        self._body = body
        self._headers = {
            "content-type": TYPES[name.rpartition(".")[2]],
            "cache-control": "no-cache",
            "etag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        if self._headers["etag"] in request.headers.get("if-none-match", ""):
            response = Response(status_code=304, headers=GUARDS | self._headers)
        else:
            response = _whole(request.method, self._body, self._headers)
        await response(scope, receive, send)


def _whole(method: str, body: bytes, headers: dict[str, str]) -> Response:
    length = {"content-length": str(len(body))}
    return Response(b"" if method == "HEAD" else body, headers=GUARDS | headers | length)


class Events:
    """A snapshot every second as a server-sent event, for LIFE_S; then the browser comes back.

    Raises Overloaded beyond MOST_STREAMS.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._console.streams >= MOST_STREAMS:
            raise Overloaded(
                f"/console/events: {MOST_STREAMS} are watched already, and no more are allowed; close one, or read "
                "/console/state",
                retry_after_s=LIFE_S,
            )
        headers = GUARDS | {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store"}
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        self._console.streams += 1
        try:
            await send({"type": "http.response.start", "status": 200, "headers": raw})
            if scope["method"] != "HEAD":
                await self._told(receive, send)
            with contextlib.suppress(TimeoutError):  # who reads no more hears no last word either
                async with asyncio.timeout(LAST_WORD_S):
                    await send({"type": "http.response.body", "body": b""})
        finally:
            self._console.streams -= 1

    async def _told(self, receive: Receive, send: Send) -> None:
        left = asyncio.ensure_future(_left(receive))
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LIFE_S):
                    await _say(send, b"retry: %d\n\n" % RETRY_MS)
                    while not left.done():
                        await _say(send, b"data: %s\n\n" % self._console.state())
                        await asyncio.wait((left,), timeout=PERIOD_S)
        finally:
            left.cancel()


async def _say(send: Send, event: bytes) -> None:
    await send({"type": "http.response.body", "body": event, "more_body": True})


async def _left(receive: Receive) -> None:
    """Until the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
