"""Asks what a request says to be judged before anything is spent on it: by words, or by an endpoint.

A refusal is in the log of acts, with the request's id and without its text. Answers are not judged, nor are pictures,
sound and files beside the text.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path

import httpx
from pydantic import BaseModel, Field, ValidationError
from starlette.types import Scope

from cluster.errors import InvalidRequest, MorayError, Unavailable
from cluster.moderation import Endpoint, Lexicon, Moderation, Verdict
from cluster.request import Chat, Prompt
from deployments.gateway.asgi import HEADERS, REQUEST_ID
from deployments.gateway.metrics import GatewayMetrics
from deployments.log import event
from deployments.stores.key_rows import Act, KeyRows
from deployments.stores.threads import in_thread

log = logging.getLogger("ray.serve")
HEADER = b"moray-moderation"
CODE = "content_policy_violation"
HERE_CHARS = 16_384  # that are looked through on the event loop: a millisecond or two
_TOLD = {"flag": b"flagged", "unchecked": b"unchecked"}
Judge = Callable[[Sequence[str]], Awaitable[Verdict]]
Check = Callable[[Scope, str, Iterable[str | None]], Awaitable[None]]  # as Moderator.check


async def unjudged(scope: Scope, key_id: str, texts: Iterable[str | None]) -> None:
    """Everything may be asked."""


class Moderator:
    """One per gateway; it judges nothing where the family file says nothing. `now_s`: Unix seconds."""

    def __init__(self, keys: KeyRows, metrics: GatewayMetrics, now_s: Callable[[], float] = time.time) -> None:
        self._keys, self._metrics, self._now_s = keys, metrics, now_s
        self._settings: Moderation | None = None
        self._judge: Judge | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def follow(self, settings: Moderation | None) -> None:
        """From the next request on."""
        if settings == self._settings:
            return
        if isinstance(self._judge, _Asked):
            closing = asyncio.create_task(self._judge.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        self._settings, self._judge = settings, None
        if settings is not None and settings.words is not None:
            self._judge = _Here(Lexicon(settings.words))
        elif settings is not None and settings.endpoint is not None:
            self._judge = _Asked(settings.endpoint)

    async def check(self, scope: Scope, key_id: str, texts: Iterable[str | None]) -> None:
        """`texts`: what is said, in parts; None is left out.

        Raises InvalidRequest where it is refused, Unavailable where nobody can say and it is not to pass.
        """
        if self._judge is None or not (told := [text for text in texts if text]):
            return  # nothing is said: a shot that is only drawn again, an image alone
        try:
            verdict = await self._judge(told)
        except Unavailable:
            self._metrics.count("moray_moderations_total", verdict="away")
            raise
        self._metrics.count("moray_moderations_total", verdict=verdict)
        if verdict == "allow":
            return
        event(log, logging.INFO, "moderated", request_id=scope[REQUEST_ID], key=key_id, verdict=verdict)
        if verdict == "refuse":
            await self._note(scope, key_id)
            raise InvalidRequest(
                "input: against this service's policy on content; what it permits is allowed; ask for something else",
                code=CODE,
            )
        scope.setdefault(HEADERS, []).append((HEADER, _TOLD[verdict]))

    async def _note(self, scope: Scope, key_id: str) -> None:
        """Where the log cannot be written the request is refused all the same."""
        client = scope.get("client")
        act = Act(
            at_s=self._now_s(),
            actor=key_id,
            from_=client[0] if client else "unknown",
            act="moderation.refuse",
            subject=scope[REQUEST_ID][:64],
            outcome=CODE,
        )
        try:
            await in_thread(self._keys.log, act)
        except MorayError as error:
            log.error("moderation: the log of acts is not written: %s", error)


def said(chat: Chat) -> Iterator[str]:
    """All text of a chat that its caller has chosen. Raises InvalidRequest for prompts that are no text."""
    for message in chat.messages:
        yield message.content
        for call in message.tool_calls:
            yield from (call.name, *_unescaped(call.arguments))
    for tool in chat.tools:
        yield from (tool.name, tool.description, *_unescaped(tool.parameters))
    yield from _unescaped(chat.sampling.json_schema or "")
    yield from (_text(prompt, "prompt") for prompt in chat.prompts)
    yield from (_text(one, "input") for one in (chat.embeds.inputs if chat.embeds else ()))


def _unescaped(text: str) -> Iterator[str]:
    """JSON text, and where it escapes letters its strings, as templates read them: `\\n` hides where a word begins."""
    yield text
    if "\\" not in text:
        return
    with contextlib.suppress(ValueError, RecursionError):  # arguments of calls may be any text
        pending = [json.loads(text)]
        while pending:
            match pending.pop():
                case str(string):
                    yield string.encode(errors="replace").decode()  # half a surrogate pair is no text
                case dict(named):
                    pending += (*named, *named.values())
                case list(items):
                    pending += items


def _text(prompt: Prompt, param: str) -> str:
    if not isinstance(prompt, str):
        raise InvalidRequest(
            f"{param}: given as ids of tokens, which are not judged here; text is allowed; send the text",
            param=param,
            code="unsupported_parameter",
        )
    return prompt


class _Here:
    def __init__(self, lexicon: Lexicon) -> None:
        self._lexicon = lexicon

    async def __call__(self, texts: Sequence[str]) -> Verdict:
        if sum(map(len, texts)) <= HERE_CHARS:
            return self._lexicon.verdict(texts)
        return await asyncio.to_thread(self._lexicon.verdict, texts)


class _Result(BaseModel):
    flagged: bool
    categories: dict[str, bool | None] = Field(default={})


class _Results(BaseModel):
    results: list[_Result] = Field(min_length=1)


class _Asked:
    """An endpoint. What it is sent is one text: all that is said."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        # A proxy of the environment knows nothing of it; and it is trusted to judge, not to send us elsewhere.
        self._client = httpx.AsyncClient(timeout=endpoint.timeout_s, trust_env=False, follow_redirects=False)

    async def __call__(self, texts: Sequence[str]) -> Verdict:
        try:
            async with asyncio.timeout(self._endpoint.timeout_s):
                found = await self._asked("\n".join(texts))
        except (httpx.HTTPError, OSError, ValidationError) as error:
            log.warning("moderation: no verdict: %s", type(error).__name__)
            if self._endpoint.when_away == "allow":
                return "unchecked"
            raise Unavailable("moderation: no verdict; nothing passes without one; try again soon") from None
        categories = {name for one in found.results for name, there in one.categories.items() if there}
        return self._endpoint.verdict(any(one.flagged for one in found.results), categories)

    async def close(self) -> None:
        """Once nobody is asked any more."""
        try:
            await asyncio.sleep(self._endpoint.timeout_s)
        finally:
            await self._client.aclose()

    async def _asked(self, text: str) -> _Results:
        body = {"input": text} | ({"model": self._endpoint.model} if self._endpoint.model else {})
        headers = {}
        if self._endpoint.key_file is not None:  # read each time: it may be replaced
            key = await asyncio.to_thread(Path(self._endpoint.key_file).read_text, "utf-8")
            headers["authorization"] = f"Bearer {key.strip()}"
        answer = await self._client.post(self._endpoint.url, json=body, headers=headers)
        return _Results.model_validate_json(answer.raise_for_status().content)
