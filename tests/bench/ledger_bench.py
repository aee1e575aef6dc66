"""What keys, limits and the ledger cost: time added to a request, and CPU beside LiteLLM's proxy on the same engine.

`added`: the gateway in this process, a replica that answers at once, one request after the other: with a key
whose plan has five limits, on each store, and with none of key, limits and ledger; in turns, medians. `litellm`: one
tier of a simulated engine under streams of 64 tokens, ours with such a key and the whole process tree counted, Ray,
HAProxy and the engine too; LiteLLM's with the proxy alone counted, the engine behind it not. LiteLLM keeps keys,
limits and spend in a database; here it has none: it checks its master key and prices the answers, no more.
"""

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from unittest.mock import patch

import httpx
import uvloop
from bench.gateway_bench import cpu_s, load, ready, since_s, tree
from redis_server import redis_server
from sdk import served
from shell import Exchange

from cluster.access import KeyRecord
from deployments.gateway.booking import Bookings, journal_of
from deployments.local import free_ports
from deployments.stores.keys import KEYS_FILE, KeyStore

HERE = Path(__file__).parent
STREAMS, SECONDS, WARM_UP_S, PASSES = 64, 8, 3, 3
REQUESTS, ROUNDS = 100, 7
PLAN = {
    "tiers": ["mini"],
    "requests_per_minute": 1_000_000_000,
    "tokens_per_minute": 1_000_000_000,
    "gpu_seconds_per_minute": 1e9,
    "concurrent": 1_000_000,
    "budget_usd_per_month": 1e9,
}
AIM = {"added_p50_ms_sqlite": 1.0, "added_p50_ms_redis": 0.7, "cpu_vs_litellm": 0.2}
BODY = json.dumps({"model": "mini", "messages": [{"role": "user", "content": "go " * 50}], "max_tokens": 64}).encode()


def run(part: str = "added,litellm", litellm: str | None = None) -> dict[str, Any]:
    """`litellm`: a Python that has litellm[proxy]; without one that part is left out."""
    figures: dict[str, Any] = {}
    if "added" in part:
        figures |= uvloop.run(_added())  # the loop that Ray gives a gateway
    if "litellm" in part and litellm is not None:
        figures |= _beside(litellm)
    met = all(figures[name] <= aim for name, aim in AIM.items() if name in figures)
    return {"figures": figures, "aim": AIM, "met": met and set(AIM) <= set(figures), "runs": PASSES}


async def _added() -> dict[str, Any]:
    took_ms: dict[str, list[float]] = {"bare": [], "sqlite": [], "redis": []}
    async with contextlib.AsyncExitStack() as stack:
        with redis_server("--appendonly", "yes") as redis:
            asked = {}
            for name, store in (("bare", "sqlite"), ("sqlite", "sqlite"), ("redis", redis.url)):
                asked[name] = await stack.enter_async_context(_gateway(store, bare=name == "bare"))
            for number in range(ROUNDS + 1):  # the first one warms up
                for name, ask in sorted(asked.items(), reverse=bool(number % 2)):
                    times_ms = [await ask() for _ in range(REQUESTS)]
                    took_ms[name] += times_ms if number else []
    p50 = {name: statistics.median(each) for name, each in took_ms.items()}
    p99 = {name: statistics.quantiles(each, n=100)[98] for name, each in took_ms.items()}
    return {
        "bare_p50_ms": p50["bare"],
        **{f"added_p50_ms_{name}": p50[name] - p50["bare"] for name in ("sqlite", "redis")},
        **{f"added_p99_ms_{name}": p99[name] - p99["bare"] for name in ("sqlite", "redis")},
    }


