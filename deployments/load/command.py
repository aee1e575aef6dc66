"""`moray load`: a workload sent to a live server, and what came back."""

import argparse
import asyncio
import contextlib
import gc
import json
import resource
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import aiohttp
import numpy as np
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from cluster.errors import ConfigurationError
from cluster.synthetic import Lengths, poisson
from cluster.workload import Workload
from deployments.load.client import Course, Wire, models, play, session
from deployments.load.options import Options, options
from deployments.load.plan import Request, Words, requests
from deployments.load.report import promised, record, report, tables
from deployments.load.videos import Video, order
from deployments.simulate_work import workload

BEGIN_S = 0.2  # from the last preparation to the run's time 0
SHOWN_S = 0.5


def load(arguments: argparse.Namespace, console: Console) -> int:
    """Raises ConfigurationError: an option is wrong, or nobody answers."""
    asked = options(arguments)
    work = _work(asked)
    found, course = uvloop.run(_loaded(asked, work))
    if asked.records is not None:
        with asked.records.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(record(answer)) + "\n" for answer in course.answers)
    if asked.as_json:
        sys.stdout.write(json.dumps(found, indent=2, allow_nan=False) + "\n")
    else:
        console.print(tables(found))
    return 0


def _work(asked: Options) -> Workload:
    made = asked.synthetic
    if made is None:
        return workload(asked.work)
    prompt, output = Lengths(median_tokens=made.prompt_tokens), Lengths(median_tokens=made.output_tokens)
    rate_rps = made.rate_rps * asked.work.scale
    return poisson(rate_rps, asked.work.duration_s or 0.0, prompt, output, asked.work.seed, model="")


async def _loaded(asked: Options, work: Workload) -> tuple[dict[str, Any], Course]:
    _allow_connections()
    async with session(asked.url, asked.key, asked.silence_s) as client:
        listed = await _listed(client, asked.url)
        planned = list(requests(_by_name(work, listed), asked.speed, asked.shares or _first(listed), asked.work.seed))
        at_s = _video_times(asked, planned)
        words, course = Words(asked.work.seed), Course()
        gc.freeze()  # what is there stays; a look at it would hold up every stream
        begun_s = time.monotonic() + BEGIN_S  # not the loop's time, which uvloop rounds to milliseconds

        def now() -> float:
            return time.monotonic() - begun_s

        async with _progress(course, len(planned)):
            ordering = asyncio.ensure_future(order(at_s, client, now))
            await play(planned, Wire(client, words, now), now, course)
            videos: Sequence[Video] = await ordering
        seconds = now()
    began_unix_s = time.time() - (time.monotonic() - begun_s)
    found = report(course.answers, promised(listed, asked.promises), seconds, videos)
    return {"began_unix_s": began_unix_s} | found, course


def _allow_connections() -> None:
    """Every request under way holds one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _listed(client: aiohttp.ClientSession, url: str) -> tuple[Mapping[str, Any], ...]:
    try:
        listed = await models(client)
    except aiohttp.ClientResponseError as error:
        mend = "give a valid --key" if error.status in (401, 403) else "give the address of an OpenAI-compatible server"
        raise ConfigurationError(f"--url: {url}/v1/models answered {error.status}; 200 is needed; {mend}") from error
    except (aiohttp.ClientError, OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"--url: {url}: {error or type(error).__name__}; an answer is needed; start the server or mend the address"
        ) from error
    if not listed:
        raise ConfigurationError(f"--url: {url} lists no models; one at least is needed; ask another server")
    return listed


def _by_name(work: Workload, listed: Sequence[Mapping[str, Any]]) -> Workload:
    """Tiers of the trace arguments become model names; other names are the server's to judge."""
    of_tier = {model["tier"]: model["id"] for model in reversed(listed) if "tier" in model}
    return replace(work, models=tuple(of_tier.get(name, name) for name in work.models))


def _first(listed: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {next((model["id"] for model in listed if model.get("tier") != "video"), listed[0]["id"]): 1.0}


def _video_times(asked: Options, planned: Sequence[Request]) -> list[float]:
    """Poisson, over the time of the requests, by the server's clock."""
    span_s = (asked.work.duration_s or 0.0) / asked.speed or (planned[-1].at_s if planned else 0.0)
    rng = np.random.default_rng((asked.work.seed, 1))
    return sorted(rng.uniform(0.0, span_s, rng.poisson(asked.videos_per_hour / 3600 * span_s)).tolist())


@contextlib.asynccontextmanager
async def _progress(course: Course, total: int) -> AsyncIterator[None]:
    """A line on a terminal, drawn twice a second: the client is to be cheap."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"))
    with Progress(
        *columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("sending", total=total, told="")

        async def show() -> None:
            while True:
                under_way = len(course.answers) - course.ended
                told = f"{course.ended} of {total} ended, {under_way} under way"
                bar.update(task, completed=course.ended, told=told, refresh=True)
                await asyncio.sleep(SHOWN_S)

        showing = asyncio.ensure_future(show())
        try:
            yield
        finally:
            showing.cancel()
