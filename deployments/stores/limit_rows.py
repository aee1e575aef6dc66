"""Limits as rows, in SQL that SQLite and PostgreSQL both speak: an account each, and its reservations beside it.

One transaction holds the account's row while the law is asked, so that gateways take turns; it reads only the
reservations that the law looks at. A database of its own says how a transaction begins and what time it is.
"""

import abc
import asyncio
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, TypeVar

from cluster.errors import Unavailable
from cluster.limits import (
    Account,
    Bucket,
    Currency,
    Held,
    Limit,
    Reservation,
    Standing,
    Verdict,
    refund,
    renew,
    reserve,
    settle,
    state,
)
from deployments.stores.sqlite_file import Busy

ANSWER_S = 2.0  # of each call, whatever the store does meanwhile
VERSION = 1  # of the layout
MOST_AT_ONCE = 50  # reservations; more than that hold up an event loop for milliseconds
RESERVATIONS = "SELECT id, held FROM limit_reservations WHERE tenant = ? AND (until_s <= ?{ids})"
WRITE = "UPDATE limit_accounts SET at_s = ?, buckets = ? WHERE tenant = ?"
FORGET = "DELETE FROM limit_reservations WHERE tenant = ? AND id = ?"
KEEP = (
    "INSERT INTO limit_reservations (tenant, id, until_s, held) VALUES (?, ?, ?, ?) "
    "ON CONFLICT (tenant, id) DO UPDATE SET until_s = excluded.until_s, held = excluded.held"
)

Run = Callable[[str, Sequence[object]], list[Any]]  # a statement, `?` for values; its rows
T = TypeVar("T")
Law = Callable[[Account, float], tuple[Account, T]]


class LimitRows(abc.ABC):
    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="limits")

    @abc.abstractmethod
    def _account(self, tenant: str, at_once: bool) -> AbstractContextManager[tuple[Run, float, Account]]:
        """A transaction that holds the account: how statements run, the time, the account less its reservations.

        Raises Unavailable, and Busy where it was to be `at_once` and somebody else writes.
        """

    @abc.abstractmethod
    def _close(self) -> None: ...

    async def reserve(self, tenant: str, limits: Sequence[Limit], asked: Reservation) -> Verdict:
        return await self._asked(tenant, (asked.id,), lambda account, now_s: reserve(account, limits, asked, now_s))

    async def settle(self, tenant: str, reservation: str, actual: Mapping[Currency, float]) -> bool:
        return await self._asked(
            tenant, (reservation,), lambda account, now_s: settle(account, reservation, actual, now_s)
        )

    async def refund(self, tenant: str, reservation: str) -> bool:
        return await self._asked(tenant, (reservation,), lambda account, now_s: refund(account, reservation, now_s))

    async def renew(self, tenant: str, reservations: Collection[str], lease_s: float) -> frozenset[str]:
        ids = tuple(reservations)
        return await self._asked(tenant, ids, lambda account, now_s: renew(account, ids, lease_s, now_s))

    async def state(self, tenant: str, limits: Sequence[Limit]) -> tuple[Standing, ...]:
        return await self._asked(tenant, (), lambda account, now_s: (account, state(account, limits, now_s)))

    async def close(self) -> None:
        self._threads.submit(self._close)
        await asyncio.to_thread(self._threads.shutdown)

    async def _asked(self, tenant: str, ids: Sequence[str], law: Law[T]) -> T:
        told = asyncio.get_running_loop().run_in_executor(self._threads, self._judged, tenant, ids, law)
        try:
            async with asyncio.timeout(ANSWER_S):  # who still waits for a thread is not asked any more
                return await told
        except TimeoutError as error:
            raise slow() from error

    def _judged(self, tenant: str, ids: Sequence[str], law: Law[T], at_once: bool = False) -> T:
        with self._account(tenant, at_once) as (run, now_s, before):
            of_ids = f" OR id IN ({', '.join('?' * len(ids))})" if ids else ""
            rows = run(RESERVATIONS.format(ids=of_ids), (tenant, max(now_s, before.at_s), *ids))
            if at_once and len(rows) > MOST_AT_ONCE:
                raise Busy
            seen = replace(before, held={key: Held(**json.loads(text)) for key, text in rows})
            after, told = law(seen, now_s)
            if after is not seen:
                self._write(run, tenant, seen, after)
        return told

    def _write(self, run: Run, tenant: str, seen: Account, after: Account) -> None:
        buckets = {key: _fields(bucket) for key, bucket in after.buckets.items()}
        run(WRITE, (after.at_s, json.dumps(buckets), tenant))
        for key in seen.held.keys() - after.held.keys():
            run(FORGET, (tenant, key))
        for key, held in after.held.items():
            if held != seen.held.get(key):
                run(KEEP, (tenant, key, held.until_s, json.dumps(_fields(held))))


def _fields(of: Bucket | Held) -> dict[str, Any]:
    """As `asdict`, which copies each value, and takes ten times as long."""
    return {name: getattr(of, name) for name in of.__slots__}


def account_of(at_s: float, buckets: str) -> Account:
    """As it was written, its reservations apart."""
    return Account(at_s=at_s, buckets={key: Bucket(**bucket) for key, bucket in json.loads(buckets).items()})


def slow() -> Unavailable:
    return Unavailable(f"limits: the store did not answer in {ANSWER_S:g} s; one that does is allowed; try again soon")


def unusable() -> Unavailable:
    return Unavailable("limits: the store is not one that can be used; one that can is allowed; the log says why")
