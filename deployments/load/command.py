"""`moray load`: a workload sent to a live server, and what came back."""

import argparse
import asyncio
import contextlib
import functools
import gc
import importlib.metadata
import json
import resource
import sys
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from cluster.errors import ConfigurationError
from cluster.workload import Workload
from deployments.load import keys as keyring
from deployments.load.actions import act, ended, told
from deployments.load.answer import Answer
from deployments.load.client import Course, Wire, models, play, session
from deployments.load.course import Plan, course, work
from deployments.load.options import Options, options
from deployments.load.plan import Words
from deployments.load.report import promised, record, report, tables
from deployments.load.videos import Studio

BEGIN_S = 0.2  # from the last preparation to the run's time 0
SHOWN_S = 0.5
NONE_LISTED = (404, 405, 501)  # of servers without a list of models


def load(arguments: argparse.Namespace, console: Console) -> int:
    """Exit code 130 where Ctrl-C ended the run: what had come till then is reported.

    Raises ConfigurationError: an option is wrong, or nobody answers.
    """
    if arguments.load_verb == "compare":
        from deployments.load.compare import compare

        return compare(arguments, console)
    asked = options(arguments)
    # uvloop.run would not turn Ctrl-C into a cancellation on Python 3.11
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found, answers = runner.run(_loaded(asked, work(asked)))
    if asked.records is not None:
        with asked.records.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(record(answer)) + "\n" for answer in answers)
    if asked.html is not None:
        from deployments.load.page import page  # matplotlib is slow to import

        asked.html.write_text(page(found), encoding="utf-8")
    if asked.as_json:
        sys.stdout.write(json.dumps(found, indent=2, allow_nan=False) + "\n")
    else:
        console.print(tables(found))
    return 130 if found["interrupted"] else 0


async def _loaded(asked: Options, work: Workload) -> tuple[dict[str, Any], list[Answer]]:
    _allow_connections()
    async with session(asked.url, asked.silence_s) as client:
        listed = await _listed(client, asked)
        plan = course(asked, work, listed)
        run = _Run(asked, plan, client)
        await run.play()
    found = report(
        run.course.answers,
        promised(listed, asked.promises),
        run.seconds,
        run.studio.videos,
        warm_up_s=asked.warm_up_s,
        planned=len(plan.requests),
    )
    more = {"began_unix_s": time.time() - run.now(), "interrupted": run.interrupted, "conditions": _conditions(asked)}
    return found | more | {"actions": told(plan.actions)}, run.course.answers


class _Run:
    """One pass over the plan. `now`: seconds since its begin, below 0 before."""

    def __init__(self, asked: Options, plan: Plan, client: aiohttp.ClientSession) -> None:
        self.course = Course()
        self.interrupted = False
        self.seconds = 0.0
        self._asked = asked
        self._plan = plan
        self._wire = Wire(client, Words(asked.work.seed), self.now, asked.keys, asked.body)
        self.studio = Studio(client, self.now, asked.keys)
        gc.freeze()  # what is there stays; a look at it would hold up every stream
        self._begun_s = time.monotonic() + BEGIN_S  # not the loop's time, which uvloop rounds to milliseconds

    def now(self) -> float:
        return time.monotonic() - self._begun_s

    async def play(self) -> None:
        """Until the last answer has ended, or Ctrl-C."""
        plan, asked = self._plan, self._asked
        async with _progress(self.course, self.studio, plan) as bar:
            tell = functools.partial(bar.console.print, markup=False, soft_wrap=True)
            acting = asyncio.ensure_future(act(plan.actions, asked.commands, self.now, tell))
            try:
                async with asyncio.TaskGroup() as working:
                    working.create_task(play(plan.requests, self._wire, self.now, self.course))
                    working.create_task(self.studio.order(plan.orders, asked.video_wait_s))
            except asyncio.CancelledError:
                self.interrupted = True
                acting.cancel()
                task = asyncio.current_task()
                assert task is not None
                task.uncancel()
            self.seconds = self.now()
            await ended(acting)


def _conditions(asked: Options) -> dict[str, Any]:
    """What a second run must share to be compared. No secret is among them."""
    made, scenario = asked.synthetic, asked.scenario
    return {
        "moray": importlib.metadata.version("moray"),
        "url": asked.url,
        "traces": [trace.name("") for trace in asked.work.traces],
        "synthetic": f"{made.rate_rps:g}:{made.prompt_tokens}:{made.output_tokens}" if made is not None else None,
        "scenario": scenario.model_dump(mode="json") if scenario is not None else None,
        "scale": asked.work.scale,
        "speed": asked.speed,
        "start_s": asked.work.start_s,
        "duration_s": asked.work.duration_s,
        "warm_up_s": asked.warm_up_s,
        "seed": asked.work.seed,
        "models": asked.shares,
        "map": asked.names,
        "tenants": asked.tenants,
        "body": asked.body,
        "promises": {name: f"{one.ttft_s:g}:{one.tpot_ms:g}" for name, one in asked.promises.items()},
        "videos_per_hour": asked.videos_per_hour,
        "silence_s": asked.silence_s,
        "actions_run": sorted(asked.commands),
    }


def _allow_connections() -> None:
    """Every request under way holds one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _listed(client: aiohttp.ClientSession, asked: Options) -> tuple[Mapping[str, Any], ...]:
    """Empty where the server has no list."""
    url = asked.url
    try:
        listed = await models(client, keyring.of(next(iter(asked.tenants)), asked.keys))
    except aiohttp.ClientResponseError as error:
        if error.status in NONE_LISTED and asked.shares:
            return ()
        mend = "give a valid --key" if error.status in (401, 403) else "mend the address, or name --models"
        raise ConfigurationError(f"--url: {url}/v1/models answered {error.status}; 200 is needed; {mend}") from error
    except (aiohttp.ClientError, OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"--url: {url}: {error or type(error).__name__}; an answer is needed; start the server or mend the address"
        ) from error
    if not listed:
        raise ConfigurationError(f"--url: {url} lists no models; one at least is needed; ask another server")
    return listed


@contextlib.asynccontextmanager
async def _progress(course: Course, studio: Studio, plan: Plan) -> AsyncIterator[Progress]:
    """A line on a terminal, drawn twice a second: the client is to be cheap. Never on standard output."""
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("sending", total=len(plan.requests) + len(plan.orders), told="")

        async def show() -> None:
            while True:
                sent = len(course.answers)
                videos = sum(one.status not in ("not sent", "under way") for one in studio.videos)
                told = f"{course.ended} of {len(plan.requests)} ended, {sent - course.ended} under way"
                told += f", {videos} of {len(plan.orders)} videos" if plan.orders else ""
                doing = "sending" if sent < len(plan.requests) else "waiting"
                bar.update(task, completed=course.ended + videos, told=told, description=doing, refresh=True)
                await asyncio.sleep(SHOWN_S)

        showing = asyncio.ensure_future(show())
        try:
            yield bar
        finally:
            showing.cancel()
