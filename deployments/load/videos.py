"""Videos beside the tokens: each ordered at its time, then looked at until it has ended or waiting has."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from deployments.load import keys as keyring
from deployments.load.answer import error_code

POLL_S = 1.0
ENDED = ("completed", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """`body`: of the request to /v1/videos."""

    at_s: float
    tenant: str = keyring.ANYBODY
    body: Mapping[str, Any] = field(default_factory=lambda: {"prompt": "a red ball"})


@dataclass(slots=True, kw_only=True)
class Video:
    """`status`: the server's; or refused; lost, where the server was not reached or said nothing sensible; given up,
    where it had not ended in time; stopped, where the run was. `took_s`: from the time at which it was due.
    """

    due_s: float
    tenant: str = keyring.ANYBODY
    sent_s: float | None = None
    status: str = "not sent"
    code: str | None = None
    took_s: float | None = None


class Studio:
    """The videos API of one server. `videos`: what became of each order so far."""

    def __init__(self, session: aiohttp.ClientSession, now: Callable[[], float], keys: Mapping[str, str]) -> None:
        self._session = session
        self._now = now
        self._keys = keys
        self.videos: list[Video] = []

    async def order(self, orders: Sequence[Order], patience_s: float) -> None:
        """All of them, each looked at for at most `patience_s`."""
        async with asyncio.TaskGroup() as asking:
            for one in orders:
                video = Video(due_s=one.at_s, tenant=one.tenant)
                self.videos.append(video)
                asking.create_task(self._one(one, video, patience_s))

    async def _one(self, order: Order, video: Video, patience_s: float) -> None:
        await asyncio.sleep(max(0.0, video.due_s - self._now()))
        video.sent_s, video.status = self._now(), "under way"
        try:
            async with asyncio.timeout(patience_s):
                await self._followed(order, video)
        except TimeoutError:
            video.status = "given up"
        except (aiohttp.ClientError, OSError, ValueError, KeyError, TypeError) as error:
            video.status, video.code = "lost", type(error).__name__
        except asyncio.CancelledError:
            video.status = "stopped"
            raise

    async def _followed(self, order: Order, video: Video) -> None:
        headers = keyring.of(order.tenant, self._keys)
        async with self._session.post("v1/videos", json=dict(order.body), headers=headers) as response:
            told = await response.json(content_type=None)
            if response.status >= 300:
                video.status, video.code = "refused", error_code(told)
                if video.code == "unknown":
                    video.code = f"http_{response.status}"
                return
        while told["status"] not in ENDED:
            await asyncio.sleep(POLL_S)
            async with self._session.get(f"v1/videos/{told['id']}", headers=headers) as response:
                response.raise_for_status()
                told = await response.json(content_type=None)
        video.status, video.code = told["status"], (error_code(told) if told.get("error") else None)
        video.took_s = self._now() - video.due_s
