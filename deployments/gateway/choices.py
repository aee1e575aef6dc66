"""Several answers to one request: as many courses, each with its own place, replica and rescues, told as one answer.

The caller sees one request. Chunks come as they are made, each with the index of its choice; one usage counts each
prompt once and all answers; one [DONE] ends the stream. Where one choice is refused, or lost for good, all are.
"""

import asyncio
import json
from collections.abc import Coroutine
from contextvars import Context
from dataclasses import replace
from hashlib import blake2b
from typing import Any, TypeVar

from cluster.request import Chat, Prompt, Usage
from deployments.gateway.asked import Asked, Place
from deployments.gateway.rescue import Course, Courses
from deployments.gateway.wire import DONE, counts, dumps
from deployments.stream import Outcome

T = TypeVar("T")


def each(chat: Chat) -> tuple[Chat, ...]:
    """A chat per answer, in the order of their indices: all to the first prompt, then all to the next."""
    prompts: list[tuple[Prompt, ...]] = [(prompt,) for prompt in chat.prompts] or [()]
    return tuple(
        replace(
            chat,
            prompts=prompt,
            choice=number * chat.choices + index,
            sampling=replace(chat.sampling, seed=seed_of(chat.sampling.seed, index)),
        )
        for number, prompt in enumerate(prompts)
        for index in range(chat.choices)
    )


def seed_of(seed: int, index: int) -> int:
    """Of a choice: the first has the request's own, so that one answer alone is the first of several."""
    if index == 0:
        return seed
    return int.from_bytes(blake2b(f"{seed} {index}".encode(), digest_size=8).digest()) >> 1


class Choices:
    """In the place of a Course. What can be said of one alone is said of the one that ended last, or began first."""

    def __init__(self, shared: Courses, chat: Chat, asked: Asked) -> None:
        self.asked = asked
        self.outcome: Outcome | None = None
        self._chat = chat
        alone = [replace(asked, prompt_tokens=tokens) for tokens in asked.prompts for _ in range(chat.choices)]
        self._courses = tuple(Course(shared, one, own) for one, own in zip(each(chat), alone, strict=True))
        self._ended: list[Course] = []
        self._tasks: dict[asyncio.Task[Any], Course] = {}
        self._ready: list[bytes] = []  # that is told once all have begun
        self._begun = False  # whether anything was told
        self._usage = b""  # the event, of the one that ended last

    @property
    def told(self) -> Course:
        return next((one for one in (*self._ended[::-1], *self._courses) if one.place is not None), self._courses[0])

    @property
    def place(self) -> Place | None:
        return self.told.place

    @property
    def sent_s(self) -> float | None:
        return self.told.sent_s

    @property
    def rescues(self) -> int:
        return sum(one.rescues for one in self._courses)

    @property
    def given_tokens(self) -> int:
        """What is still held back is given to nobody."""
        return sum(one.given_tokens for one in self._courses) if self._begun else 0

    @property
    def begun(self) -> int:
        return sum(one.begun for one in self._courses)

    @property
    def read_tokens(self) -> int:
        """Of prompts, that engines computed."""
        return sum(one.read_tokens for one in self._courses)

    @property
    def usages(self) -> tuple[Usage, ...]:
        """Of the answers that engines counted, the one that ended last first."""
        return tuple(usage for one in reversed(self._ended) for usage in one.usages)

    @property
    def streamed(self) -> bool:
        return self._chat.stream

    async def whole(self) -> Outcome:
        """Raises MorayError."""
        for one in self._courses:
            self._tasks[_apart(one.whole())] = one
        while self._tasks:
            done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                self._ended.append(self._tasks.pop(task))
                task.result()
        self.outcome = self._summed()
        bodies = [json.loads(one.outcome.body) for one in self._courses if one.outcome is not None]
        told = bodies[0] | {"choices": [choice for body in bodies for choice in body["choices"]]}
        told["usage"] = self._counted(told["usage"])
        return replace(self.outcome, body=dumps(told).encode("ascii"))

    async def next(self, timeout_s: float) -> bytes | None:
        """As of a Course. Before all have a place nothing is told: a refusal still has its own status."""
        until_s = asyncio.get_running_loop().time() + timeout_s
        while len(self._ended) < len(self._courses):
            left_s = max(0.0, until_s - asyncio.get_running_loop().time())
            self._arm(left_s)
            done, _ = await asyncio.wait(self._tasks, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                self._hear(self._tasks.pop(task), task.result())
            if self._ready and all(one.place is not None for one in self._courses):
                data, self._ready, self._begun = b"".join(self._ready), [], True
                return data
            if not left_s:
                return b""
        if self.outcome is not None:
            return None
        self.outcome = self._summed()
        return self._end()

    def _arm(self, timeout_s: float) -> None:
        armed = set(self._tasks.values())
        for one in self._courses:
            if one not in armed and one not in self._ended:
                self._tasks[_apart(one.next(timeout_s))] = one

    def _hear(self, one: Course, data: bytes | None) -> None:
        """Raises MorayError where it broke without a word."""
        if data is None:
            self._ended.append(one)
            if one.outcome is not None and one.outcome.error is not None:
                raise one.outcome.error
            return
        if data.endswith(DONE):
            data = data.removesuffix(DONE)
            if self._chat.include_usage:
                data, self._usage = _cut(data)
        if data:
            self._ready.append(data)

    def _end(self) -> bytes:
        told = json.loads(self._usage.removeprefix(b"data: ")) if self._usage else {}
        if told:
            told["usage"] = self._counted(told["usage"])
            return b"data: " + dumps(told).encode("ascii") + b"\n\n" + DONE
        return DONE

    def _summed(self) -> Outcome:
        """Times are those of the one that ended last."""
        last = self._ended[-1].outcome
        assert last is not None
        return replace(last, usage=self._sum())

    def _sum(self) -> Usage | None:
        counted = [usage for one in self._courses for usage in one.usages]
        if len(counted) < len(self._courses):
            return None
        prompts = counted[:: self._chat.choices]  # each is counted once, as who read it first found it
        return Usage(
            prompt_tokens=sum(usage.prompt_tokens for usage in prompts),
            completion_tokens=sum(usage.completion_tokens for usage in counted),
            cached_tokens=sum(usage.cached_tokens for usage in prompts),
        )

    def _counted(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The same usage, of all. Who served is said of one."""
        assert self.outcome is not None
        found = self.outcome.usage
        if found is None:
            return usage
        return usage | counts(found) | {"prompt_tokens_details": {"cached_tokens": found.cached_tokens}}

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
            task.add_done_callback(_heard)
        for one in self._courses:
            one.close()


def _apart(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """In a context of its own: by that of the request Serve would give all calls one id, under which each is one."""
    return asyncio.get_running_loop().create_task(work, context=Context())


def _cut(data: bytes) -> tuple[bytes, bytes]:
    """What was said, and the event at its end."""
    said, begun, event = data.removesuffix(b"\n\n").rpartition(b"\n\n")
    return said + begun, event


def _heard(task: asyncio.Task[Any]) -> None:
    """Nobody waits for it any more."""
    if not task.cancelled():
        task.exception()


def opened(shared: Courses, chat: Chat, asked: Asked) -> Course | Choices:
    return Course(shared, each(chat)[0], asked) if chat.answers == 1 else Choices(shared, chat, asked)
