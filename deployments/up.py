"""`moray up`: the whole family on this machine, until Ctrl-C."""

import _thread
import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console

from cluster.errors import ConfigurationError, MorayError
from cluster.family import Family
from cluster.placement import declared_cells, plan, require
from deployments import local
from deployments.source import Source
from deployments.stores.keys import keys_of

POLL_S = 0.5
READY = """
[bold]{family}[/] is served at [bold]{url}[/]   (Ctrl-C stops it)

API key (shown once): [bold]{key}[/]

curl {url}/v1/chat/completions -H "Authorization: Bearer {key}" -H "Content-Type: application/json" \\
  -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "{prompt}"}}]}}'

from openai import OpenAI  # pip install openai
client = OpenAI(base_url="{url}/v1", api_key="{key}")
answer = client.chat.completions.create(model="{model}", messages=[{{"role": "user", "content": "{prompt}"}}])
print(answer.choices[0].message.content)
"""
PROMPT = "What is a prime number?"
SIMULATED = (
    "[bold]a rehearsal[/]: {nodes} nodes of {gpus} GPUs and all engines are simulated; Ray, placement, scaling and the "
    "gateway are real"
)


def up(source: Source, console: Console, nodes: int | None = None) -> None:
    """Serve until SIGINT or SIGTERM. Raises ConfigurationError or PlacementError before anything is started.

    `nodes`: simulated ones, as the family has been told by `local.rehearsed`.
    """
    text = source.file.read_text(encoding="utf-8")
    family = source.load()
    if nodes is None:
        local.check_size(family)
        local.check_engines(family)
        local.check_checkpoints(family)
    local.check_port(family.gateway.host, family.gateway.port)
    require(plan(family, declared_cells(family)))
    keys = keys_of(family)
    stopping = threading.Event()
    started_s = time.monotonic()
    with _signals(stopping) as listen:
        if nodes is not None:
            console.print(SIMULATED.format(nodes=nodes, gpus=family.cells[0].gpus), soft_wrap=True)
        console.print(f"starting Ray and {family.name} (tiers {', '.join(family.tiers)})")
        with local.cluster(family, nodes):
            listen()  # again: ray.init installs handlers of its own
            console.print(f"  Ray is up after {time.monotonic() - started_s:.1f} s")
            _deploy(family, console, stopping, started_s)
            if not stopping.is_set():
                key, _ = keys.create("made by moray up", time.time())
                _show(family, key, console)
                from deployments.update import Update

                Update(source, family, text, console).follow(stopping)
            console.print("stopping")


@contextlib.contextmanager
def _signals(stopping: threading.Event) -> Iterator[Callable[[], None]]:
    """Ctrl-C asks to stop, and goes on doing so while everything is stopped: an impatient second one breaks nothing."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]

    def listen() -> None:
        for number in numbers:
            # In a thread: `set` takes a lock, which the main thread may hold where a signal interrupts it.
            signal.signal(number, lambda *_: _thread.start_new_thread(stopping.set, ()))

    listen()
    try:
        yield listen
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _deploy(family: Family, console: Console, stopping: threading.Event, started_s: float) -> None:
    """Deploy in a thread and show what becomes ready, so that Ctrl-C is heard meanwhile."""
    from ray import serve
    from ray.serve.config import HTTPOptions, ProxyLocation

    logging.getLogger("ray.serve").setLevel(logging.WARNING)

    from deployments.app import applications, logs

    failure: list[BaseException] = []

    def run() -> None:
        try:
            serve.start(
                proxy_location=ProxyLocation.HeadOnly,
                http_options=HTTPOptions(host=family.gateway.host, port=family.gateway.port),
                logging_config=logs(family),
            )
            serve.run_many(applications(family))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    shown: set[str] = set()
    while thread.is_alive() and not stopping.is_set():
        thread.join(POLL_S)
        for name in _ready(serve) - shown:
            shown.add(name)
            console.print(f"  {name} is ready after {time.monotonic() - started_s:.1f} s")
    if failure and not stopping.is_set():
        raise explain(failure[0], serve)


def _ready(serve: Any) -> set[str]:
    try:
        applications = serve.status().applications.values()
    except Exception:  # not there yet
        return set()
    found = [item for each in applications for item in each.deployments.items()]
    return {name for name, each in found if each.replica_states.get("RUNNING")}


def explain(error: BaseException, serve: Any) -> MorayError:
    """Serve tells of a replica that cannot start in a traceback; the last line that names an error of ours is shown."""
    if isinstance(error, MorayError):
        return error
    text = str(error)
    with contextlib.suppress(Exception):
        applications = serve.status().applications.values()
        text += "".join(f"\n{each.message}" for app in applications for each in app.deployments.values())
    marks = ("CheckpointError: ", "ConfigurationError: ", "EngineFailed: ")
    lines = [line.split(mark, 1)[1] for line in text.splitlines() for mark in marks if mark in line]
    return ConfigurationError(lines[-1] if lines else f"serve: {text.strip()[-2000:]}")


def _show(family: Family, key: str, console: Console) -> None:
    host = "127.0.0.1" if family.gateway.host == "0.0.0.0" else family.gateway.host
    url = f"http://{host}:{family.gateway.port}"
    warm = [tier for tier in family.tiers.values() if tier.replicas.initial] or list(family.tiers.values())
    model = min(warm, key=lambda tier: tier.price.output_usd_per_mtok).names[0]
    text = READY.format(family=family.name, url=url, key=key, model=model, prompt=PROMPT)
    console.print(text, soft_wrap=True, highlight=False)
