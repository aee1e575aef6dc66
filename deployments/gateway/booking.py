"""Around each chat: what it may take is put aside before it is sent, what it took is written down before it ends."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Self

from cluster.access import KeyRecord
from cluster.family import Family, Plan
from cluster.limits import Currency, Limit
from cluster.quota import chat_needs, taken
from cluster.request import Chat
from cluster.request import Usage as Counted
from cluster.service_class import price_factor
from cluster.usage import Usage, chat_gpu_s, price_of, tokens_nusd
from deployments.gateway.asgi import Header
from deployments.gateway.asked import Asked
from deployments.gateway.choices import Choices
from deployments.gateway.metrics import GatewayMetrics
from deployments.gateway.quota import NOTHING, Quotas, Share, tenant_of
from deployments.gateway.rescue import Course
from deployments.stores.usage import JOURNAL_FILE, USAGE_FILE, PostgresUsage, SqliteUsage
from deployments.stores.usage_journal import Journal


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """`estimated`: no engine counted the prompt. `answers` have `read_tokens` of prompts that engines computed."""

    tier: str
    code: str
    counted: Counted
    read_tokens: int
    answers: int
    estimated: bool = False


class Bookings:
    """One per gateway. `now_s`: Unix seconds."""

    def __init__(self, journal: Journal, quotas: Quotas, now_s: Callable[[], float] = time.time) -> None:
        self._journal, self._quotas, self._now_s = journal, quotas, now_s

    def of(
        self, record: KeyRecord, plan: Plan | None, chat: Chat, asked: Asked, family: Family, headers: list[Header]
    ) -> "Booking":
        """To be entered around all that is done for the request; `headers` then gain what is left of its limits."""
        opened = Usage(
            id=f"{chat.request_id}/{token_hex(6)}",  # clients name requests as they like, twice the same too
            at_s=int(self._now_s()),
            kind="embedding" if chat.embeds else "chat",
            org=record.org,
            project=record.project,
            key_id=record.id,
            model=chat.model,
            tier_asked=asked.range.tiers[0],
            tier_served="none",
            code="lost",
        )
        factor = price_factor(chat.service_class, family)
        limits: Sequence[Limit] = plan.limits if plan else ()
        needs = chat_needs(family, plan, chat, asked.range.tiers[0], asked.prompts, factor) if plan else NOTHING
        share = Share(self._quotas, tenant_of(record), limits, needs, headers)
        return Booking(self._journal, opened, family, self._now_s, factor, share)


class Booking:
    """Of one request. What leaves without a word, as on an error, is settled by what its course says."""

    def __init__(
        self,
        journal: Journal,
        opened: Usage,
        family: Family,
        now_s: Callable[[], float],
        factor: float,
        share: Share,
    ) -> None:
        self._journal, self._opened, self._family, self._now_s = journal, opened, family, now_s
        self._factor, self._share = factor, share
        self._course: Course | Choices | None = None
        self._over = False

    async def __aenter__(self) -> Self:
        """Raises RateLimited, Unavailable."""
        await self._share.reserve()
        self._journal.open(self._opened)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._over:
            return
        self._over = True
        used = None if self._course is None else _left(self._course, error)
        event = None if used is None else self._event(used)
        if event is None:
            self._journal.forget(self._opened.id)
        else:
            self._journal.put(event)
        self._share.settle(self._took(event, gone=isinstance(error, asyncio.CancelledError)))
        await self._share.settled()

    def follow(self, course: Course | Choices) -> None:
        """What it has taken so far can be seen from now on."""
        self._course = course

    async def settle(self, code: str, course: Course | Choices, counted: Counted | None) -> None:
        """Returns once it is written. `counted`: None where no engine counted."""
        used = _so_far(course, code) if counted is None else _used(course, code, counted)
        event = None if used is None else self._event(used)
        self._over = True
        self._share.settle(self._took(event))
        if event is None:
            self._journal.forget(self._opened.id)
        else:
            await self._journal.settle(event)
        await self._share.settled()

    def _took(self, event: Usage | None, *, gone: bool = False) -> Mapping[Currency, float]:
        """Of its limits: what the ledger counts. Without a token nothing, but for a client that left a replica at work:

        a stream's prompt; of a whole answer nobody knows how much was made, so it stays reserved, less the money.
        """
        if event is not None:
            return taken(event)
        if not gone or self._course is None or self._course.sent_s is None:
            return NOTHING
        if not self._course.streamed:
            return {"usd": 0.0}
        return {**NOTHING, "requests": 1.0, "tokens": float(self._course.asked.prompt_tokens)}

    def _event(self, used: Used) -> Usage:
        opened, counted = self._opened, used.counted
        price = price_of(self._family, opened.model, opened.tier_asked)
        return replace(
            opened,
            at_s=int(self._now_s()),
            tier_served=used.tier,
            code=used.code,
            input_tokens=counted.prompt_tokens,
            cached_tokens=counted.cached_tokens,
            output_tokens=counted.completion_tokens,
            estimated=int(used.estimated),
            gpu_s=self._gpu_s(used),
            price_nusd=tokens_nusd(price, counted.prompt_tokens, counted.completion_tokens, self._factor),
        )

    def _gpu_s(self, used: Used) -> float:
        """Of so many answers of the same length: a sequence's cost grows with its length.

        Vectors cost what the prompt of an answer of one token does.
        """
        answered = used.counted.completion_tokens or int(self._opened.kind == "embedding")
        mean = used.read_tokens // used.answers, -(-answered // used.answers)
        return used.answers * chat_gpu_s(self._family, used.tier, *mean)


def journal_of(family: Family, gateway: str, metrics: GatewayMetrics) -> Journal:
    """Raises ConfigurationError, Unavailable."""
    folder, url = Path(family.state_folder), family.accounts.database

    def written(events: tuple[Usage, ...]) -> None:
        for event in events:
            metrics.count("moray_usage_events_total", tier=event.tier_served)
            metrics.count("moray_billed_prompt_tokens_total", event.input_tokens, tier=event.tier_served)
            metrics.count("moray_billed_completion_tokens_total", event.output_tokens, tier=event.tier_served)

    store = SqliteUsage(folder / (USAGE_FILE if url is None else JOURNAL_FILE))
    journal = Journal(store, gateway, None if url is None else PostgresUsage(url), written)
    metrics.journal = journal
    journal.start()
    return journal


def _left(course: Course | Choices, error: BaseException | None) -> Used | None:
    return _so_far(course, getattr(error, "code", "client_gone"))


def _so_far(course: Course | Choices, code: str) -> Used | None:
    """By the tokens that its client was given; None where there are none."""
    if not course.given_tokens:
        return None
    counted = Counted(prompt_tokens=course.asked.prompt_tokens, completion_tokens=course.given_tokens)
    return replace(_used(course, code, counted), estimated=True)


def _used(course: Course | Choices, code: str, counted: Counted) -> Used:
    return Used(
        tier=_tier(course),
        code=code,
        counted=counted,
        read_tokens=course.read_tokens,
        answers=max(1, course.begun),
    )


def _tier(course: Course | Choices) -> str:
    return course.place.served.tier if course.place is not None else "none"
