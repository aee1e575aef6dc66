"""POST /v1/chat/completions. The gateway thinks once per request; after that it only moves bytes."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from starlette.types import Receive, Scope, Send

from cluster.domains import domain_of
from cluster.errors import MorayError, Overloaded
from cluster.family import Family, Plan, Slo
from cluster.request import Chat, Served, Usage
from deployments.gateway.asgi import LOG_NOTE, REQUEST_ID, Header, authorize, read_body, respond
from deployments.gateway.asked import Asked
from deployments.gateway.metrics import GatewayMetrics
from deployments.gateway.rescue import Course, Courses
from deployments.gateway.wire import error_event, parse_chat
from deployments.gateway.wishes import Estimates, hint_of, plan_of, range_of, wish_of
from deployments.stores.keys import KeyStore
from deployments.stream import Outcome

log = logging.getLogger("ray.serve")
KEEPALIVE_S = 10.0
KEEPALIVE = b": waiting\n\n"
_SSE: list[Header] = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


@dataclass(slots=True, kw_only=True)
class _Request:
    """What is known of a request so far, for its line of the log and its metrics. Times on the gateway's clock."""

    arrived_s: float
    key: str = "none"
    tier: str = "none"  # the one asked
    slo: Slo | None = None  # of the tier asked; None before it is known
    code: str = "internal_error"
    kept: bool | None = None  # whether the promises held; None where nobody can say
    first_s: float = 0.0
    last_s: float = 0.0


