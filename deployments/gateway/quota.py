"""Requests are held to the limits of their plans: reserved before they are sent, settled by what they took.

An account is a project's, for one plan: all keys of the project that have the plan share its limits. Where the store of
limits does not answer, a key whose plan has limits is refused, in bounded time; one without them is never asked about.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Coroutine, Mapping, Sequence
from secrets import token_hex
from typing import Any, TypeVar
from urllib.parse import quote

from cluster.access import KeyRecord
from cluster.errors import Unavailable
from cluster.limits import CURRENCIES, LEASE_S, Currency, Limit, Reservation, Verdict
from deployments.gateway.limits_wire import refusal, tell
from deployments.gateway.metrics import GatewayMetrics
from deployments.stores.limits import Limits

log = logging.getLogger("ray.serve")
RENEW_S = LEASE_S / 3
WAIT_S = 1.0  # that an answer is held up by a store that does not take what it used
AGAIN_S = 1.0
T = TypeVar("T")
NOTHING: Mapping[Currency, float] = dict.fromkeys(CURRENCIES, 0.0)


def tenant_of(record: KeyRecord) -> str:
    """Whose account it is."""
    return account_of(record.org, record.project, record.plan or "")


def account_of(org: str, project: str, plan: str) -> str:
    return "/".join(quote(part, safe="") for part in (org, project, plan))


class Quotas:
    """On one event loop."""

    def __init__(self, limits: Limits, metrics: GatewayMetrics) -> None:
        self._limits, self._metrics = limits, metrics
        self._open: defaultdict[str, set[str]] = defaultdict(set)  # ids by tenant
        self._tasks: set[asyncio.Task[Any]] = set()
        self._renewing: asyncio.Task[None] | None = None

    async def reserve(self, tenant: str, limits: Sequence[Limit], asked: Reservation) -> Verdict:
        """What is granted is to be settled; one with a lease of its own is not renewed. Raises Unavailable."""
        asking = self._spawn(self._limits.reserve(tenant, limits, asked))
        try:
            verdict = await asyncio.shield(asking)
        except BaseException as error:  # it may be reserved nevertheless
            if isinstance(error, Unavailable):
                self._failed(error)
            self._spawn(self._undo(tenant, asked.id, asking))
            raise
        if verdict.refused is not None:
            self._metrics.count("moray_limit_refusals_total", limit=verdict.refused.name)
        elif asked.lease_s == LEASE_S:
            self._open[tenant].add(asked.id)
            if self._renewing is None or self._renewing.done():
                self._renewing = self._spawn(self._renew())
        return verdict

    def settle(
        self, tenant: str, name: str, actual: Mapping[Currency, float], *, once: bool = True
    ) -> asyncio.Task[None]:
        """Not `once`: another gateway may have said so before."""
        return self._spawn(self._settle(tenant, name, actual, once))

    async def _settle(self, tenant: str, name: str, actual: Mapping[Currency, float], once: bool) -> None:
        """However long the store does not answer; its lease is renewed until then."""
        failures = 0
        while True:
            try:
                known = await self._limits.settle(tenant, name, actual)
                break
            except Unavailable as failure:
                self._failed(failure)
                failures += 1
                await asyncio.sleep(AGAIN_S)
        if once and not known and not failures:  # what failed may have been done unseen
            self._metrics.count("moray_limit_lost_total")
        self._open[tenant].discard(name)
        if not self._open[tenant]:
            del self._open[tenant]

    async def _undo(self, tenant: str, name: str, asking: asyncio.Task[Verdict]) -> None:
        """Once: a store that is away is not to be asked by all whom it refused; the lease ends what is left."""
        await asyncio.wait((asking,))
        try:
            await self._limits.refund(tenant, name)
        except Unavailable as failure:
            self._failed(failure)

    async def _renew(self) -> None:
        """While any are open."""
        while self._open:
            await asyncio.sleep(RENEW_S)
            for tenant, names in [(tenant, tuple(names)) for tenant, names in self._open.items()]:
                try:
                    await self._limits.renew(tenant, names, LEASE_S)
                except Unavailable as failure:
                    self._failed(failure)

    def _failed(self, failure: Unavailable) -> None:
        self._metrics.count("moray_limit_failures_total")
        log.warning("limits: %s", failure.message)

    def _spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class Share:
    """What one request has of its plan's limits; nothing, and nobody is asked, where there are none."""

    def __init__(
        self,
        quotas: Quotas,
        tenant: str,
        limits: Sequence[Limit],
        needs: Mapping[Currency, float],
        headers: list[tuple[bytes, bytes]],
    ) -> None:
        """`headers` gain what is left once it is reserved, or refused."""
        self._quotas, self._tenant, self._limits = quotas, tenant, limits
        self._asked, self._headers = Reservation(id=token_hex(8), amounts=needs), headers
        self._settling: asyncio.Task[None] | None = None

    async def reserve(self) -> None:
        """Raises RateLimited, Unavailable."""
        if not self._limits:
            return
        verdict = await self._quotas.reserve(self._tenant, self._limits, self._asked)
        tell(self._headers, verdict.standings)
        if not verdict.granted:
            raise refusal(verdict)

    def settle(self, actual: Mapping[Currency, float]) -> None:
        """Begun at once, whatever becomes of the caller."""
        if self._limits:
            self._settling = self._quotas.settle(self._tenant, self._asked.id, actual)

    async def settled(self) -> None:
        """Returns once it is written, or after WAIT_S."""
        if self._settling is not None:
            await asyncio.wait((self._settling,), timeout=WAIT_S)
