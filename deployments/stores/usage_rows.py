"""The ledger of usage as rows, in SQL that SQLite and PostgreSQL both speak. Rows are added, never changed.

A row has the id of what it tells of, so that it is written once however often it is sent.
"""

import abc
from collections.abc import Iterable, Sequence
from dataclasses import astuple, fields
from itertools import chain
from typing import Any

from cluster.usage import ADDED, BYS, HOUR_S, By, Held, Sum, Usage, costs, report, unused

EVENT = tuple(each.name for each in fields(Usage))
HELD = tuple(each.name for each in fields(Held))
SUMS = ", ".join(f"coalesce(sum({name}), 0)" for name in ADDED if name != "events")
# One row of an hour, not of a minute: any key may ask for a month.
HELD_SUMS = (
    f"SELECT at_s / {HOUR_S} * {HOUR_S} AS start_s, tier, usd_per_gpu_hour, sum(gpu_s) FROM usage_held "
    "WHERE at_s >= ? AND at_s < ? GROUP BY start_s, tier, usd_per_gpu_hour"
)
BATCH = 200  # rows of one statement; SQLite binds 32,766 values at most


class UsageRows(abc.ABC):
    """Blocking; any thread may call. What returned is written. Every call raises Unavailable."""

    @abc.abstractmethod
    def _run(self, statement: str, values: Sequence[object]) -> list[Any]: ...

    @abc.abstractmethod
    def close(self) -> None: ...

    def add(self, events: Sequence[Usage]) -> None:
        """Those that are there already stay as they are."""
        self._add("usage_events", EVENT, [astuple(event) for event in events])

    def hold(self, held: Sequence[Held]) -> None:
        self._add("usage_held", HELD, [astuple(one) for one in held])

    def _add(self, table: str, columns: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> None:
        marks = f"({', '.join('?' * len(columns))})"
        for first in range(0, len(rows), BATCH):
            batch = rows[first : first + BATCH]
            into = f"INSERT INTO {table} ({', '.join(columns)}) VALUES {', '.join([marks] * len(batch))}"
            self._run(f"{into} ON CONFLICT DO NOTHING", tuple(chain.from_iterable(batch)))

    def report(
        self,
        start_s: int,
        end_s: int,
        bucket_s: int,
        by: Sequence[By] = (),
        only: Sequence[tuple[By, Sequence[str]]] = (),
    ) -> tuple[Sum, ...]:
        """Of events from `start_s` on and before `end_s`, by bucket and `by`. `only`: of these alone."""
        width_s = min(bucket_s, HOUR_S)
        first_s, last_s = start_s // HOUR_S * HOUR_S, -(-end_s // HOUR_S) * HOUR_S  # costs are those of whole hours
        rates = costs(self._sums(first_s, last_s, HOUR_S, ("tier_served",)), self._held(first_s, last_s))
        return report(self._sums(start_s, end_s, width_s, ("tier_served", *by), only), rates, bucket_s)

    def unused(self, start_s: int, end_s: int, bucket_s: int) -> tuple[Sum, ...]:
        """What replicas held, by bucket and tier, in hours in which nobody used their tier."""
        first_s, last_s = start_s // HOUR_S * HOUR_S, -(-end_s // HOUR_S) * HOUR_S
        uses = self._sums(first_s, last_s, HOUR_S, ("tier_served",))
        return unused(uses, self._held(start_s, end_s), bucket_s)

    def _held(self, start_s: int, end_s: int) -> list[Held]:
        """By hour."""
        return [
            Held(id="", at_s=int(at_s), tier=tier, gpu_s=gpu_s, usd_per_gpu_hour=usd_per_gpu_hour)
            for at_s, tier, usd_per_gpu_hour, gpu_s in self._run(HELD_SUMS, (start_s, end_s))
        ]

    def last_used(self, key_ids: Sequence[str]) -> dict[str, int]:
        """When the last event of each key ended, of those that have one."""
        marks = ", ".join("?" * len(key_ids))
        of = f"SELECT key_id, max(at_s) FROM usage_events WHERE key_id IN ({marks}) GROUP BY key_id"
        return {key_id: int(at_s) for key_id, at_s in self._run(of, key_ids)} if key_ids else {}

    def _sums(
        self,
        start_s: int,
        end_s: int,
        width_s: int,
        by: Sequence[By],
        only: Sequence[tuple[By, Sequence[str]]] = (),
    ) -> Iterable[Sum]:
        assert {*by, *(name for name, _ in only)} <= set(BYS)
        names = ", ".join(by)
        where = "".join(f" AND {name} IN ({', '.join('?' * len(values))})" for name, values in only)
        rows = self._run(
            f"SELECT at_s / {int(width_s)} * {int(width_s)} AS start_s, {names}, count(*), {SUMS} FROM usage_events "
            f"WHERE at_s >= ? AND at_s < ?{where} GROUP BY start_s, {names}",
            (start_s, end_s, *chain.from_iterable(values for _, values in only)),
        )
        whole = {name: int for name in ADDED} | {"gpu_s": float}
        for start, *rest in rows:
            figures: dict[str, Any] = {
                name: whole[name](value) for name, value in zip(ADDED, rest[len(by) :], strict=True)
            }
            yield Sum(start_s=int(start), by=tuple(rest[: len(by)]), **figures)
