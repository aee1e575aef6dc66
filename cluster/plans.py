"""What a tenant's subscription may use, and where it is counted."""

import re
from collections.abc import Mapping, Sequence
from typing import Literal, Self
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from cluster.engines import Closed
from cluster.limits import Currency, Limit, Period
from cluster.tier import Name

RATES: Mapping[str, tuple[Currency, Period]] = {
    "requests_per_minute": ("requests", "minute"),
    "tokens_per_minute": ("tokens", "minute"),
    "gpu_seconds_per_minute": ("gpu_s", "minute"),
    "concurrent": ("concurrent", "held"),
    "video_seconds_per_day": ("video_s", "day"),
    "budget_usd_per_month": ("usd", "month"),
}
StoreKind = Literal["sqlite", "redis", "postgresql"]
_SCHEMES: Mapping[str, StoreKind] = {
    "redis": "redis",
    "rediss": "redis",
    "postgres": "postgresql",
    "postgresql": "postgresql",
}


class Plan(Closed):
    """What a tenant's subscription may use. Higher `priority` goes first; `share` weighs the fair share of GPU-seconds.

    A request may be spilled to other tiers of the plan: `up`, as good or better; `down`, but never below `floor`. Each
    project has the limits for itself, for all its keys of the plan; without a number there is none. Days and months are
    those of UTC, as cluster.limits says. `concurrent`: answers under way; a video's job is none, it may wait for hours.
    `context_tokens`: of one request, its answer included.
    """

    tiers: tuple[Name, ...] = Field(min_length=1)
    priority: int = Field(default=0, ge=0)
    share: PositiveFloat = 1.0
    spill: Literal["none", "up", "down", "both"] = "both"
    floor: Name | None = None
    requests_per_minute: PositiveInt | None = None
    tokens_per_minute: PositiveInt | None = None
    gpu_seconds_per_minute: PositiveFloat | None = None
    concurrent: PositiveInt | None = None
    video_seconds_per_day: PositiveInt | None = None
    context_tokens: PositiveInt | None = None
    budget_usd_per_month: PositiveFloat | None = None

    @model_validator(mode="after")
    def coherent(self) -> Self:
        if self.floor is not None and self.floor not in self.tiers:
            known = ", ".join(self.tiers)
            raise ValueError(f"floor is {self.floor!r}; tiers of the plan are {known}; name one of them")
        rate, context = self.tokens_per_minute, self.context_tokens
        if rate is not None and context is not None and rate < context:
            raise ValueError(
                f"tokens_per_minute is {rate}, below context_tokens {context}; a request of the whole context would "
                "never be granted; raise the one or lower the other"
            )
        return self

    @property
    def limits(self) -> tuple[Limit, ...]:
        given = ((getattr(self, field), rate) for field, rate in RATES.items())
        return tuple(Limit(currency=rate[0], amount=amount, period=rate[1]) for amount, rate in given if amount)


class Flex(Closed):
    """What may wait: `patience_factor` times as long as others, for `price_factor` times the price."""

    price_factor: NonNegativeFloat = 0.5
    patience_factor: float = Field(default=4.0, ge=1, le=1000)


class Urgent(Closed):
    price_factor: NonNegativeFloat = 2.0


class ServiceClasses(Closed):
    """Of requests that ask for one by `service_tier`, as cluster.service_class says."""

    flex: Flex = Flex()
    priority: Urgent = Urgent()


class LimitStore(Closed):
    """Where limits are counted, for all gateways that are to count as one.

    `store`: sqlite, a file in the state folder, for the gateways of one machine; or a URL without a password, of Redis
    or PostgreSQL. A password comes from the file that PGPASSFILE names, or, of Redis, from `password_file`.
    """

    store: str = "sqlite"
    password_file: str | None = None

    @model_validator(mode="after")
    def usable(self) -> Self:  # the fault of a field would show what was given, and so a password
        parts = urlsplit(self.store)
        if self.store != "sqlite" and not (parts.scheme in _SCHEMES and re.match("[a-z]+://.", self.store)):
            raise ValueError(
                "store is none that is known; sqlite, redis://HOST:PORT/NUMBER, rediss://... and "
                "postgresql://USER@HOST/DATABASE are allowed; name one of them"
            )
        if parts.password is not None or "password" in parse_qs(parts.query):
            raise ValueError(
                "store is given with a password; a URL without one is allowed; move it into password_file, or of "
                "PostgreSQL into the file that PGPASSFILE names"
            )
        if self.password_file is not None and self.kind != "redis":
            raise ValueError(f"password_file is given for {self.kind}; only Redis takes one; leave it out")
        return self

    @property
    def kind(self) -> StoreKind:
        return _SCHEMES.get(urlsplit(self.store).scheme, "sqlite")


def unmet(plan: Plan, contexts_tokens: Mapping[str, int], video_seconds: Sequence[int]) -> str | None:
    """Why a limit of the plan would never bite in its family, or grant nothing; None where all are sound.

    `contexts_tokens`: of the family's tiers. `video_seconds`: what a video may have, nothing where there is no model.
    """
    longest = max(contexts_tokens[tier] for tier in plan.tiers)
    if plan.context_tokens is not None and plan.context_tokens > longest:
        return (
            f"context_tokens is {plan.context_tokens}; the longest of its tiers is {longest}; lower it, or leave it out"
        )
    if plan.video_seconds_per_day is not None and plan.video_seconds_per_day < min(video_seconds, default=0):
        return (
            f"video_seconds_per_day is {plan.video_seconds_per_day}; the shortest video has {min(video_seconds)} s and "
            "would never be granted; raise it"
        )
    return None
