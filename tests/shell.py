"""Builders for tests of the shell: a small family, a replica in this process, Serve's handle without Serve."""

import asyncio
import contextlib
import json
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping, MutableMapping
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

from starlette.types import ASGIApp

from cluster.family import Family
from cluster.request import Chat, Message, Sampling
from cluster.usage import Usage
from deployments.gateway.app import Gateway
from deployments.stores.keys import KEYS_FILE, KeyStore
from deployments.stores.usage_journal import Journal
from deployments.tier import TierReplica

TIER: dict[str, Any] = {
    "checkpoint": "none",
    "engine": "simulated",
    "context_tokens": 2048,
    "kv_tokens": 65_536,
    "slo": {"ttft_s": 1, "tpot_ms": 50},
    "price": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2},
    "replicas": {"min": 0, "max": 2, "initial": 0},
    "cost": {"a_ms": 10, "b_ms_per_seq": 0, "c_ms_per_ktok": 0, "prefill_us_per_token": {1: 0.001}, "source": "a test"},
}
VIDEO: dict[str, Any] = {
    "names": ["sora-2"],
    "checkpoint": "none",
    "sizes": ["64x64", "96x64"],
    "seconds": [1, 2],
    "fps": 8,
    "steps": 4,
    "slo": {"deadline_s": 60},
    "price": {"usd_per_second": 0.1},
    "replicas": {"min": 0, "max": 1, "initial": 0},
    "cost": {"base_s": 0.1, "linear_s_per_mtok": 0, "quadratic_s_per_mtok2": 0, "source": "a test"},
}


def family(folder: Path, *, gateway: dict[str, Any] | None = None, video: bool = False, **tier: Any) -> Family:
    """Tiers mini and turbo, alike, on a simulated engine of 10 ms a step."""
    return Family.model_validate(
        {
            "name": "tested",
            "accelerator": "cpu",
            "gpu_budget_gpus": 8,
            "state_folder": str(folder),
            "gateway": {"coalesce_ms": 0, "tokens": "streamed"} | (gateway or {}),
            "cells": [{"name": "here", "gpus": 8}],
            "tiers": {name: TIER | {"names": [name]} | tier for name in ("mini", "turbo")},
            "video": VIDEO if video else None,
        }
    )


def chat(request_id: str = "req", *, stream: bool = True, **sampling: Any) -> Chat:
    said = (Message(role="user", content="hello"),)
    return Chat(request_id=request_id, model="mini", messages=said, sampling=Sampling(**sampling), stream=stream)


class Replica(TierReplica):
    """Serve awaits the constructor and the finalizer; Python's collector would only forget the latter.

    One that ends itself must not end the tests: it only says so.
    """

    exited = False

    def _exit(self) -> None:
        self.exited = True

    @classmethod
    async def started(cls, family: Family, tier: str = "mini") -> "Replica":
        replica = object.__new__(cls)
        with patch("deployments.measure.start_http_server", return_value=(Mock(server_port=1), None)):
            await replica.__init__(  # type: ignore[misc]
                tier,
                family.tiers[tier],
                family.accelerator,
                family.gateway.coalesce_ms,
                family.gateway.coalesce_above_streams,
            )
        return replica

    def __del__(self) -> None:  # type: ignore[override]
        pass


class Handle:
    """Calls run as tasks of this process. As with Serve, only `cancel` of a response reaches the call itself."""

    def __init__(self, target: object, *, stream: bool = False) -> None:
        self._target = target
        self._stream = stream
        self.calls: list[Response | Items] = []

    def _init(self) -> None:
        """Its router would be made."""

    def options(self, *, stream: bool) -> "Handle":
        other = Handle(self._target, stream=stream)
        other.calls = self.calls
        return other

    def __getattr__(self, name: str) -> "_Method":
        return _Method(self, getattr(self._target, name))


class _Method:
    def __init__(self, handle: Handle, method: Callable[..., Any]) -> None:
        self._handle = handle
        self._method = method

    def remote(self, *arguments: Any) -> "Response | Items":
        called = self._method(*_shipped(arguments))
        response = Items(called) if self._handle._stream else Response(called)
        self._handle.calls.append(response)
        return response


