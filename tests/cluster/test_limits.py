"""The law of limits: what may be taken, when it comes back, and what no order of events or clocks can grant."""

import datetime
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from limit_histories import AMOUNTS, CLOCKS, Event, events

from cluster.limits import (
    DAY_S,
    JOB_LEASE_S,
    Account,
    Limit,
    Period,
    Reservation,
    Verdict,
    edge_s,
    refund,
    renew,
    reserve,
    settle,
    state,
    turn,
)

NOON = datetime.datetime(2026, 11, 21, 12, tzinfo=datetime.UTC).timestamp()
TOKENS = Limit(currency="tokens", amount=600, period="minute")  # 10 each second
REQUESTS = Limit(currency="requests", amount=3, period="minute")
PLACES = Limit(currency="concurrent", amount=2, period="held")
VIDEO = Limit(currency="video_s", amount=60, period="day")
BUDGET = Limit(currency="usd", amount=100, period="month")


class Tenant:
    """Its account, as calls change it."""

    def __init__(self, *limits: Limit) -> None:
        self.limits, self.account = limits, Account()

    def reserve(self, key: str, at_s: float = NOON, **amounts: Any) -> Verdict:
        words: dict[Any, float] = amounts
        asked = Reservation(id=key, amounts=words)
        self.account, verdict = reserve(self.account, self.limits, asked, at_s)
        return verdict

    def settle(self, key: str, at_s: float = NOON, **actual: Any) -> bool:
        words: dict[Any, float] = actual
        self.account, done = settle(self.account, key, words, at_s)
        return done

    def refund(self, key: str, at_s: float = NOON) -> bool:
        self.account, done = refund(self.account, key, at_s)
        return done

    def renew(self, key: str, at_s: float) -> bool:
        self.account, open_ = renew(self.account, [key], 60, at_s)
        return key in open_

    def left(self, at_s: float = NOON) -> list[float]:
        return [standing.remaining for standing in state(self.account, self.limits, at_s)]


def test_a_minute_is_there_at_once_and_flows_back() -> None:
    tenant = Tenant(TOKENS)
    assert tenant.reserve("a", tokens=600).granted
    refused = tenant.reserve("b", tokens=100)
    assert not refused.granted
    assert (refused.refused, refused.retry_after_s) == (TOKENS, 10.0)  # 100 / 10 each second
    assert refused.reason == "tokens_per_minute: asked 100, 0 of 600 are left"
    assert not tenant.reserve("b", NOON + 9.9, tokens=100).granted
    assert tenant.reserve("b", NOON + 10, tokens=100).granted


def test_all_limits_are_taken_from_or_none() -> None:
    tenant = Tenant(TOKENS, REQUESTS)
    assert not tenant.reserve("a", tokens=601, requests=1).granted
    assert tenant.left() == [600, 3]
    verdict = tenant.reserve("b", tokens=100, requests=1)
    assert [standing.remaining for standing in verdict.standings] == [500, 2]


def test_of_several_limits_the_one_that_takes_longest_is_named() -> None:
    tenant = Tenant(TOKENS, REQUESTS)
    tenant.reserve("a", tokens=600, requests=3)
    verdict = tenant.reserve("b", tokens=600, requests=1)  # 60 s for the tokens, 20 s for the request
    assert (verdict.refused, verdict.retry_after_s) == (TOKENS, 60.0)


def test_more_than_the_limit_is_never_granted_and_says_no_time() -> None:
    verdict = Tenant(TOKENS).reserve("a", tokens=601)
    assert (verdict.granted, verdict.retry_after_s) == (False, None)


def test_what_was_not_needed_comes_back_and_what_was_needed_beyond_is_a_debt() -> None:
    tenant = Tenant(TOKENS, REQUESTS)
    tenant.reserve("a", tokens=400, requests=1)
    assert tenant.settle("a", tokens=100)
    assert tenant.left() == [500, 2]  # a currency that is not named took what was reserved
    tenant.reserve("b", tokens=500)
    assert tenant.settle("b", tokens=700)  # 800 of 600 are spent
    late = tenant.reserve("c", tokens=1)
    assert late.retry_after_s == pytest.approx(20.1)
    assert late.standings[0].remaining == 0


def test_who_asks_nothing_of_a_limit_is_not_refused_by_it() -> None:
    tenant = Tenant(TOKENS, BUDGET)
    tenant.reserve("a", usd=100)
    assert tenant.reserve("free", tokens=10, usd=0).granted


def test_a_limit_that_was_asked_nothing_still_takes_what_was_used() -> None:
    tenant = Tenant(replace(TOKENS, currency="gpu_s"))
    tenant.reserve("a")
    tenant.settle("a", gpu_s=50.0)
    assert tenant.left() == [550]


def test_a_refund_returns_all_of_it() -> None:
    tenant = Tenant(TOKENS, REQUESTS, PLACES)
    tenant.reserve("a", tokens=400, requests=1, concurrent=1)
    assert tenant.refund("a")
    assert tenant.left() == [600, 3, 2]


