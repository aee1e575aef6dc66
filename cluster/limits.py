"""How much of each currency a tenant may take: what a request may need is reserved, what it took is settled.

    spent = max(0, spent - amount * turns)       granted: spent + asked <= amount, all or none

    minute        turns = elapsed / 60 s         it flows back: a bucket that holds one minute's amount
    day, month    turns = edges passed, UTC      it comes back whole when the next one begins
    held          turns = 0                      what a reservation took comes back when it ends

So within T seconds a minute's limit lets amount * (1 + T/60) pass, and a day or a month never more than its amount;
that is why money does not flow back: a bucket that did could be emptied twice in its first month. To settle beyond what
was reserved leaves a debt, which the next requests wait for; what a day or a month owes is taken from the next.

Time is an account's latest: a clock that jumps back stands still, and grants nothing a second time. A reservation that
nobody settles ends with its lease: its place is free again, the rest counts as spent, since a gateway that died had let
the request run, and a crash must not be a way to be served for nothing. Ids are the gateway's own, drawn per request:
within its lease, to reserve or to settle one twice is once.

What a job reserves, any gateway settles, hours later. It holds no place, so its lease need not end soon, and nobody
renews it: it is longer than any limit remembers. What time has given back by then no settlement gives back again.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

Currency = Literal["requests", "tokens", "gpu_s", "concurrent", "video_s", "usd"]
Period = Literal["minute", "day", "month", "held"]
CURRENCIES: tuple[Currency, ...] = get_args(Currency)
MINUTE_S, DAY_S = 60.0, 86_400.0
LEASE_S = 60.0
JOB_LEASE_S = 32 * DAY_S  # a month has passed
_TOLD: Mapping[Currency, str] = {"gpu_s": "gpu_seconds", "video_s": "video_seconds", "usd": "budget_usd"}
HELD_RETRY_S = 1.0  # a place is free when another request ends, which nobody knows


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """At most `amount`, above 0, per `period`. Raises ValueError."""

    currency: Currency
    amount: float
    period: Period

    def __post_init__(self) -> None:
        if not 0 < self.amount < math.inf:
            raise ValueError(f"{self.currency}: amount is {self.amount}; a number above 0 is allowed; or no limit")

    @property
    def name(self) -> str:
        """As plans have it."""
        told = _TOLD.get(self.currency, self.currency)
        return told if self.period == "held" else f"{told}_per_{self.period}"

    @property
    def lasting(self) -> bool:
        """Whether a store that forgets it gives away more than a minute's worth."""
        return self.period in ("day", "month")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """What a request may need at most. A currency that is not named is asked 0. Raises ValueError."""

    id: str
    amounts: Mapping[Currency, float]
    lease_s: float = LEASE_S

    def __post_init__(self) -> None:
        whole(self.amounts)
        if not self.id or not 0 < self.lease_s < math.inf:
            raise ValueError(f"reservation: id {self.id!r}, lease_s {self.lease_s}; an id, seconds above 0 are allowed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """`reset_s`: until nothing of it is spent; inf where only the ends of other requests free it."""

    limit: Limit
    remaining: float
    reset_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`refused`: of the limits that do not have so much, the one that takes longest to; None where it was granted.

    `retry_after_s`: when it could be granted if nobody else asked; None where it is granted, or more than the limit.
    """

    granted: bool
    standings: tuple[Standing, ...]
    refused: Limit | None = None
    retry_after_s: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """`spent` as of `at_s`. More than the amount of its limit is a debt."""

    spent: float
    at_s: float
    period: Period


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A reservation that was granted: what it `taken`, by currency, at `at_s`. Not `open`: settled, or refunded."""

    taken: Mapping[Currency, float]
    at_s: float
    until_s: float
    open: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Of one tenant. `at_s`: the latest time it saw. A store may show the law less of `held`: those whose lease is over

    and those that are asked about; the law looks at no others.
    """

    at_s: float = 0.0
    buckets: Mapping[Currency, Bucket] = field(default_factory=dict)
    held: Mapping[str, Held] = field(default_factory=dict)


def reserve(
    account: Account, limits: Sequence[Limit], asked: Reservation, now_s: float
) -> tuple[Account, Verdict]:  # `limits`: one of each currency at most
    """From all limits at once, or from none. A refusal leaves the account as it is."""
    then = _ended(account, now_s)
    spent = {limit.currency: spent_by(then, limit) for limit in limits}
    again = asked.id in then.held
    verdict = judged(limits, spent, {} if again else asked.amounts, then.at_s, then.at_s - now_s)
    if again or not verdict.granted:
        return account, verdict
    taken = {limit.currency: float(asked.amounts.get(limit.currency, 0.0)) for limit in limits}
    filled = {
        limit.currency: Bucket(spent=spent[limit.currency] + taken[limit.currency], at_s=then.at_s, period=limit.period)
        for limit in limits
    }
    held = Held(taken=taken, at_s=then.at_s, until_s=then.at_s + asked.lease_s)
    then = replace(then, buckets={**then.buckets, **filled}, held={**then.held, asked.id: held})
    return then, verdict


def settle(account: Account, reservation: str, actual: Mapping[Currency, float], now_s: float) -> tuple[Account, bool]:
    """What it truly took: a currency that is not named took what was reserved. What is held comes back in any case.

    False where nothing is open under that id: settled before, or its lease is over. Raises ValueError.
    """
    whole(actual)
    then = _ended(account, now_s)
    held = then.held.get(reservation)
    if held is None or not held.open:
        return account, False
    buckets = {**then.buckets, **{key: _closed(then.buckets[key], key, held, actual, then.at_s) for key in held.taken}}
    return replace(then, buckets=buckets, held={**then.held, reservation: replace(held, open=False)}), True


def refund(account: Account, reservation: str, now_s: float) -> tuple[Account, bool]:
    """All of it comes back: the request was not served."""
    return settle(account, reservation, dict.fromkeys(CURRENCIES, 0.0), now_s)


def renew(
    account: Account, reservations: Collection[str], lease_s: float, now_s: float
) -> tuple[Account, frozenset[str]]:
    """Those that are open, each now with a lease of so long at least."""
    then = _ended(account, now_s)
    kept = {
        key: replace(held, until_s=max(held.until_s, then.at_s + lease_s))
        for key, held in then.held.items()
        if key in reservations and held.open
    }
    return (replace(then, held={**then.held, **kept}) if kept else account), frozenset(kept)


def state(account: Account, limits: Sequence[Limit], now_s: float) -> tuple[Standing, ...]:
    then = _ended(account, now_s)
    spent = {limit.currency: spent_by(then, limit) for limit in limits}
    return judged(limits, spent, {}, then.at_s, then.at_s - now_s).standings


def judged(
    limits: Sequence[Limit],
    spent: Mapping[Currency, float],
    asked: Mapping[Currency, float],
    at_s: float,
    behind_s: float,
) -> Verdict:
    """The verdict over what is spent before. `behind_s`: how long the clock needs to come to `at_s` again."""
    over = [
        (limit, asked[limit.currency], spent[limit.currency] + asked[limit.currency] - limit.amount)
        for limit in limits
        if asked.get(limit.currency, 0.0) > 0
    ]
    waits = [(_wait_s(limit, given, excess, at_s), limit, given) for limit, given, excess in over if excess > 0]
    taken = {} if waits else asked
    standings = tuple(
        _standing(limit, spent[limit.currency] + taken.get(limit.currency, 0.0), at_s, behind_s) for limit in limits
    )
    if not waits:
        return Verdict(granted=True, standings=standings)
    wait_s, limit, given = max(waits, key=lambda wait: wait[0])
    free = max(0.0, limit.amount - spent[limit.currency])
    return Verdict(
        granted=False,
        standings=standings,
        refused=limit,
        retry_after_s=None if math.isinf(wait_s) else wait_s + behind_s,
        reason=f"{limit.name}: asked {given:g}, {free:g} of {limit.amount:g} are left",
    )


def spent_by(account: Account, limit: Limit) -> float:
    """As of the account's own time."""
    bucket = account.buckets.get(limit.currency)
    return 0.0 if bucket is None else max(0.0, bucket.spent - limit.amount * _turns(limit.period, bucket, account.at_s))


def _turns(period: Period, bucket: Bucket, at_s: float) -> float:
    if period == "minute":
        return (at_s - bucket.at_s) / MINUTE_S
    return 0.0 if period == "held" else float(turn(period, at_s) - turn(period, bucket.at_s))


def _ended(account: Account, now_s: float) -> Account:
    """The account at that time, or its own if that is later, without the reservations whose lease is over."""
    at_s = max(now_s, account.at_s)
    over = {key: held for key, held in account.held.items() if held.until_s <= at_s}
    buckets = dict(account.buckets)
    for held in over.values():
        for key, amount in held.taken.items():
            if held.open and buckets[key].period == "held":
                buckets[key] = replace(buckets[key], spent=max(0.0, buckets[key].spent - amount))
    return Account(at_s=at_s, buckets=buckets, held={k: held for k, held in account.held.items() if k not in over})


def _closed(bucket: Bucket, currency: Currency, held: Held, actual: Mapping[Currency, float], at_s: float) -> Bucket:
    reserved = held.taken[currency]
    used = actual.get(currency, reserved) if bucket.period != "held" else 0.0
    if used < reserved and _returned(bucket, held, at_s):
        return bucket  # what last month did not need is no gain of this one
    return replace(bucket, spent=max(0.0, bucket.spent + (used - reserved)))


def _returned(bucket: Bucket, held: Held, at_s: float) -> bool:
    """Whether all that was taken has come back by time."""
    if bucket.period == "minute":
        return at_s - held.at_s >= MINUTE_S
    return bucket.period != "held" and turn(bucket.period, bucket.at_s) != turn(bucket.period, held.at_s)


def _wait_s(limit: Limit, asked: float, excess: float, at_s: float) -> float:
    if asked > limit.amount:
        return math.inf
    return HELD_RETRY_S if limit.period == "held" else _back_s(limit, excess, at_s)


def _standing(limit: Limit, spent: float, at_s: float, behind_s: float) -> Standing:
    reset_s = 0.0 if spent <= 0 else _back_s(limit, spent, at_s) + behind_s
    return Standing(limit=limit, remaining=max(0.0, limit.amount - spent), reset_s=reset_s)


def _back_s(limit: Limit, spent: float, at_s: float) -> float:
    """Until so much of it has come back."""
    if limit.period == "minute":
        return spent * MINUTE_S / limit.amount
    if limit.period == "held":
        return math.inf
    return edge_s(limit.period, turn(limit.period, at_s) + math.ceil(spent / limit.amount)) - at_s


def turn(period: Period, at_s: float) -> int:
    """The number of the day, or of the month, UTC, by which they are told apart; months count from a March."""
    day = math.floor(at_s / DAY_S)
    if period == "day":
        return day
    month = math.floor((day + 719_468) / 30.436875)  # a month's mean length: it errs by one at most
    if _first_day(month) > day:
        return month - 1
    return month + 1 if _first_day(month + 1) <= day else month


def edge_s(period: Period, number: int) -> float:
    """When that turn begins."""
    return DAY_S * (number if period == "day" else _first_day(number))


def _first_day(month: int) -> int:
    """Since 1970. Years that begin in March have their leap day at the end, so that lengths of months follow a line."""
    year, since = divmod(month, 12)
    return 365 * year + year // 4 - year // 100 + year // 400 + (153 * since + 2) // 5 - 719_468


def whole(amounts: Mapping[Currency, float]) -> None:
    """Raises ValueError for an amount that is negative or no number."""
    for currency, amount in amounts.items():
        if not 0 <= amount < math.inf:
            raise ValueError(f"{currency}: given {amount}; a number from 0 on is allowed; mend the estimate")
