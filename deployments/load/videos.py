"""Videos beside the tokens: each ordered at its time, then looked at until it has ended."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import aiohttp

from deployments.load.answer import error_code

POLL_S = 1.0
ENDED = ("completed", "failed")


@dataclass(slots=True, kw_only=True)
class Video:
    """`status`: the server's, or refused, or lost where the server was not reached. `took_s`: from its time on."""

    due_s: float
    sent_s: float = 0.0
    status: str = "queued"
    code: str | None = None
    took_s: float | None = None


async def order(at_s: Sequence[float], session: aiohttp.ClientSession, now: Callable[[], float]) -> list[Video]:
    videos = [Video(due_s=due_s) for due_s in at_s]
    async with asyncio.TaskGroup() as asking:
        for video in videos:
            asking.create_task(_one(video, session, now))
    return videos


async def _one(video: Video, session: aiohttp.ClientSession, now: Callable[[], float]) -> None:
    await asyncio.sleep(max(0.0, video.due_s - now()))
    video.sent_s = now()
    try:
        async with session.post("/v1/videos", json={"prompt": "a red ball"}) as response:
            told = await response.json(content_type=None)
            if response.status != 200:
                video.status, video.code = "refused", error_code(told)
                return
        while told["status"] not in ENDED:
            await asyncio.sleep(POLL_S)
            async with session.get(f"/v1/videos/{told['id']}") as response:
                response.raise_for_status()
                told = await response.json(content_type=None)
        video.status, video.code = told["status"], (error_code(told) if told.get("error") else None)
        video.took_s = now() - video.due_s
    except (aiohttp.ClientError, OSError, ValueError) as error:  # a TimeoutError is an OSError
        video.status, video.code = "lost", type(error).__name__