def test_the_same_word_twice_is_once() -> None:
    tenant = Tenant(TOKENS)
    assert tenant.reserve("a", tokens=400).granted
    assert tenant.reserve("a", tokens=400).granted
    assert tenant.left() == [200]
    assert [tenant.settle("a", tokens=300), tenant.settle("a", tokens=300), tenant.refund("a")] == [True, False, False]
    assert tenant.reserve("a", tokens=400).granted  # an echo of the first, which was granted
    assert tenant.left() == [300]
    assert not tenant.settle("never seen", tokens=1)


def test_a_place_comes_back_when_its_request_ends_and_never_before() -> None:
    tenant = Tenant(PLACES)
    for key in ("a", "b"):
        assert tenant.reserve(key, concurrent=1).granted
    refused = tenant.reserve("c", NOON + 59, concurrent=1)
    assert (refused.retry_after_s, refused.standings[0].reset_s) == (1.0, math.inf)
    tenant.settle("a", NOON + 59)
    assert tenant.reserve("c", NOON + 59, concurrent=1).granted


def test_a_reservation_that_nobody_settles_ends_with_its_lease_and_counts_as_spent() -> None:
    tenant = Tenant(PLACES, BUDGET)
    tenant.reserve("a", concurrent=2, usd=40)
    assert tenant.left(NOON + 59.9) == [0, 60]
    assert tenant.left(NOON + 60) == [2, 60]
    assert not tenant.settle("a", NOON + 60, usd=0)
    assert not tenant.renew("a", NOON + 60)


def test_who_renews_keeps_its_place() -> None:
    tenant = Tenant(PLACES)
    tenant.reserve("a", concurrent=2)
    assert tenant.renew("a", NOON + 50)
    assert tenant.left(NOON + 109) == [0]
    assert tenant.settle("a", NOON + 109)
    assert not tenant.renew("a", NOON + 109)


def test_a_day_and_a_month_come_back_whole_at_their_edges_of_utc() -> None:
    tenant = Tenant(VIDEO, BUDGET)
    verdict = tenant.reserve("a", video_s=60, usd=100)
    assert [standing.reset_s for standing in verdict.standings] == [DAY_S / 2, 9.5 * DAY_S]
    midnight, december = NOON + DAY_S / 2, NOON + 9.5 * DAY_S
    assert tenant.left(midnight - 1) == [0, 0]
    assert tenant.left(midnight) == [60, 0]
    assert tenant.left(december) == [60, 100]


def test_what_a_month_owes_is_taken_from_the_next() -> None:
    tenant = Tenant(BUDGET)
    tenant.reserve("a", usd=100)
    tenant.settle("a", usd=230)
    verdict = tenant.reserve("b", usd=10)
    assert verdict.retry_after_s == (9.5 + 31) * DAY_S  # December pays 100, January has 70 left
    assert tenant.left(NOON + 41 * DAY_S) == [70]


def test_what_the_last_month_did_not_need_is_no_gain_of_this_one() -> None:
    december = NOON + 9.5 * DAY_S
    tenant = Tenant(BUDGET)
    tenant.reserve("a", december - 30, usd=60)
    tenant.reserve("b", december + 1, usd=90)
    assert tenant.settle("a", december + 2, usd=0)
    assert tenant.left(december + 2) == [10]
    tenant.settle("b", december + 3, usd=40)
    assert tenant.left(december + 3) == [60]


def test_what_a_minute_has_given_back_by_time_is_not_given_back_again() -> None:
    tenant = Tenant(TOKENS, BUDGET)
    assert tenant.reserve("a", tokens=600, usd=10).granted
    assert tenant.renew("a", NOON + 30)
    assert tenant.reserve("b", NOON + 60, tokens=600).granted
    assert tenant.refund("a", NOON + 60)
    assert tenant.left(NOON + 60) == [0, 100], "a second minute's worth is out"
    assert tenant.renew("b", NOON + 90)
    assert tenant.settle("b", NOON + 120, tokens=700), "what was used beyond is owed whenever it is known"
    assert tenant.left(NOON + 120) == [500, 100]


def test_what_a_job_reserved_comes_back_however_late_its_end_within_the_month() -> None:
    tenant = Tenant(VIDEO, BUDGET)
    asked = Reservation(id="video", amounts={"video_s": 60, "usd": 10}, lease_s=JOB_LEASE_S)
    tenant.account, verdict = reserve(tenant.account, tenant.limits, asked, NOON)
    assert verdict.granted
    later = NOON + 9 * DAY_S
    assert tenant.reserve("b", later, video_s=30).granted
    assert tenant.refund("video", later)
    assert tenant.left(later) == [30, 100], "another day's seconds are none of its"
    assert not tenant.refund("video", later + DAY_S)


def test_a_clock_that_jumps_back_stands_still_and_says_how_long() -> None:
    tenant = Tenant(TOKENS)
    tenant.reserve("a", tokens=600)
    refused = tenant.reserve("b", NOON - 100, tokens=10)
    assert refused.retry_after_s == pytest.approx(101.0)
    assert not tenant.reserve("b", NOON, tokens=10).granted


