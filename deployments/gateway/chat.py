"""POST /v1/chat/completions. The gateway thinks once per request; after that it only moves bytes."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from starlette.types import Receive, Scope, Send

from cluster.access import cache_salt
from cluster.domains import domain_of
from cluster.errors import MorayError, Overloaded
from cluster.family import Family, Plan
from cluster.quota import within
from cluster.request import Chat, Served, Usage
from cluster.service_class import BELOW_PLANS, patience_of, priority_of, served_in
from cluster.tiering import Range
from deployments.gateway.account import Account
from deployments.gateway.asgi import (
    HEADERS,
    LOG_FIELDS,
    REQUEST_ID,
    Header,
    authorize,
    header,
    logged,
    read_body,
    respond,
)
from deployments.gateway.asked import Asked
from deployments.gateway.booking import Bookings
from deployments.gateway.chat_request import ChatBody
from deployments.gateway.choices import Choices, opened
from deployments.gateway.description import JSON, SSE, Described
from deployments.gateway.inputs import Inputs
from deployments.gateway.metrics import GatewayMetrics
from deployments.gateway.moderation import Check, said, unjudged
from deployments.gateway.rescue import Course, Courses
from deployments.gateway.tracing import Tracer
from deployments.gateway.wire import error_event, parse_chat
from deployments.gateway.wishes import WISHES, Estimates, beside_text, embedding, hint_of, plan_of, range_of, wish_of
from deployments.log import event
from deployments.stores.key_rows import KeyRows
from deployments.stores.keys import KeyRecord
from deployments.stream import Outcome

log = logging.getLogger("ray.serve")
Parse = Callable[[bytes, str, int, int], Chat]  # body, request id, now in Unix seconds, seed where none is given
KEEPALIVE_S = 10.0
KEEPALIVE = b": waiting\n\n"
_SSE: list[Header] = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A chat whose key is known, and that other routes have read. `last`: after every plan's requests, with no promise.

    `spare`: of those, what runs on what is left over. No replica is to start or to stay for it.
    """

    record: KeyRecord
    chat: Chat
    last: bool = False
    spare: bool = False


