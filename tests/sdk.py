"""The official client, spoken to the whole gateway in this process, with simulated replicas where a test gives none."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
from openai import AsyncOpenAI
from shell import Exchange, Handle, Replica, application, family
from starlette.types import ASGIApp

from cluster.family import Family
from deployments import seen
from deployments.stores.keys import KEYS_FILE, KeyStore


class Served:
    """`owner`: the id of the client's key."""

    def __init__(self, gateway: Any, app: ASGIApp, key: str, folder: Path, handle: Handle) -> None:
        self.gateway, self.app, self.folder, self.handle = gateway, app, folder, handle
        self._key = key
        self.client = self._client(key)
        self.owner = KeyStore(folder / KEYS_FILE).list()[-1].id

    def other(self, name: str, plan: str | None = None) -> AsyncOpenAI:
        """The client of another key."""
        return self._client(KeyStore(self.folder / KEYS_FILE).create(name, 0.0, plan)[0])

    async def raw(self, method: str, path: str, body: bytes = b"") -> Exchange:
        headers = {"authorization": f"Bearer {self._key}"}
        return await Exchange(self.app, path, body, method=method, headers=headers).finished()

    def _client(self, key: str) -> AsyncOpenAI:
        transport = httpx2.ASGITransport(app=self.app, raise_app_exceptions=False)
        web = httpx2.AsyncClient(transport=transport)
        return AsyncOpenAI(api_key=key, base_url="http://moray/v1", http_client=web, max_retries=0)


@contextlib.asynccontextmanager
async def served(
    folder: Path, target: object = None, *, gateway: dict[str, Any] | None = None, **tier: Any
) -> AsyncIterator[Served]:
    """Tiers mini and turbo, awake; what `target` says, or a simulated replica. The gateway ends as a crash ends it."""
    limits = {"tokens": "streamed"} | (gateway or {})
    spec: Family = family(folder, gateway=limits, **tier)
    handle = Handle(target or await Replica.started(spec))
    before = dict(seen._replicas), list(seen._listeners)
    for name in spec.tiers:
        seen.publish(name, (seen.SeenReplica(replica_id=f"{name}-1", metrics_address=""),))
    made, app, key = await application(spec, {name: handle for name in spec.tiers})
    try:
        yield Served(made, app, key, folder, handle)
    finally:
        await crashed(made)
        seen._replicas.clear()
        seen._replicas.update(before[0])
        seen._listeners[:] = before[1]


async def crashed(gateway: Any) -> None:
    """What it was doing is over, and nobody was told."""
    for task in getattr(gateway, "background", ()):
        task.cancel()
        with contextlib.suppress(BaseException):
            await task