def test_a_raised_limit_counts_at_once_and_a_lowered_one_too() -> None:
    tenant = Tenant(PLACES, BUDGET)
    tenant.reserve("a", concurrent=2, usd=50)
    tenant.limits = (replace(PLACES, amount=5), replace(BUDGET, amount=40))
    assert tenant.left() == [3, 0]


@given(st.dates(datetime.date(1970, 4, 1), datetime.date(2200, 1, 1)), st.floats(0, DAY_S - 1))
def test_months_are_those_of_the_calendar(day: datetime.date, seconds: float) -> None:
    def at_s(date: datetime.date) -> float:
        return (date - datetime.date(1970, 1, 1)).days * DAY_S

    number = turn("month", at_s(day) + seconds)
    assert edge_s("month", number) == at_s(day.replace(day=1))
    assert edge_s("month", number + 1) == at_s((day.replace(day=1) + datetime.timedelta(32)).replace(day=1))
    assert edge_s("day", turn("day", at_s(day) + seconds)) == at_s(day)


def passed(limit: Limit, history: Sequence[Event]) -> tuple[float, float]:
    """What was granted, as it was settled, and how much of that is beyond what had been reserved; without the law."""
    account = Account()
    granted: list[float] = []
    latest: dict[str, int] = {}
    excess = 0.0
    for event in history:
        before, amount = account, event.amounts[limit.currency]
        account = event.done(before, [limit])
        if event.what == "reserve" and account is not before:
            latest[event.id] = len(granted)
            granted.append(amount)
        if event.what == "settle" and account is not before:
            excess += max(0.0, amount - granted[latest[event.id]])
            granted[latest[event.id]] = amount
    return sum(granted), excess


@pytest.mark.parametrize("period", ["minute", "day", "month"])
@given(data=st.data())
def test_no_history_and_no_clock_grants_more_than_the_time_that_passed_allows(
    period: Period, data: st.DataObject
) -> None:
    limit = Limit(currency="tokens", amount=100, period=period)
    history = data.draw(events(CLOCKS[period], AMOUNTS))
    total, excess = passed(limit, history)
    first_s, last_s = min(e.at_s for e in history), max(e.at_s for e in history)
    turns = (last_s - first_s) / 60 if period == "minute" else turn(period, last_s) - turn(period, first_s)
    assert total <= limit.amount * (1 + turns) + excess + 1e-6


@given(events(CLOCKS["minute"], st.just(1.0)))
def test_open_requests_never_exceed_their_places(history: list[Event]) -> None:
    places = replace(PLACES, amount=3)
    account = Account()
    for event in history:
        account = event.done(account, [places])
        held = sum(1 for held in account.held.values() if held.open)
        assert held == (account.buckets["concurrent"].spent if account.buckets else 0) <= 3


@given(events(CLOCKS["minute"], AMOUNTS))
def test_a_word_said_twice_in_a_row_changes_nothing(history: list[Event]) -> None:
    limits = (replace(TOKENS, amount=100), BUDGET, PLACES)
    once, twice = Account(), Account()
    for event in history:
        once = event.done(once, limits)
        twice = event.done(event.done(twice, limits), limits)
    assert twice == once


@given(events(CLOCKS["month"], AMOUNTS))
def test_who_is_refused_waits_as_long_as_was_said_and_no_shorter(history: list[Event]) -> None:
    limits = (replace(TOKENS, amount=100), replace(BUDGET, currency="usd", amount=100))
    account = Account()
    for event in history:
        account = event.done(account, limits)
    asked = Reservation(id="later", amounts={"tokens": 60.0, "usd": 60.0})
    _, verdict = reserve(account, limits, asked, NOON)
    if not verdict.granted:
        assert verdict.retry_after_s is not None
        later_s = NOON + verdict.retry_after_s
        assert reserve(account, limits, asked, later_s + 1e-3)[1].granted
        assert not reserve(account, limits, asked, later_s - max(1e-3, 1e-6 * verdict.retry_after_s))[1].granted


@pytest.mark.parametrize("amount", [0, -1, math.inf, math.nan])
def test_a_limit_is_a_number_above_0(amount: float) -> None:
    with pytest.raises(ValueError, match="a number above 0 is allowed"):
        Limit(currency="tokens", amount=amount, period="minute")


@pytest.mark.parametrize("amount", [-1, math.inf, math.nan])
def test_amounts_are_numbers_from_0_on(amount: float) -> None:
    with pytest.raises(ValueError, match="a number from 0 on is allowed"):
        Reservation(id="a", amounts={"tokens": amount})
    with pytest.raises(ValueError, match="a number from 0 on is allowed"):
        settle(Account(), "a", {"tokens": amount}, 0.0)


@pytest.mark.parametrize("words", [{"id": ""}, {"id": "a", "lease_s": 0}, {"id": "a", "lease_s": math.inf}])
def test_a_reservation_has_an_id_and_ends(words: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="seconds above 0 are allowed"):
        Reservation(amounts={}, **words)
