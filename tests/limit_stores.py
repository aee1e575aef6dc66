"""All stores of limits, for tests."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import postgres
import redis_server

from deployments.stores.limits import Limits
from deployments.stores.postgres_limits import PostgresLimits
from deployments.stores.redis_limits import RedisLimits
from deployments.stores.sqlite_limits import SqliteLimits


@dataclass(frozen=True, slots=True)
class Open:
    """Opens another gateway's view of one set of accounts; `clock`: instead of the store's own."""

    store: Any
    place: Path | str

    def __call__(self, **words: Any) -> Limits:
        opened: Limits = self.store(self.place, **words)
        return opened

    @property
    def code(self) -> str:
        """The same in another process."""
        imports = f"from {self.store.__module__} import {self.store.__name__}; from pathlib import PosixPath"
        return f"{imports}\nopened = lambda: {self.store.__name__}({self.place!r})"


def sqlite(folder: Path) -> Open:
    return Open(SqliteLimits, folder / "limits.sqlite")


def postgresql(server: postgres.Server) -> Open:
    return Open(PostgresLimits, server.fresh())


def redis(server: redis_server.Server) -> Open:
    server.run("FLUSHALL")
    return Open(RedisLimits, server.url)
