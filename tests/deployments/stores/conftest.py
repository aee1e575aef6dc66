from collections.abc import Iterator

import pytest
from postgres import Server, postgres
from redis_server import Server as RedisServer
from redis_server import redis_server


@pytest.fixture(scope="session")
def database() -> Iterator[Server]:
    """Stopped and started by who tests that; every test makes a schema of its own."""
    with postgres() as server:
        yield server


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine's stores take their time; who tests how long they may take says so."""
    for module in ("limit_rows", "redis_limits", "postgres_limits", "sqlite_limits"):
        monkeypatch.setattr(f"deployments.stores.{module}.ANSWER_S", 30.0)


@pytest.fixture(scope="session")
def redis_keeping() -> Iterator[RedisServer]:
    """One that keeps what it was told, as money needs; shared, so a test of its end starts one of its own."""
    with redis_server("--appendonly", "yes", "--appendfsync", "no") as server:
        yield server
