"""Both stores of keys, for tests."""

from collections.abc import Callable
from pathlib import Path

from postgres import Server

from deployments.stores.key_rows import KeyRows
from deployments.stores.keys import KeyStore
from deployments.stores.postgres_keys import PostgresKeys

OpenKeys = Callable[[], KeyRows]  # another connection to one set of keys


def sqlite_keys(folder: Path) -> OpenKeys:
    return lambda: KeyStore(folder / "keys.sqlite")


def postgresql_keys(server: Server) -> OpenKeys:
    url = server.fresh()
    return lambda: PostgresKeys(url)
