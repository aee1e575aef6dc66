"""The official client, spoken to the whole gateway in this process, whose replicas say what a test gives."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
from openai import AsyncOpenAI
from shell import Exchange, Handle, application, family
from starlette.types import ASGIApp

from cluster.errors import MorayError
from cluster.family import Family
from cluster.request import Chat, FinishReason, Piece, ToolCall, Usage
from deployments import seen
from deployments.gateway.text_wire import rendering
from deployments.stores.keys import KEYS_FILE, KeyStore
from deployments.stream import Outcome

USAGE = Usage(prompt_tokens=4, completion_tokens=10, cached_tokens=3)


class Served:
    """`owner`: the id of the client's key."""

    def __init__(self, gateway: Any, app: ASGIApp, key: str, folder: Path, handle: Handle) -> None:
        self.gateway, self.app, self.folder, self.handle = gateway, app, folder, handle
        self.key = key
        self.client = self.as_key(key)
        self.owner = KeyStore(folder / KEYS_FILE).list()[-1].id

    def other(self, name: str, plan: str | None = None) -> AsyncOpenAI:
        """The client of another key."""
        return self.as_key(KeyStore(self.folder / KEYS_FILE).create(name, 0.0, plan)[0])

    def as_key(self, key: str) -> AsyncOpenAI:
        transport = httpx2.ASGITransport(app=self.app, raise_app_exceptions=False)
        web = httpx2.AsyncClient(transport=transport)
        return AsyncOpenAI(api_key=key, base_url="http://moray/v1", http_client=web, max_retries=0)

    async def raw(self, method: str, path: str, body: bytes = b"") -> Exchange:
        headers, (path, _, query) = {"authorization": f"Bearer {self.key}"}, path.partition("?")
        return await Exchange(self.app, path, body, method=method, query=query, headers=headers).finished()


@contextlib.asynccontextmanager
async def served(
    folder: Path,
    target: object = None,
    *,
    gateway: dict[str, Any] | None = None,
    video: dict[str, Any] | None = None,
    plans: dict[str, Any] | None = None,
    store: str = "sqlite",
    **tier: Any,
) -> AsyncIterator[Served]:
    """Tiers mini and turbo, awake, which say what `target` says; `store`: of limits. The gateway ends as by a crash."""
    limits = {"tokens": "streamed"} | (gateway or {})
    spec = Family.model_validate(
        family(folder, gateway=limits, **tier).model_dump()
        | {"video": video, "plans": plans or {}, "limits": {"store": store}}
    )
    handle = Handle(target or Replies("Hello"))
    before = dict(seen._replicas), list(seen._listeners)
    for name in spec.tiers:
        seen.publish(name, (seen.SeenReplica(replica_id=f"{name}-1", metrics_address=""),))
    made, app, key = await application(spec, {name: handle for name in spec.tiers}, background=True)
    try:
        yield Served(made, app, key, folder, handle)
    finally:
        await crashed(made)
        await closed(made)
        seen._replicas.clear()
        seen._replicas.update(before[0])
        seen._listeners[:] = before[1]


async def closed(gateway: Any) -> None:
    """Its files; a test's process would have thousands open in the end."""
    bookings = gateway._chat._bookings
    await bookings._quotas._limits.close()
    for store in (bookings._journal._store, gateway._keys, gateway._admin._usage, gateway._runs._objects):
        store.close()


async def crashed(gateway: Any) -> None:
    """What it was doing is over, and nobody was told."""
    batches, runs = gateway._batch_runs, gateway._runs
    for task in (
        gateway._answering,
        gateway._batching,
        gateway._sweeping,
        gateway._tidying,
        *runs._tasks.values(),
        *batches.tasks.values(),
    ):
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


class Replies:
    """A replica that says what a test gives, piece by piece, and ends when it may. `error`: how it ends instead."""

    def __init__(
        self,
        *texts: str,
        calls: Sequence[ToolCall] = (),
        finish: FinishReason = "stop",
        step_s: float = 0.0,
        error: MorayError | None = None,
    ) -> None:
        self.texts, self.step_s, self.error = texts, step_s, error
        self.last = Piece(tool_calls=tuple(calls), finish_reason="tool_calls" if calls else finish)
        self.asked: list[Chat] = []
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def complete(self, chat: Chat) -> Outcome:
        self.asked.append(chat)
        await asyncio.sleep(self.step_s * len(self.texts))
        await self.may_end.wait()
        if self.error is not None:
            return Outcome(error=self.error)
        body = rendering(chat, "", None).whole("".join(self.texts), (), self.last, USAGE)
        return Outcome(body=body, usage=USAGE, total_s=1.0)

    async def stream(self, chat: Chat) -> AsyncIterator[tuple[bytes, tuple[int, ...]] | Outcome]:
        self.asked.append(chat)
        render = rendering(chat, "", None)
        yield render.role(), ()
        for index, text in enumerate(self.texts):
            await asyncio.sleep(self.step_s)
            yield render.piece(Piece(text=text)), (index,)
        await self.may_end.wait()
        if self.error is not None:
            yield Outcome(error=self.error)
            return
        yield render.end(self.last, USAGE), ()
        yield Outcome(usage=USAGE, total_s=1.0)

    def messages(self) -> list[tuple[str, str]]:
        """Of the last chat."""
        return [(message.role, message.content) for message in self.asked[-1].messages]
