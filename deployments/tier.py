"""A language replica: one engine behind Serve, its expert group in the replica's own placement group."""

import asyncio
import contextlib
import functools
import itertools
import logging
import os
import time
from collections.abc import AsyncIterator, Sequence
from typing import Literal

from cluster.errors import EngineFailed, InvalidRequest, MorayError, ReplicaLost
from cluster.family import Tier
from cluster.fleet import DEAD, report_to_stats
from cluster.placement import bundles
from cluster.request import Chat, Embeds, Generation
from deployments.engines.build import build
from deployments.engines.fingerprint import fingerprint
from deployments.link import Links, ReplyTo
from deployments.measure import ReplicaMetrics
from deployments.ranks import ExpertGroup, node_address
from deployments.stream import Answer, Outcome, Sweeper, Write
from deployments.vectors import Vectors

Item = tuple[bytes, Sequence[int]]  # of a stream: bytes, and the ids of the tokens behind them

log = logging.getLogger("ray.serve")
CHECK_S = 1.0  # between looks at the engine and its followers
HANG_S = 10.0  # with requests and without a step, of which the longest takes about a second
LAST_WORDS_S = 1.0  # for the errors of a dead engine to reach its clients


class TierReplica:
    """Serves one tier. Every public coroutine lives as long as its request; cancelling it frees the request's place."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        key: str,
        tier: Tier,
        accelerator: Literal["cpu", "cuda"],
        coalesce_ms: float,
        coalesce_above_streams: int,
    ) -> None:
        """Takes of the family only what it needs: what changes elsewhere in the file must not replace this replica."""
        began_s = time.monotonic()  # not the process' creation: Ray keeps processes ready, which may be hours old
        self._group = ExpertGroup(bundles(tier, accelerator)[0])
        self._engine = build(tier, accelerator, self._group)
        self._fingerprint = fingerprint(tier, accelerator)
        self._sweeper = Sweeper(coalesce_ms / 1000, coalesce_above_streams)
        self._links = Links()
        self._numbers = itertools.count()
        self._answers: set[Answer | Vectors] = set()
        self._tier = key
        self._still_looks = 0
        self._hang_s = tier.offload.limit_s if tier.offload else HANG_S  # offloaded, a step may take minutes
        try:
            await self._start()
        except MorayError as error:
            log.error("tier %s: %s", key, error)
            raise
        self._metrics = ReplicaMetrics(key, self._engine, node_address(), time.monotonic() - began_s)
        self._watching = asyncio.ensure_future(self._watch())

    async def _start(self) -> None:
        """Serve asks for no health before the constructor has ended, and rank 0 waits minutes for a lost follower."""
        starting = asyncio.ensure_future(self._engine.start())
        try:
            while not (await asyncio.wait((starting,), timeout=CHECK_S))[0]:
                self._group.check()
            await starting
        finally:
            starting.cancel()

    async def _watch(self) -> None:
        """Looks are counted, not seconds: a process that itself stood still must not take its engine for hung."""
        steps = -1
        while True:
            await asyncio.sleep(CHECK_S)
            report = self._engine.report()
            still = report.running + report.waiting > 0 and report.steps == steps
            self._still_looks = self._still_looks + 1 if still else 0
            steps = report.steps
            await self._end_if_dead()

    async def complete(self, chat: Chat) -> Outcome:
        """The whole answer at once, or the vectors."""
        if chat.embeds is not None:
            return await self._embedded(chat, chat.embeds)
        return await self._run(chat, self._answer(chat, None))

    def _answer(self, chat: Chat, write: Write | None) -> Answer:
        return Answer(chat, self._engine.label, self._sweeper, write, self._fingerprint)

    async def push(self, chat: Chat, reply_to: ReplyTo, stream: int) -> Outcome:
        """Path D: bytes go to the gateway's listener; the call itself ends when the stream has ended."""
        call = asyncio.current_task()
        assert call is not None
        try:
            link = await self._links.join(reply_to, stream, call.cancel)
        except OSError as error:  # raised, not returned: no last frame will tell the gateway that the stream has ended
            raise ReplicaLost(f"{self._tier}: no way back to {reply_to.host}:{reply_to.port}: {error}") from error
        link.send(stream, b"", (), False)  # from now on a lost link is this stream's loss, even before its first token
        write = functools.partial(link.send, stream)
        try:
            outcome = await self._run(chat, self._answer(chat, write))
            if outcome.error is not None:
                link.send(stream, b"", (), True)  # every stream ends with a last frame, so that nothing sent is cut off
            return outcome
        finally:
            self._links.leave(reply_to, stream)

    async def stream(self, chat: Chat) -> AsyncIterator[Item | Outcome]:
        """Path A2: bytes as items of Serve's own stream, what has gathered as one item; the outcome comes last."""
        ready: asyncio.Queue[Item | None] = asyncio.Queue()
        answer = self._answer(chat, lambda data, ids, _: ready.put_nowait((data, ids)))
        running = asyncio.ensure_future(self._run(chat, answer))
        running.add_done_callback(lambda _: ready.put_nowait(None))
        try:
            while item := await ready.get():
                yield item
            yield await running
        finally:
            running.cancel()

    async def _run(self, chat: Chat, answer: Answer) -> Outcome:
        key = f"{chat.request_id}/{next(self._numbers)}"  # callers may send one request id many times
        try:
            self._refuse(chat)
            self._refuse_inputs(chat)
            prompt = self._prompt(chat)
            answer.prompt_tokens = len(prompt)
            generation = Generation(
                request_id=key,
                prompt=prompt,
                sampling=chat.sampling,
                given=chat.given,
                domain=chat.domain,
                priority=chat.priority,
                tools=chat.tools,
                media=tuple(media for message in chat.messages for media in message.media),
                cache_salt=chat.cache_salt,
            )
            self._engine.submit(generation, self._metrics.watch(answer.emit))
        except MorayError as error:
            return Outcome(error=error)
        self._answers.add(answer)
        try:
            with self._sweeper.open():
                return await answer.outcome
        finally:
            self._answers.discard(answer)
            self._engine.cancel(key)

    async def _embedded(self, chat: Chat, embeds: Embeds) -> Outcome:
        vectors = Vectors(self._engine, self._metrics.watch, f"{chat.request_id}/{next(self._numbers)}")
        self._answers.add(vectors)
        try:
            self._refuse(chat)
            return await vectors.all(chat, embeds)
        except MorayError as error:
            return Outcome(error=error)
        finally:
            self._answers.discard(vectors)

    def _prompt(self, chat: Chat) -> tuple[int, ...]:
        for prompt in chat.prompts:
            return self._engine.encode_text(prompt) if isinstance(prompt, str) else prompt
        return self._engine.encode(chat.messages, chat.tools)

    def _refuse(self, chat: Chat) -> None:
        """The gateway goes by the family file; this by the engine that is here."""
        wants = (
            (chat.structured, "structured", "response_format"),
            (chat.calls, "tools", "tools"),
            (chat.forced, "forced_tools", chat.forced),
            (chat.embeds, "embeds", "input"),
        )
        for wanted, name, param in wants:
            if wanted and not getattr(self._engine, name):
                raise InvalidRequest(
                    f"{param}: given; the engine of tier {self._tier} serves none; leave it out, or name another tier",
                    param=param,
                )

    def _refuse_inputs(self, chat: Chat) -> None:
        for kind, param in chat.inputs.items():
            if kind not in self._engine.inputs:
                takes = " and ".join(("text", *self._engine.inputs))
                raise InvalidRequest(
                    f"{param}: given; the engine of tier {self._tier} takes {takes}; leave it out, or name another",
                    param=param,
                )

    def record_routing_stats(self) -> dict[str, float]:
        """A dead engine says so: routers hear it before Serve has taken the replica away."""
        try:
            self._check()
        except EngineFailed:
            return dict(DEAD)
        return report_to_stats(self._engine.report(), beat_s=time.monotonic())

    def record_replica_metadata(self) -> dict[str, str]:
        return {"tier": self._tier, "metrics": self._metrics.address}

    async def check_health(self) -> None:
        """Ends the process of a dead engine, and with it this call: Serve then hears at once of a crashed replica.

        One that raises here is replaced only after three checks.
        """
        if self._watching.done():
            self._watching.result()
        await self._end_if_dead()

    async def _end_if_dead(self) -> None:
        try:
            self._check()
        except EngineFailed as error:
            log.error("tier %s: %s; this replica ends", self._tier, error)
            for answer in tuple(self._answers):  # a hung engine does not tell them itself
                answer.fail(error)
            await asyncio.sleep(LAST_WORDS_S)
            self._exit()

    def _exit(self) -> None:
        self._group.stop()
        os._exit(1)

    def _check(self) -> None:
        self._group.check()
        self._engine.check()
        if self._still_looks * CHECK_S >= self._hang_s:
            report = self._engine.report()
            raise EngineFailed(
                f"engine: {report.running + report.waiting} requests and no step for {self._hang_s:g} s; "
                "steps take far less; its replica is being replaced; send the request again"
            )

    async def __del__(self) -> None:
        with contextlib.suppress(Exception):  # half-built replicas are torn down too
            self._watching.cancel()
        with contextlib.suppress(Exception):
            await self._engine.stop()
            self._group.stop()
