"""Where the limits of tenants are counted: SQLite, Redis or PostgreSQL behind one seam, under one law.

A server may come later than its gateways: until then nobody who has limits is served, and everybody else.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from cluster.family import Family
from cluster.limits import Currency, Limit, Reservation, Standing, Verdict
from deployments.stores.postgres_limits import PostgresLimits
from deployments.stores.redis_limits import RedisLimits
from deployments.stores.sqlite_limits import SqliteLimits

LIMITS_FILE = "limits.sqlite"  # in the state folder


class Limits(Protocol):
    """Of one event loop. `limits`: one of each currency at most. Gateways that share a store count as one.

    Every call raises Unavailable where the store does not answer in time. What it had then done is not known; to ask
    again with the same id is safe. A reservation that was made unseen, or by who was cancelled meanwhile, ends with its
    lease, and counts as spent until then; refund what nobody waits for any more. Where the store is away, serve nobody
    who has limits, and everybody else.
    """

    async def reserve(self, tenant: str, limits: Sequence[Limit], asked: Reservation) -> Verdict: ...

    async def settle(self, tenant: str, reservation: str, actual: Mapping[Currency, float]) -> bool:
        """False where nothing is open under that id. Raises ValueError for an amount below 0."""

    async def refund(self, tenant: str, reservation: str) -> bool: ...

    async def renew(self, tenant: str, reservations: Collection[str], lease_s: float) -> frozenset[str]:
        """Those that are still open, each now with a lease of so long at least."""

    async def state(self, tenant: str, limits: Sequence[Limit]) -> tuple[Standing, ...]:
        """Takes nothing."""

    async def close(self) -> None: ...


def limits_of(family: Family, state_folder: Path) -> Limits:
    """The store that the family names. Raises ConfigurationError."""
    store = family.limits
    if store.kind == "sqlite":
        return SqliteLimits(state_folder / LIMITS_FILE)
    if store.kind == "postgresql":
        return PostgresLimits(store.store)
    lasting = any(limit.lasting for plan in family.plans.values() for limit in plan.limits)
    return RedisLimits(store.store, password_file=store.password_file, lasting=lasting)
