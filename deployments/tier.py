"""A language replica: one engine behind Serve, its expert group in the replica's own placement group."""

import asyncio
import contextlib
import functools
import itertools
import logging
import os
import time
from collections.abc import AsyncIterator

from cluster.errors import EngineFailed, MorayError, ReplicaLost
from cluster.family import Family
from cluster.fleet import DEAD, report_to_stats
from cluster.placement import bundles
from cluster.request import Chat, Generation
from deployments.engines.build import build
from deployments.link import Links, ReplyTo
from deployments.measure import ReplicaMetrics
from deployments.ranks import ExpertGroup, node_address
from deployments.stream import Answer, Outcome, Sweeper

log = logging.getLogger("ray.serve")
CHECK_S = 1.0  # between looks at the followers while rank 0 loads
LAST_WORDS_S = 1.0  # for the errors of a dead engine to reach its clients


class TierReplica:
    """Serves one tier. Every public coroutine lives as long as its request; cancelling it frees the request's place."""

    async def __init__(self, family: Family, tier: str) -> None:  # type: ignore[misc]  # Serve awaits it
        spec = family.tiers[tier]
        self._group = ExpertGroup(bundles(spec, family.accelerator)[0])
        self._engine = build(family, tier, self._group)
        gateway = family.gateway
        self._sweeper = Sweeper(gateway.coalesce_ms / 1000, gateway.coalesce_above_streams)
        self._links = Links()
        self._numbers = itertools.count()
        self._tier = tier
        try:
            await self._start()
        except MorayError as error:
            log.error("tier %s: %s", tier, error)
            raise
        self._metrics = ReplicaMetrics(tier, self._engine, node_address())

    async def _start(self) -> None:
        """Serve asks for no health before the constructor has ended, and rank 0 waits minutes for a lost follower."""
        starting = asyncio.ensure_future(self._engine.start())
        try:
            while not (await asyncio.wait((starting,), timeout=CHECK_S))[0]:
                self._group.check()
            await starting
        finally:
            starting.cancel()

    async def greet(self) -> None:
        """Nothing: a first call by which a gateway's router meets its replicas."""

    async def complete(self, chat: Chat) -> Outcome:
        """The whole answer at once."""
        return await self._run(chat, Answer(chat, self._engine.label, self._sweeper, None))

    async def push(self, chat: Chat, reply_to: ReplyTo, stream: int) -> Outcome:
        """Path D: bytes go to the gateway's listener; the call itself ends when the stream has ended."""
        call = asyncio.current_task()
        assert call is not None
        try:
            link = await self._links.join(reply_to, stream, call.cancel)
        except OSError as error:  # raised, not returned: no last frame will tell the gateway that the stream has ended
            raise ReplicaLost(f"{self._tier}: no way back to {reply_to.host}:{reply_to.port}: {error}") from error
        write = functools.partial(link.send, stream)
        try:
            outcome = await self._run(chat, Answer(chat, self._engine.label, self._sweeper, write))
            if outcome.error is not None:
                link.send(stream, b"", True)  # every stream ends with a last frame, so that nothing sent is cut off
            return outcome
        finally:
            self._links.leave(reply_to, stream)

    async def stream(self, chat: Chat) -> AsyncIterator[bytes | Outcome]:
        """Path A2: bytes as items of Serve's own stream, what has gathered as one item; the outcome comes last."""
        ready: asyncio.Queue[bytes] = asyncio.Queue()
        answer = Answer(chat, self._engine.label, self._sweeper, lambda data, last: ready.put_nowait(data))
        running = asyncio.ensure_future(self._run(chat, answer))
        running.add_done_callback(lambda _: ready.put_nowait(b""))  # an answer never writes nothing
        try:
            while data := await ready.get():
                yield data
            yield await running
        finally:
            running.cancel()

    async def _run(self, chat: Chat, answer: Answer) -> Outcome:
        key = f"{chat.request_id}/{next(self._numbers)}"  # callers may send one request id many times
        try:
            prompt = self._engine.encode(chat.messages)
            generation = Generation(request_id=key, prompt=prompt, sampling=chat.sampling)
            self._engine.submit(generation, self._metrics.watch(answer.emit))
        except MorayError as error:
            return Outcome(error=error)
        try:
            with self._sweeper.open():
                return await answer.outcome
        finally:
            self._engine.cancel(key)

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
        try:
            self._check()
        except EngineFailed as error:
            log.error("tier %s: %s; this replica ends", self._tier, error)
            await asyncio.sleep(LAST_WORDS_S)
            self._group.stop()
            os._exit(1)

    def _check(self) -> None:
        self._group.check()
        self._engine.check()

    async def __del__(self) -> None:
        with contextlib.suppress(Exception):  # half-built replicas are torn down too
            await self._engine.stop()
            self._group.stop()
