"""A request's course over replicas: held by the desk, asked of one, and of another where that one is lost.

A stream goes on behind the tokens that its client already has: the client sees a pause. A whole answer is asked for
again. The seed is the same, so is the answer. cluster.retry says how often. Some engines begin a JSON schema with the
answer, and cannot take one up midway: there, an answer held to one goes on only where its client has none of it yet.
"""

import asyncio
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ray.serve.handle import DeploymentHandle

from cluster.errors import MorayError, ReplicaLost
from cluster.family import Family
from cluster.request import Chat, Usage
from cluster.retry import MOST_RESCUES, Budget
from deployments.gateway.asked import Asked, Place
from deployments.gateway.desk import Desk
from deployments.gateway.metrics import GatewayMetrics
from deployments.gateway.tokens import Answering, TokenPath, lost
from deployments.gateway.wire import DONE
from deployments.log import event
from deployments.stream import Outcome

log = logging.getLogger("ray.serve")
LEAST_STALL_S = 10.0
STALL_TOKENS = 100  # times the promised time of one: a begun stream that is silent for so long is lost
LATE_S = 1.0  # who looks so much too late stood still itself, or its client did: what came meanwhile is not read yet


class Courses:
    """What the courses of all requests share. `handles`: Serve's, by tier; whoever owns them may add some."""

    def __init__(
        self,
        family: Family,
        handles: Mapping[str, DeploymentHandle[Any]],
        path: TokenPath,
        desk: Desk,
        metrics: GatewayMetrics,
    ) -> None:
        self.family = family
        self.handles = handles
        self.path = path
        self.desk = desk
        self.metrics = metrics
        self.ongoing: Counter[str] = Counter()  # by tier, those between two replicas included
        self._budgets: defaultdict[str, Budget] = defaultdict(Budget)

    def finished(self, tier: str) -> None:
        self._budgets[tier] = self._budgets[tier].finished()

    def permit(self, tier: str) -> bool:
        """Whether one more lost request of the tier may go on; if so, it is taken from the budget."""
        budget = self._budgets[tier].rescued(self.ongoing[tier])
        if budget is not None:
            self._budgets[tier] = budget
        return budget is not None

    def takes_up(self, tier: str) -> bool:
        spec = self.family.tiers.get(tier)
        return spec is not None and spec.takes_up

    def stall_s(self, tier: str) -> float:
        """Where weights are offloaded, a step may take as long as a request."""
        spec = self.family.tiers.get(tier)
        if spec is None:
            return LEAST_STALL_S
        return max(LEAST_STALL_S, STALL_TOKENS * spec.slo.tpot_ms / 1e3, spec.offload.limit_s if spec.offload else 0.0)


