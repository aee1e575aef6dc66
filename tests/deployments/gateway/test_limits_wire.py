from collections.abc import Sequence
from typing import Any

import httpx2
import openai
import pytest
from openai import RateLimitError

from cluster.errors import Overloaded, QuotaExceeded, RateLimited
from cluster.limits import Account, Limit, Reservation, Verdict, reserve
from deployments.gateway.limits_wire import limit_headers, refusal, span, tell
from deployments.gateway.wire import error_body, error_headers

TOKENS = Limit(currency="tokens", amount=600, period="minute")
REQUESTS = Limit(currency="requests", amount=3, period="minute")
PLACES = Limit(currency="concurrent", amount=2, period="held")
BUDGET = Limit(currency="usd", amount=2.5, period="month")
NOON_S = 1_795_262_400.0  # of 21 November 2026, UTC


def asked(limits: Sequence[Limit], spent: dict[Any, float], **amounts: Any) -> Verdict:
    """The verdict of a request after another one has spent that."""
    words: dict[Any, float] = amounts
    account, _ = reserve(Account(), limits, Reservation(id="a", amounts=spent), NOON_S)
    return reserve(account, limits, Reservation(id="b", amounts=words), NOON_S)[1]


def test_headers_tell_what_is_left_of_requests_and_tokens_after_this_one() -> None:
    verdict = asked([REQUESTS, TOKENS, PLACES, BUDGET], {"requests": 1, "tokens": 100}, requests=1, tokens=80.5)
    assert limit_headers(verdict.standings) == {
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-reset-requests": "40s",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "419",
        "x-ratelimit-reset-tokens": "18.05s",
    }


def test_what_is_left_is_told_once_as_it_was_last() -> None:
    headers = [(b"moray-moderation", b"flagged")]
    for taken in (1, 2):
        tell(headers, asked([REQUESTS], {"requests": taken}, requests=1).standings)
    assert sorted(headers) == [
        (b"moray-moderation", b"flagged"),
        (b"x-ratelimit-limit-requests", b"3"),
        (b"x-ratelimit-remaining-requests", b"0"),
        (b"x-ratelimit-reset-requests", b"1m0s"),
    ]


def test_who_has_no_such_limit_gets_no_such_header() -> None:
    assert limit_headers(asked([TOKENS], {}, tokens=600).standings).keys() == {
        "x-ratelimit-limit-tokens",
        "x-ratelimit-remaining-tokens",
        "x-ratelimit-reset-tokens",
    }
    assert limit_headers(asked([PLACES, BUDGET], {}).standings) == {}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (0.0171, "18ms"), (0.5, "500ms"), (0.9999, "1s"), (8.64, "8.64s"), (60, "1m0s"), (90.25, "1m30.25s"),
        (93_600, "26h0m0s"),
    ],
)  # fmt: skip
def test_times_are_written_as_the_api_writes_them(seconds: float, text: str) -> None:
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("limits", "spent", "amounts", "kind", "message", "headers"),
    [
        (
            [TOKENS], {"tokens": 600}, {"tokens": 125}, RateLimited,
            "tokens_per_minute: asked 125, 0 of 600 are left; this key's plan allows 600 per minute; "
            "try again in 13s, or change the plan",
            {"Retry-After": "13"},
        ),
        (
            [TOKENS], {}, {"tokens": 700}, RateLimited,
            "tokens_per_minute: asked 700, 600 of 600 are left; this key's plan allows 600 per minute; "
            "ask for less, or change the plan",
            {"x-should-retry": "false"},
        ),
        (
            [PLACES], {"concurrent": 2}, {"concurrent": 1}, RateLimited,
            "concurrent: asked 1, 0 of 2 are left; this key's plan allows 2 at once; "
            "try again in 1s, or change the plan",
            {"Retry-After": "1"},
        ),
        (
            [BUDGET], {"usd": 2.5}, {"usd": 0.25}, QuotaExceeded,
            "budget_usd_per_month: asked 0.25, 0 of 2.5 are left; this key's plan allows 2.5 per month; "
            "try again in 228h0m0s, or change the plan",
            {"Retry-After": "820800", "x-should-retry": "false"},
        ),
    ],
    ids=["later", "never", "a place", "next month"],
)  # fmt: skip
def test_a_refusal_says_which_limit_what_is_left_and_when_to_come_back(
    limits: list[Limit],
    spent: dict[str, float],
    amounts: dict[str, float],
    kind: type[RateLimited],
    message: str,
    headers: dict[str, str],
) -> None:
    error = refusal(asked(limits, spent, **amounts))
    assert type(error) is kind
    assert error.message == message
    assert error_headers(error) == headers


def test_being_limited_is_not_being_overloaded() -> None:
    assert not issubclass(RateLimited, Overloaded)


def test_clients_of_openai_know_the_errors() -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        error = refusal(asked([BUDGET], {"usd": 2.5}, usd=1))
        calls.append(request)
        return httpx2.Response(error.status, content=error_body(error), headers=error_headers(error))

    calls: list[httpx2.Request] = []
    client = openai.OpenAI(
        api_key="x", base_url="http://moray", http_client=httpx2.Client(transport=httpx2.MockTransport(answer))
    )
    with pytest.raises(RateLimitError) as caught:
        client.models.list()
    assert (caught.value.code, caught.value.type) == ("insufficient_quota", "insufficient_quota")
    assert len(calls) == 1  # it does not ask again
