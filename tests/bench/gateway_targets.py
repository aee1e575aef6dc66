"""One server for the gateway benchmark: `python gateway_targets.py TARGET PORT`, until stdin closes.

All have the same simulated engine behind them, so that what differs is the way of the tokens:
    direct    the engine's own HTTP server (uvicorn); the floor, no gateway at all
    relay     a plain FastAPI deployment that checks nothing and relays the direct server's bytes
    two_hop   a plain FastAPI deployment -> handle stream -> an engine deployment, one item per token
    moray     the gateway as it is served: keys, validation, metrics, router, pushed tokens
    streamed  the same gateway on its fallback path
    metered   moray, with a key whose plan has five limits
"""

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from cluster.family import Family, parse
from cluster.request import Chat, Generation, Piece

FAMILY = """
name: bench
accelerator: cpu
gpu_budget_gpus: 1
state_folder: {folder}
gateway: {{port: {port}, tokens: {tokens}}}
cells: [{{name: bench, gpus: 1}}]
tiers:
  sim:
    names: [sim]
    checkpoint: none
    engine: simulated
    context_tokens: 4096
    kv_tokens: 4000000
    max_running: 1024
    max_waiting: 1024
    prefill_chunk_tokens: 4096
    slo: {{ttft_s: 1, tpot_ms: 50}}
    price: {{input_usd_per_mtok: 1, output_usd_per_mtok: 1}}
    replicas: {{min: 1, max: 1, initial: 1}}
    cost: {{a_ms: 10, b_ms_per_seq: 0, c_ms_per_ktok: 0, prefill_us_per_token: {{1: 0.001}}, source: set here}}
plans:
  measured:
    tiers: [sim]
    requests_per_minute: 1000000000
    tokens_per_minute: 1000000000
    gpu_seconds_per_minute: 1000000000
    concurrent: 1000000
    budget_usd_per_month: 1000000000
"""


def family(port: int, folder: str, tokens: str) -> Family:
    return parse(FAMILY.format(port=port, folder=folder, tokens=tokens), "gateway_targets.py")


def parsed(body: bytes) -> Chat:
    from deployments.gateway.wire import parse_chat

    return parse_chat(body, "req", int(time.time()), 0)


async def events(engine: Any, body: bytes, request_id: str) -> AsyncIterator[bytes]:
    """The same events that the gateway sends, one per token, straight from the engine."""
    from deployments.gateway.wire import ChatRendering

    chat = parsed(body)
    pieces: asyncio.Queue[Piece] = asyncio.Queue()
    generation = Generation(request_id=request_id, prompt=engine.encode(chat.messages), sampling=chat.sampling)
    engine.submit(generation, pieces.put_nowait)
    render = ChatRendering(chat, engine.label)
    try:
        yield render.role()
        while True:
            piece = await pieces.get()
            yield render.piece(piece)
            if piece.last:
                assert piece.usage is not None
                yield render.end(piece, piece.usage)
                return
    finally:
        engine.cancel(request_id)


def direct(port: int, spec: Family) -> None:
    import itertools

    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.responses import StreamingResponse

    from deployments.engines.simulated import SimulatedEngine

    engine = SimulatedEngine(spec.tiers["sim"])
    ids = itertools.count()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await engine.start()
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> StreamingResponse:
        return StreamingResponse(events(engine, await request.body(), str(next(ids))), media_type="text/event-stream")

    @app.get("/health")
    async def health() -> str:
        return "ok"

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


def relay_application(engine_port: int) -> Any:
    from fastapi import FastAPI, Request
    from fastapi.responses import StreamingResponse
    from ray import serve

    class Relay:
        def __serve_build_asgi_app__(self) -> FastAPI:
            import aiohttp

            app = FastAPI()
            session: list[aiohttp.ClientSession] = []

            @app.post("/v1/chat/completions")
            async def chat(request: Request) -> StreamingResponse:
                if not session:
                    session.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
                body = await request.body()

                async def relayed() -> AsyncIterator[bytes]:
                    url = f"http://127.0.0.1:{engine_port}/v1/chat/completions"
                    async with session[0].post(url, data=body) as answer:
                        async for chunk in answer.content.iter_any():
                            yield chunk

                return StreamingResponse(relayed(), media_type="text/event-stream")

            return app

    return (
        serve.deployment(serve.ingress()(Relay))
        .options(max_ongoing_requests=10_000, ray_actor_options={"num_cpus": 0.01})
        .bind()
    )


def two_hop_application(spec: Family) -> Any:
    import itertools

    from fastapi import FastAPI, Request
    from fastapi.responses import StreamingResponse
    from ray import serve

    class EngineReplica:
        async def __init__(self) -> None:  # type: ignore[misc]  # Serve awaits it
            from deployments.engines.simulated import SimulatedEngine

            self.engine = SimulatedEngine(spec.tiers["sim"])
            await self.engine.start()
            self.ids = itertools.count()

        async def chat(self, body: bytes) -> AsyncIterator[bytes]:
            async for event in events(self.engine, body, str(next(self.ids))):
                yield event

    class Ingress:
        def __init__(self, engine: Any) -> None:
            self.engine = engine.options(stream=True)

        def __serve_build_asgi_app__(self) -> FastAPI:
            app = FastAPI()

            @app.post("/v1/chat/completions")
            async def chat(request: Request) -> StreamingResponse:
                stream = self.engine.chat.remote(await request.body())
                return StreamingResponse(stream, media_type="text/event-stream")

            return app

    options = {"max_ongoing_requests": 10_000, "ray_actor_options": {"num_cpus": 0.01}}
    engine = serve.deployment(EngineReplica).options(**options).bind()
    return serve.deployment(serve.ingress()(Ingress)).options(**options).bind(engine)


def served(target: str, port: int, folder: str) -> None:
    from deployments import local

    spec = family(port, folder, "streamed" if target == "streamed" else "pushed")
    with contextlib.ExitStack() as stack:
        engine_port = 0
        if target == "relay":
            engine_port = local.free_ports(1)[0]
            mock = subprocess.Popen([sys.executable, __file__, "direct", str(engine_port)], stdin=subprocess.PIPE)
            stack.callback(mock.wait)
            stack.callback(mock.terminate)
        stack.enter_context(local.cluster(spec))
        from ray import serve
        from ray.serve.config import HTTPOptions, ProxyLocation

        serve.start(proxy_location=ProxyLocation.HeadOnly, http_options=HTTPOptions(host="127.0.0.1", port=port))
        key = ""
        match target:
            case "relay":
                targets = [serve.RunTarget(relay_application(engine_port), name="moray")]
            case "two_hop":
                targets = [serve.RunTarget(two_hop_application(spec), name="moray")]
            case _:
                from deployments.app import applications
                from deployments.stores.keys import KeyStore

                plan = "measured" if target == "metered" else None
                key, _ = KeyStore(Path(folder) / "keys.sqlite").create("bench", time.time(), plan=plan)
                targets = applications(spec)
        serve.run_many(targets)
        print(json.dumps({"ready": True, "key": key}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    target, port = sys.argv[1], int(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        if target == "direct":
            direct(port, family(port, folder, "pushed"))
        else:
            served(target, port, folder)
