"""A server that streams as OpenAI does and breaks as asked, in a thread of its own, on a port of this machine."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

MODELS = [
    {"id": "good", "tier": "turbo", "slo": {"ttft_s": 60, "tpot_ms": 10_000}},
    {"id": "clip", "tier": "video"},
]
SERVED = {"tier": "pro", "replica": "r1", "queued_s": 0.0, "spilled": "saturated", "resumed": 1}


class Broken:
    """`asked`: the bodies that came. `stalled`: a stream that stands still waits for it, and so may a test."""

    def __init__(self) -> None:
        self.asked: list[dict[str, object]] = []
        self.keys: list[str | None] = []
        self.ordered: list[dict[str, object]] = []
        self.polls = 0
        self.url = ""

    async def chat(self, request: Request) -> Response:
        body = json.loads(await request.body())
        self.asked.append(body)
        self.keys.append(request.headers.get("authorization"))
        match body["model"]:
            case "full":
                error = {"error": {"message": "no", "code": "overloaded", "type": "rate_limit_error"}}
                return JSONResponse(error, 429, {"Retry-After": "7"})
            case "plain":
                return Response("oops", 502)
        headers = {"moray-tier": "turbo", "moray-replica": "r0"}
        if body["model"] == "spilled":
            headers |= {"moray-tier": "pro", "moray-spilled": "saturated"}
        return StreamingResponse(self.events(body), media_type="text/event-stream", headers=headers)

    async def events(self, body: dict[str, object]) -> AsyncIterator[bytes]:
        model, tokens = body["model"], body["max_tokens"]
        assert isinstance(tokens, int)
        yield event(choices=[{"delta": {"role": "assistant", "content": ""}}])
        yield b": waiting\n\n"
        if model == "silent":
            await asyncio.Event().wait()
        for number in range(tokens):
            if number == tokens // 2:
                if model == "cut":
                    return
                if model == "torn":
                    raise ConnectionError("torn on purpose")
                if model == "error":
                    yield event(error={"message": "no", "code": "replica_lost", "type": "server_error"})
                    return
            yield event(choices=[{"delta": {"content": f'w{number} "error" [DONE] '}}])
        usage = {"prompt_tokens": 5, "completion_tokens": tokens} | ({"moray": SERVED} if model == "spilled" else {})
        yield event(choices=[], usage=usage) + b"data: [DONE]\n\n"

    async def models(self, request: Request) -> Response:
        if request.headers.get("authorization") == "Bearer wrong":
            return JSONResponse({"error": {"code": "invalid_api_key"}}, 401)
        return JSONResponse({"object": "list", "data": MODELS})

    async def order(self, request: Request) -> Response:
        self.ordered.append(json.loads(await request.body()))
        return JSONResponse({"id": "v1", "status": "queued"})

    async def look(self, request: Request) -> Response:
        self.polls += 1
        return JSONResponse({"id": "v1", "status": "completed", "error": None})

    @property
    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/v1/videos", self.order, methods=["POST"]),
                Route("/v1/videos/v1", self.look),
            ]
        )


def event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


class Announced(uvicorn.Server):
    """Tells when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup()
        self.listens.set()


@pytest.fixture
def broken() -> Iterator[Broken]:
    served = Broken()
    config = uvicorn.Config(
        served.app, port=0, log_level="critical", lifespan="off", ws="none", timeout_graceful_shutdown=1
    )
    server = Announced(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    assert server.listens.wait(10)
    served.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    yield served
    server.should_exit = True
    thread.join()