class Response:
    def __init__(self, call: Awaitable[Any]) -> None:
        self.task = asyncio.ensure_future(call)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._result().__await__()

    async def _result(self) -> Any:
        await asyncio.wait((self.task,))
        if self.task.cancelled():
            raise CallCancelled
        return _shipped(self.task.result())

    def cancel(self) -> None:
        self.task.cancel()


class Items:
    def __init__(self, call: AsyncIterator[Any]) -> None:
        self._ready: asyncio.Queue[Any] = asyncio.Queue()
        self.task = asyncio.ensure_future(self._pull(call))
        self.task.add_done_callback(lambda _: self._ready.put_nowait(self.task))

    async def _pull(self, call: AsyncIterator[Any]) -> None:
        async for item in call:
            self._ready.put_nowait(_shipped(item))

    def __aiter__(self) -> "Items":
        return self

    async def __anext__(self) -> Any:
        item = await self._ready.get()
        if item is not self.task:
            return item
        if self.task.cancelled():
            raise CallCancelled
        self.task.result()
        raise StopAsyncIteration

    def cancel(self) -> None:
        self.task.cancel()


class CallCancelled(Exception):
    """What Serve raises where a call was cancelled elsewhere; no CancelledError of the caller's own."""


def _shipped(value: Any) -> Any:
    """As it looks on the other side of a process border."""
    return pickle.loads(pickle.dumps(value))


class AtOnce(Journal):
    """Writes without a thread, for which virtual time cannot wait."""

    def start(self) -> None:
        pass

    def put(self, event: Usage) -> None:
        super().put(event)
        self.flush()

    def forget(self, event_id: str) -> None:
        super().forget(event_id)
        self.flush()


async def application(
    family: Family, tiers: dict[str, Handle], *, key: str = "tester", background: bool = False
) -> tuple[Gateway, ASGIApp, str]:
    """The gateway as Serve would build it, and a key of its. `gateway._heard` is the control loop's voice.

    `background`: whether it looks for what is left to do, in threads, which no virtual time waits for.
    """
    assert family.gateway.tokens == "streamed", "a listener would outlive its test, and its socket fail another"
    secret, _ = KeyStore(Path(family.state_folder) / KEYS_FILE).create(key, 0.0)
    gateway = object.__new__(Gateway)
    with (
        patch("deployments.gateway.app.serve.get_deployment_handle", lambda tier, app_name: tiers[tier]),
        patch("deployments.gateway.booking.Journal", AtOnce),
        patch("deployments.gateway.app.node_address", return_value="127.0.0.1"),
        patch("deployments.gateway.metrics.start_http_server", return_value=(Mock(server_port=1), None)),
        patch("deployments.gateway.app.Announcer", Mock(return_value=Mock(run=_nothing))),
        contextlib.ExitStack() as unless,
    ):
        for loop in () if background else ("Runs.run", "BatchRuns.run", "swept", "sweeping"):
            unless.enter_context(patch(f"deployments.gateway.app.{loop}", _nothing))
        await gateway.__init__(family, asyncio.get_running_loop().time)  # type: ignore[misc]
    return gateway, gateway.__serve_build_asgi_app__(), secret


async def _nothing(*_: object) -> None:
    pass


class Exchange:
    """One HTTP request, spoken to an ASGI application as a server speaks it."""

    def __init__(
        self,
        app: ASGIApp,
        path: str,
        *parts: bytes,
        method: str = "POST",
        query: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.sent: list[tuple[float, MutableMapping[str, Any]]] = []
        self._parts = list(parts) or [b""]
        self._closed = asyncio.get_running_loop().create_future()
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
        }
        self.task = asyncio.ensure_future(app(scope, self._receive, self._send))

    async def _receive(self) -> MutableMapping[str, Any]:
        if self._parts:
            part = self._parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(self._parts)}
        await self._closed
        return {"type": "http.disconnect"}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        self.sent.append((asyncio.get_running_loop().time(), message))

    async def finished(self) -> "Exchange":
        await self.task
        return self

    @property
    def status(self) -> int:
        return int(self.sent[0][1]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0][1]["headers"]}

    @property
    def chunks(self) -> list[bytes]:
        return [message["body"] for _, message in self.sent[1:]]

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    def json(self) -> Any:
        return json.loads(self.body)
