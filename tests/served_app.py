"""The whole gateway behind a real HTTP server, on a thread of this process: replicas are of this process, too."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from integration.server import free_port
from shell import Handle, Replica, application, family
from starlette.types import ASGIApp

from cluster.access import SCOPES, Grant
from cluster.family import Family
from deployments import seen
from deployments.gateway.app import Gateway

WAIT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """`key`: with all scopes. `call` runs something on the gateway's loop and gives what it gives."""

    url: str
    port: int
    key: str
    folder: Path
    gateway: Gateway
    app: ASGIApp
    loop: asyncio.AbstractEventLoop

    @property
    def auth(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def another(self, *scopes: str) -> str:
        """A further key."""
        return self.gateway._keys.create("another", 0.0, None, Grant(scopes=scopes or tuple(SCOPES)))[0]

    def call(self, work: Callable[[], Any]) -> Any:
        async def ran() -> Any:
            return work()

        return asyncio.run_coroutine_threadsafe(ran(), self.loop).result(WAIT_S)


@contextlib.contextmanager
def served(
    folder: Path, parts: dict[str, Any] | None = None, around: Callable[[Replica], object] = lambda replica: replica
) -> Iterator[Served]:
    """Tiers mini and turbo, whose answers are short and quick, and video, which nobody renders.

    `parts`: of the family. `around`: what is called in the place of their replica.
    """
    cost = {"a_ms": 0.1, "b_ms_per_seq": 0, "c_ms_per_ktok": 0, "prefill_us_per_token": {1: 0.001}, "source": "a test"}
    spec = family(folder, video=True, context_tokens=256, cost=cost)
    spec = Family.model_validate(spec.model_dump() | (parts or {}))
    ready: queue.Queue[Served] = queue.Queue()
    # Without a log of its own, as Serve runs it.
    config = uvicorn.Config("", port=free_port(), lifespan="off", log_config=None, access_log=False)
    config.timeout_graceful_shutdown = 1
    server = uvicorn.Server(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seen, "_replicas", {})
        patch.setattr(seen, "_listeners", [])
        thread = threading.Thread(target=lambda: asyncio.run(_run(spec, server, around, ready.put)), daemon=True)
        thread.start()
        try:
            yield ready.get(timeout=WAIT_S)
        finally:
            server.should_exit = True
            thread.join(WAIT_S)


async def _run(
    spec: Family, server: uvicorn.Server, around: Callable[[Replica], object], ready: Callable[[Served], None]
) -> None:
    handle = Handle(around(await Replica.started(spec)))
    for tier in spec.tiers:
        seen.publish(tier, (seen.SeenReplica(replica_id=f"{tier}-1", metrics_address=""),))
    gateway, app, _ = await application(spec, dict.fromkeys(spec.tiers, handle), background=True)
    server.config.app = app
    key, _ = gateway._keys.create("all", 0.0, None, Grant(scopes=tuple(SCOPES)))
    port, loop, folder = server.config.port, asyncio.get_running_loop(), Path(spec.state_folder)
    url = f"http://127.0.0.1:{port}"
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    ready(Served(url=url, port=port, key=key, folder=folder, gateway=gateway, app=app, loop=loop))
    await serving