class Course:
    """One request. `place`: the last one it had, None before the first. Whoever opens one closes it.

    `sent_s`: when it was sent to its first replica, on the desk's clock.
    """

    def __init__(self, shared: Courses, chat: Chat, asked: Asked) -> None:
        self.asked = asked
        self.place: Place | None = None
        self.sent_s: float | None = None
        self.outcome: Outcome | None = None
        self.rescues = 0
        self._shared = shared
        self._chat = chat
        self._placing: asyncio.Future[Place] | None = asyncio.ensure_future(shared.desk.place(asked))
        self._held: Place | None = None  # that the desk has not yet been told the end of
        self._answering: Answering | None = None
        self._tier: str | None = None  # that counts it as ongoing
        self._left_tokens = 0  # of a replica that was left, and not gone on behind
        self._heard_s = math.inf  # when bytes last came from this replica
        self._lost_s: float | None = None
        self._done = False

    @property
    def given_tokens(self) -> int:
        """That the client of a stream was given, by all replicas."""
        return len(self._chat.given) + self._left_tokens + (len(self._answering.ids) if self._answering else 0)

    @property
    def usages(self) -> tuple[Usage, ...]:
        """What its engine counted: one or none."""
        counted = self.outcome.usage if self.outcome is not None else None
        return () if counted is None else (counted,)

    @property
    def begun(self) -> int:
        """Answers of which there is a token."""
        return int(bool(self.usages or self.given_tokens))

    @property
    def read_tokens(self) -> int:
        """Of its prompt, that an engine computed; estimated where none counted."""
        for usage in self.usages:
            return usage.prompt_tokens - usage.cached_tokens
        return self.asked.prompt_tokens if self.given_tokens else 0

    @property
    def streamed(self) -> bool:
        return self._chat.stream

    async def whole(self) -> Outcome:
        """Raises MorayError where no replica gives an answer."""
        while True:
            await self._placed(None)
            assert self.place is not None
            handle = self._shared.handles[self.place.served.tier]
            outcome = await _outcome(handle.complete.remote(self._sent(self.place)))
            if outcome.error is None:
                self.outcome = outcome
                return outcome
            self._leave(outcome.error)

    async def next(self, timeout_s: float) -> bytes | None:
        """Bytes of the stream; b"" after a silence of timeout_s; None at its end. Raises MorayError where it broke."""
        until_s = _now() + timeout_s
        while True:
            try:
                data = await self._step(until_s)
            except MorayError as error:
                if not self._done:
                    self._leave(error)
                    continue
                data = None  # it broke behind its last byte
            if data is None:
                self.outcome = await self._end()
            return data

    async def _step(self, until_s: float) -> bytes | None:
        if not await self._placed(until_s):
            return b""
        assert self.place is not None
        if self._answering is None:
            handle = self._shared.handles[self.place.served.tier]
            self._answering = self._shared.path.ask(handle, self._sent(self.place))
        stall_s = self._shared.stall_s(self.place.served.tier)
        silent_s = self._heard_s + stall_s
        data = await self._answering.next(max(0.0, min(until_s, silent_s) - _now()))
        if data:
            self._hear(data)
        elif data is not None and silent_s <= until_s:
            if _now() > silent_s + LATE_S:
                self._heard_s = _now()
                return data
            raise ReplicaLost(f"stream: silent for {stall_s:g} s; send the request again")
        return data

    async def _placed(self, until_s: float | None) -> bool:
        """Whether there is a place; waits for it until `until_s`. Raises what the desk raises."""
        if self._placing is None:
            return True
        await asyncio.wait((self._placing,), timeout=None if until_s is None else max(0.0, until_s - _now()))
        if not self._placing.done():
            return False
        placing, self._placing = self._placing, None
        self.place = self._held = placing.result()
        self.sent_s = self.place.sent_s if self.sent_s is None else self.sent_s
        self._count(self.place.served.tier)
        if self._lost_s is not None:
            self._shared.metrics.count("moray_resumed_total", tier=self.place.served.tier)
        return True

    def _sent(self, place: Place) -> Chat:
        return replace(self._chat, served=place.served)

    def _hear(self, data: bytes) -> None:
        self._heard_s = _now()
        self._done = data.endswith(DONE)
        if self._lost_s is not None and self.place is not None:
            self._shared.metrics.observe(
                "moray_pause_seconds", self._heard_s - self._lost_s, tier=self.place.served.tier
            )
            self._lost_s = None

    def _leave(self, error: MorayError) -> None:
        """On to another replica. Raises the error where none could help, or the budget is spent."""
        place, self._held = self._held, None
        if place is None:
            raise error
        self._shared.desk.ended(place, None, error.elsewhere)
        answering, self._answering = self._answering, None
        if answering is not None:
            self._left_tokens = len(answering.ids)
            answering.cancel()
        if not error.elsewhere:
            raise error
        tier = place.served.tier
        given = self._chat.given + (answering.ids if answering is not None else ())
        held = self._chat.structured or self._chat.forced is not None
        stuck = bool(given) and held and not self._shared.takes_up(tier)
        if stuck or self.rescues == MOST_RESCUES or not self._shared.permit(tier):
            self._shared.metrics.count("moray_retries_refused_total", tier=tier)
            raise _stuck(len(given)) if stuck else error
        self.rescues += 1
        self._lost_s, self._heard_s = self._lost_s or _now(), math.inf
        self._chat, self._left_tokens = replace(self._chat, given=given), 0
        event(
            log,
            logging.INFO,
            "goes on elsewhere",
            request_id=self._chat.request_id,
            code=error.code,
            given_tokens=len(given),
        )
        self._placing = asyncio.ensure_future(self._shared.desk.again(place, len(given)))

    async def _end(self) -> Outcome:
        assert self._answering is not None
        outcome = await self._answering.call
        return replace(outcome, error=None) if self._done else outcome

    def _count(self, tier: str | None) -> None:
        if self._tier is not None:
            self._shared.ongoing[self._tier] -= 1
        if tier is not None:
            self._shared.ongoing[tier] += 1
        self._tier = tier

    def close(self) -> None:
        """However it ended: the desk hears it, and no call goes on."""
        if self._placing is not None:
            self._placing.cancel()
            self._placing.add_done_callback(self._unused)
        if self._answering is not None:
            self._answering.cancel()
        if self._held is not None:
            self._shared.desk.ended(self._held, self.outcome.usage if self.outcome else None, False)
        if self.outcome is not None and self._tier is not None:
            self._shared.finished(self._tier)
        self._count(None)

    def _unused(self, placing: asyncio.Future[Place]) -> None:
        if not placing.cancelled() and placing.exception() is None:
            self._shared.desk.ended(placing.result(), None, False)


def _stuck(given_tokens: int) -> ReplicaLost:
    return ReplicaLost(
        f"stream: its replica was lost behind {given_tokens} tokens; an answer held to a form cannot go on "
        "elsewhere on this engine; send the request again"
    )


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _outcome(response: Any) -> Outcome:
    """What a call returns, with every failure of Serve's as an error of ours."""
    try:
        outcome: Outcome = await response
    except asyncio.CancelledError:
        response.cancel()
        raise
    except Exception as error:  # whatever Serve raises becomes an answer to the client
        return Outcome(error=lost(error))
    return outcome
