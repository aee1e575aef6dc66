"""Limits on the wire, as in OpenAI's API: headers that tell what is left, and the errors of who asks for more."""

import math
from collections.abc import Mapping, Sequence

from cluster.errors import QuotaExceeded, RateLimited
from cluster.limits import Standing, Verdict


def limit_headers(standings: Sequence[Standing]) -> Mapping[str, str]:
    """Of requests and tokens, where they have a limit: how many, how many are left, until all are there again."""
    headers = {}
    for standing in standings:
        currency = standing.limit.currency
        if currency in ("requests", "tokens"):
            headers[f"x-ratelimit-limit-{currency}"] = f"{standing.limit.amount:.0f}"
            # A refill of a third of a token is told when it is a whole one; rounding of doubles is no third.
            headers[f"x-ratelimit-remaining-{currency}"] = str(math.floor(standing.remaining + 1e-9))
            headers[f"x-ratelimit-reset-{currency}"] = span(standing.reset_s)
    return headers


def tell(headers: list[tuple[bytes, bytes]], standings: Sequence[Standing]) -> None:
    """In the place of what was told before: a storyboard's script is reserved as a chat, and its shots after it."""
    told = {name.encode(): value.encode() for name, value in limit_headers(standings).items()}
    headers[:] = [*(each for each in headers if each[0] not in told), *told.items()]


def refusal(verdict: Verdict) -> RateLimited:
    """The error of a verdict that does not grant: QuotaExceeded where the limit is of a day or a month."""
    limit, retry_s = verdict.refused, verdict.retry_after_s
    assert limit is not None
    kind = QuotaExceeded if limit.lasting else RateLimited
    per = "at once" if limit.period == "held" else f"per {limit.period}"
    mend = "ask for less" if retry_s is None else f"try again in {span(math.ceil(retry_s))}"
    allowed = f"this key's plan allows {limit.amount:g} {per}"
    return kind(f"{verdict.reason}; {allowed}; {mend}, or change the plan", retry_after_s=retry_s)


def span(seconds: float) -> str:
    """As the API writes times: 17ms, 1.5s, 6m0s, 26h0m0s; rounded up to a millisecond."""
    ms = math.ceil(seconds * 1000 - 1e-6)
    if 0 < ms < 1000:
        return f"{ms}ms"
    minutes, rest_ms = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    above = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{above}{rest_ms / 1000:g}s"