@contextlib.asynccontextmanager
async def _gateway(store: str, *, bare: bool) -> AsyncIterator[Callable[[], Awaitable[float]]]:
    """One request of it, in milliseconds until its whole answer is there."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        async with served(folder, plans={"measured": PLAN}, store=store) as here:
            secret, record = KeyStore(folder / KEYS_FILE).create("bench", time.time(), plan="measured")
            gateway, chat = here.gateway, here.gateway._chat
            journal = journal_of(gateway._family, "bench", gateway._metrics)  # as served: it writes in a thread
            chat._bookings = _Unbooked(chat._bookings) if bare else Bookings(journal, chat._bookings._quotas)
            headers = {"authorization": f"Bearer {secret}"}

            async def ask() -> float:
                begun_s = time.perf_counter()
                with _known(record) if bare else contextlib.nullcontext():
                    exchange = await Exchange(here.app, "/v1/chat/completions", BODY, headers=headers).finished()
                assert exchange.status == 200, exchange.body
                return (time.perf_counter() - begun_s) * 1e3

            try:
                yield ask
            finally:
                journal.close()


def _known(record: KeyRecord) -> AbstractContextManager[Any]:
    return patch("deployments.gateway.chat.authorize", lambda *_: record)


class _Unbooked:
    """Neither limits nor a ledger."""

    def __init__(self, before: Bookings) -> None:
        self._quotas, self._journal = before._quotas, before._journal  # to be closed

    def of(self, record: KeyRecord, *_: object) -> Self:
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def follow(self, course: object) -> None: ...

    async def settle(self, *_: object) -> None: ...


def _beside(python: str) -> dict[str, Any]:
    ours, theirs = [], []
    for _ in range(PASSES):
        ours.append(_ours())
        theirs.append(_theirs(python))
        print(json.dumps({"moray": ours[-1], "litellm": theirs[-1]}), file=sys.stderr, flush=True)
    figures = {}
    for name, rows in (("moray", ours), ("litellm", theirs)):
        for key in ("cpu_ms", "requests_per_s", "ttft_p50_ms"):
            figures[f"{name}_{key}"] = statistics.median(row[key] for row in rows)
    broken = sum(row["broken"] for row in ours + theirs)
    return figures | {"cpu_vs_litellm": figures["moray_cpu_ms"] / figures["litellm_cpu_ms"], "broken": broken}


def _ours() -> dict[str, float]:
    port = free_ports(1)[0]
    with _process(str(HERE / "gateway_targets.py"), "metered", str(port)) as server:
        key = ready(server, "metered", port)
        return _loaded(port, key, server.pid)


def _theirs(python: str) -> dict[str, float]:
    engine_port, port = free_ports(2)
    config = {
        "model_list": [
            {
                "model_name": "sim",
                "litellm_params": {
                    "model": "openai/sim",
                    "api_base": f"http://127.0.0.1:{engine_port}/v1",
                    "api_key": "none",
                    "input_cost_per_token": 1e-6,
                    "output_cost_per_token": 1e-6,
                },
            }
        ],
        "general_settings": {"master_key": "sk-bench"},
        "litellm_settings": {"telemetry": False},
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(json.dumps(config))
        words = ("--config", str(file), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1")
        with (
            _process(str(HERE / "gateway_targets.py"), "direct", str(engine_port)),
            _process(str(Path(python).with_name("litellm")), *words, python=python) as proxy,
        ):
            with httpx.Client(transport=httpx.HTTPTransport(retries=100), timeout=60) as client:
                client.get(f"http://127.0.0.1:{port}/health/liveliness").raise_for_status()
            return _loaded(port, "sk-bench", proxy.pid)


@contextlib.contextmanager
def _process(*words: str, python: str = sys.executable) -> Any:
    pipe = subprocess.PIPE
    process = subprocess.Popen([python, *words], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
    try:
        yield process
    finally:
        if "metered" in words:
            process.communicate("")  # it ends with its standard input
        else:
            process.terminate()
        process.wait()


def _loaded(port: int, key: str, pid: int) -> dict[str, float]:
    load(port, key, STREAMS, WARM_UP_S)
    before = cpu_s(tree(pid))
    result = load(port, key, STREAMS, SECONDS)
    return {
        "cpu_ms": since_s(before) * 1e3 / max(1, result["finished"]),
        "requests_per_s": result["finished"] / result["seconds"],
        "ttft_p50_ms": result["ttft_ms"]["p50"],
        "broken": result["broken"],
    }