class ChatCompletions:
    """The ASGI endpoint."""

    def __init__(self, courses: Courses, keys: KeyStore, metrics: GatewayMetrics, clock: Callable[[], float]) -> None:
        self._courses = courses
        self._keys = keys
        self._metrics = metrics
        self._clock = clock  # that of the desk
        self._estimates = Estimates()

    @property
    def _family(self) -> Family:
        return self._courses.family

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = _Request(arrived_s=self._clock())
        try:
            record = authorize(scope, self._keys)
            request.key = record.id
            plan = plan_of(record, self._family)
            body = await read_body(scope, receive, self._family.gateway.max_body_bytes)
            chat = parse_chat(body, scope[REQUEST_ID], int(time.time()), secrets.randbits(63))
            domain = domain_of(hint_of(scope), chat.messages, self._family.personas)
            chat = replace(chat, domain=domain, priority=plan.priority if plan else 0)
            asked = self._asked(scope, chat, record.id, plan, request)
            await self._serve(chat, asked, request, send)
        except MorayError as error:
            request.code = error.code
            if error.status < 500:
                self._metrics.count("moray_rejections_total", tier=request.tier, code=error.code)
            raise
        except asyncio.CancelledError:
            request.code = "client_gone"
            raise
        finally:
            self._metrics.request(request.tier, request.code, self._clock() - request.arrived_s)
            if request.kept is not None:
                outcome = "kept" if request.kept else "missed"
                self._metrics.count("moray_promises_total", tier=request.tier, outcome=outcome)
            scope[LOG_NOTE] = f"key={request.key} tier={request.tier} code={request.code}"

    def _asked(self, scope: Scope, chat: Chat, tenant: str, plan: Plan | None, request: _Request) -> Asked:
        """What the desk decides on. Everything that the caller got wrong is told here."""
        family = self._family
        named = family.tier_of(chat.model) or (family.auto.default if family.auto else None)
        prompt_tokens = self._estimates.prompt_tokens(named, chat)
        tiers = range_of(wish_of(scope, chat, prompt_tokens), plan, family)
        request.tier = tiers.tiers[0]
        spec = family.tiers[request.tier]
        request.slo = spec.slo
        prompt_tokens = min(prompt_tokens, spec.context_tokens - 1)  # a guess above it is wrong, or the engine refuses
        self._metrics.count("moray_arrivals_total", tier=request.tier)
        self._metrics.count("moray_arrived_prompt_tokens_total", prompt_tokens, tier=request.tier)
        return Asked(
            request_id=chat.request_id,
            range=tiers,
            tenant=tenant,
            priority=chat.priority,
            share=plan.share if plan else 1.0,
            prompt_tokens=prompt_tokens,
            arrived_s=request.arrived_s,
        )

    async def _serve(self, chat: Chat, asked: Asked, request: _Request, send: Send) -> None:
        course = Course(self._courses, chat, asked)
        answer = self._stream if chat.stream else self._whole
        try:
            outcome = await answer(course, request, send)
            self._measure(chat, course, outcome, request)
        except MorayError as error:
            request.kept = _blame(error)
            raise
        finally:
            course.close()
            if course.place is not None:
                served = course.place.served
                self._metrics.observe("moray_hold_seconds", served.queued_s, tier=request.tier)
                if served.tier != request.tier:
                    self._metrics.count("moray_spilled_total", tier=request.tier)

    async def _whole(self, course: Course, request: _Request, send: Send) -> Outcome:
        outcome = await course.whole()
        request.last_s = self._clock()
        request.first_s = request.last_s - (outcome.total_s - outcome.first_s)
        await respond(send, 200, outcome.body, self._headers(course))
        return outcome

    async def _stream(self, course: Course, request: _Request, send: Send) -> Outcome:
        """The status line waits for the first bytes, so that a refusal still has its own; never for long."""
        begun = False
        self._metrics.streams(request.tier, +1)
        try:
            while (data := await course.next(KEEPALIVE_S)) is not None:
                if not begun:
                    begun = True
                    headers = _SSE + self._headers(course)
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                if data:
                    request.last_s = self._clock()
                    request.first_s = request.first_s or request.last_s
                await send({"type": "http.response.body", "body": data or KEEPALIVE, "more_body": True})
            assert course.outcome is not None
            outcome = course.outcome
        except MorayError as error:
            if not begun:
                raise
            log.info("request_id=%s code=%s %s", course.asked.request_id, error.code, error.message)
            await send({"type": "http.response.body", "body": error_event(error), "more_body": True})
            outcome = Outcome(error=error)
        finally:
            self._metrics.streams(request.tier, -1)
        await send({"type": "http.response.body", "body": b""})
        return outcome

    def _headers(self, course: Course) -> list[Header]:
        """Who serves, as far as it is known: a stream may begin with comments before anybody does."""
        if course.place is not None:
            tier, headers = course.place.served.tier, _served(course.place.served)
        elif len(course.asked.range.tiers) == 1:
            tier, headers = course.asked.range.tiers[0], []
        else:
            return []
        headers.append((b"moray-tier", tier.encode()))
        if self._family.tiers[tier].engine == "simulated":
            headers.append((b"moray-engine", b"simulated"))
        if self._family.tiers[tier].deferrable:
            headers.append((b"moray-class", b"deferrable"))
        return headers

    def _measure(self, chat: Chat, course: Course, outcome: Outcome, request: _Request) -> None:
        """Time to the first token is the gateway's; time per token the replica's, if one gave them all."""
        if outcome.error is not None:
            request.code, request.kept = outcome.error.code, _blame(outcome.error)
            return
        request.code = "ok"
        if outcome.usage is None or course.place is None or request.slo is None:
            return
        usage, tier = outcome.usage, course.place.served.tier
        decode_s = request.last_s - request.first_s if course.rescues else outcome.total_s - outcome.first_s
        ttft_s, tpot_s = request.first_s - request.arrived_s, _tpot_s(usage, decode_s)
        request.kept = ttft_s <= request.slo.ttft_s and (tpot_s or 0.0) * 1e3 <= request.slo.tpot_ms
        self._metrics.answered(tier, usage, ttft_s, tpot_s)
        self._estimates.learn(tier, chat, usage.prompt_tokens)


def _served(served: Served) -> list[Header]:
    headers = [
        (b"moray-replica", served.replica.encode()),
        (b"moray-queued-ms", f"{served.queued_s * 1e3:.1f}".encode()),
    ]
    if served.spilled is not None:
        headers.append((b"moray-spilled", served.spilled.encode()))
    return headers


def _tpot_s(usage: Usage, decode_s: float) -> float | None:
    """`decode_s`: from the first token to the last."""
    return decode_s / (usage.completion_tokens - 1) if usage.completion_tokens > 1 else None


def _blame(error: MorayError) -> bool | None:
    """False: a promise missed. What the caller can mend breaks none."""
    return False if isinstance(error, Overloaded) or error.status >= 500 else None