class ChatCompletions:
    """The ASGI endpoint."""

    described = Described(
        body=ChatBody,
        headers={**WISHES, "moray-ledger": {"enum": ["yes"]}},
        gives="chat.completion",
        media=(JSON, SSE),
    )

    def __init__(
        self,
        courses: Courses,
        keys: KeyRows,
        metrics: GatewayMetrics,
        bookings: Bookings,
        clock: Callable[[], float],
        tracer: Tracer,
    ) -> None:
        self._courses = courses
        self._bookings = bookings
        self._tracer = tracer
        self._keys = keys
        self._metrics = metrics
        self._clock = clock  # that of the desk
        self._estimates = Estimates()
        self.moderate: Check = unjudged
        self.inputs = Inputs()

    @property
    def _family(self) -> Family:
        return self._courses.family

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.answer(scope, receive, send)

    async def answer(
        self, scope: Scope, receive: Receive, send: Send, given: Given | None = None, parse: Parse = parse_chat
    ) -> None:
        """`given`: in the place of the header's key and the body, which `parse` reads."""
        account = Account(arrived_s=self._clock(), span=self._tracer.begin(scope))
        try:
            record = given.record if given else authorize(scope, self._keys)
            account.key = record.id
            plan = plan_of(record, self._family)
            chat = given.chat if given else await self._read(scope, receive, parse)
            chat = await self.inputs.read(chat, wish_of(scope, chat, 1), plan, self._family, record.id)
            await self.moderate(scope, record.id, said(chat))
            domain = domain_of(hint_of(scope), chat.messages, self._family.personas)
            last = given is not None and given.last
            chat = replace(chat, domain=domain, service_class=served_in(chat.service_class, plan, last=last))
            priority = BELOW_PLANS if last else priority_of(chat.service_class, plan, self._family)
            salt = cache_salt(record, self._family.accounts.prefix_cache)
            chat = replace(chat, priority=priority, traced=account.span is not None, cache_salt=salt)
            account.chat = chat
            asked = self._asked(scope, chat, record.id, plan, account, given)
            held = within(plan, chat, max(asked.prompts))
            headers = scope.setdefault(HEADERS, [])
            async with self._bookings.of(record, plan, chat, asked, self._family, headers) as booking:
                account.booking = booking
                await self._serve(held, asked, account, send, header(scope, b"moray-ledger") == b"yes")
        except MorayError as error:
            _in_its_words(error, account)
            account.code = error.code
            if error.status < 500:
                self._metrics.count("moray_rejections_total", tier=account.tier, code=error.code)
            raise
        except asyncio.CancelledError:
            account.code = "client_gone"
            raise
        finally:
            ended_s = self._clock()
            self._metrics.request(account.tier, account.code, ended_s - account.arrived_s)
            if account.kept is not None and not (_flexible(account.chat) or (given and given.last)):
                outcome = "kept" if account.kept else "missed"
                self._metrics.count("moray_promises_total", tier=account.tier, outcome=outcome)
            self._tracer.end(account, scope[REQUEST_ID], ended_s)
            scope[LOG_FIELDS] = account.fields()

    async def _read(self, scope: Scope, receive: Receive, parse: Parse) -> Chat:
        body = await read_body(scope, receive, self._family.gateway.max_body_bytes)
        return parse(body, scope[REQUEST_ID], int(time.time()), secrets.randbits(63))

    def _asked(
        self, scope: Scope, chat: Chat, tenant: str, plan: Plan | None, account: Account, given: Given | None
    ) -> Asked:
        """What the desk decides on. Everything that the caller got wrong is told here."""
        family = self._family
        named = family.tier_of(chat.model) or (family.auto.default if family.auto else None)
        beside = beside_text(chat, family.tiers[named]) if named else 0
        prompts = tuple(tokens + beside for tokens in self._estimates.prompts(named, chat))
        tiers = range_of(wish_of(scope, chat, max(prompts)), plan, family)
        if chat.embeds:
            tiers = embedding(tiers, chat.model, family)
        spare = given is not None and given.spare
        if spare or _flexible(chat):
            tiers = Range(tiers.tiers[:1], tiers.reason, tiers.auto)  # it waits, and takes no place of others
        account.tier = tiers.tiers[0]
        spec = family.tiers[account.tier]
        account.slo = spec.slo
        # A guess above it is wrong, or the engine refuses.
        prompts = tuple(min(tokens, spec.context_tokens - 1) for tokens in prompts)
        if not spare:
            arrived_tokens = chat.choices * sum(prompts)
            self._metrics.count("moray_arrivals_total", chat.answers, tier=account.tier)
            self._metrics.count("moray_arrived_prompt_tokens_total", arrived_tokens, tier=account.tier)
        return Asked(
            request_id=chat.request_id,
            range=tiers,
            tenant=tenant,
            priority=chat.priority,
            share=plan.share if plan else 1.0,
            prompt_tokens=sum(prompts),
            prompts=prompts,
            arrived_s=account.arrived_s,
            patience=patience_of(chat.service_class, family),
            spare=spare,
        )

    async def _serve(self, chat: Chat, asked: Asked, account: Account, send: Send, timed: bool) -> None:
        """`timed`: the client wants the ledger."""
        account.asked_s = self._clock()
        course = opened(self._courses, chat, asked)
        assert account.booking is not None
        account.booking.follow(course)
        answer = self._stream if chat.stream else self._whole
        try:
            outcome = await answer(course, account, send, timed)
            self._measure(chat, course, outcome, account)
        except MorayError as error:
            account.kept = _blame(error)
            raise
        finally:
            course.close()
            if not account.stages:
                account.close(course, None, self._clock())
            if course.place is not None:
                served = course.place.served
                self._metrics.observe("moray_hold_seconds", served.queued_s, tier=account.tier)
                if served.tier != account.tier:
                    self._metrics.count("moray_spilled_total", tier=account.tier)

    async def _whole(self, course: Course | Choices, account: Account, send: Send, timed: bool) -> Outcome:
        outcome = await course.whole()
        account.last_s = self._clock()
        account.first_s = account.last_s - (outcome.total_s - outcome.first_s)
        account.close(course, outcome, account.last_s)
        headers = self._headers(course)
        if timed:
            headers.append((b"server-timing", account.timing()))
        assert account.booking is not None
        await account.booking.settle("ok", course, outcome.usage)
        await respond(send, 200, outcome.body, headers)
        return outcome

    async def _stream(self, course: Course | Choices, account: Account, send: Send, timed: bool) -> Outcome:
        """The status line waits for the first bytes, so that a refusal still has its own; never for long."""
        begun = False
        self._metrics.streams(account.tier, +1)
        try:
            while (data := await course.next(KEEPALIVE_S)) is not None:
                if not begun:
                    begun = True
                    headers = _SSE + self._headers(course)
                    if timed:
                        headers.append((b"server-timing", account.timing_so_far(course)))
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                if data:
                    account.last_s = self._clock()
                    account.first_s = account.first_s or account.last_s
                await send({"type": "http.response.body", "body": data or KEEPALIVE, "more_body": True})
            assert course.outcome is not None
            outcome = course.outcome
            account.close(course, outcome, self._clock())
        except MorayError as error:
            _in_its_words(error, account)
            if not begun:
                raise
            event(
                log,
                logging.INFO,
                "stream broke",
                request_id=course.asked.request_id,
                code=error.code,
                **logged(error),
            )
            await send({"type": "http.response.body", "body": error_event(error), "more_body": True})
            outcome = Outcome(error=error)
        finally:
            self._metrics.streams(account.tier, -1)
        assert account.booking is not None
        await account.booking.settle(outcome.error.code if outcome.error else "ok", course, outcome.usage)
        last = b": server-timing " + account.timing() + b"\n\n" if timed and account.stages else b""
        await send({"type": "http.response.body", "body": last})
        return outcome

    def _headers(self, course: Course | Choices) -> list[Header]:
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

    def _measure(self, chat: Chat, course: Course | Choices, outcome: Outcome, account: Account) -> None:
        """Time to the first token is the gateway's; time per token the replica's, if one gave them all."""
        if outcome.error is not None:
            account.code, account.kept = outcome.error.code, _blame(outcome.error)
            return
        account.code = "ok"
        if outcome.usage is None or course.place is None or account.slo is None:
            return
        tier = course.place.served.tier
        decode_s = account.last_s - account.first_s if course.rescues else outcome.total_s - outcome.first_s
        ttft_s, tpot_s = account.first_s - account.arrived_s, _tpot_s(course.usages[0], decode_s)
        account.kept = ttft_s <= account.slo.ttft_s and (tpot_s or 0.0) * 1e3 <= account.slo.tpot_ms
        self._metrics.answered(tier, course.usages, ttft_s, tpot_s, account.stages, spare=course.asked.spare)
        self._estimates.learn(tier, chat, outcome.usage.prompt_tokens)


def _flexible(chat: Chat | None) -> bool:
    """Nothing was promised to it."""
    return chat is not None and chat.service_class == "flex"


def _in_its_words(error: MorayError, account: Account) -> None:
    """As the API says it of that class, and of prompts that are no messages."""
    if isinstance(error, Overloaded) and _flexible(account.chat):
        error.code = "resource_unavailable"
    if error.param == "messages" and account.chat is not None and account.chat.prompts:
        error.param, error.message = "prompt", error.message.replace("messages", "prompt")


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
