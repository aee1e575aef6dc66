"""What is of Redis alone: what it forgets and when that is refused, servers that end or hang, passwords, clusters."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.server import eventually, free_port
from redis_server import Server, redis_server

from cluster.errors import ConfigurationError, Unavailable
from cluster.limits import Limit, Reservation
from deployments.stores.redis_limits import RedisLimits

TOKENS = Limit(currency="tokens", amount=100, period="minute")
BUDGET = Limit(currency="usd", amount=100, period="month")
KEEPING = ("--appendonly", "yes", "--appendfsync", "no")


@pytest.fixture
def server() -> Iterator[Server]:
    """Keeps what it was told; who tests that starts it anew."""
    with redis_server(*KEEPING) as server:
        yield server


def asked(key: str, tokens: float = 0, usd: float = 0) -> Reservation:
    return Reservation(id=key, amounts={"tokens": tokens, "usd": usd})


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
async def test_a_server_that_ends_is_unavailable_and_has_forgotten_nothing_when_it_is_back(
    server: Server, how: signal.Signals
) -> None:
    limits = RedisLimits(server.url, lasting=True)
    assert (await limits.reserve("key_a", [BUDGET], asked("a", usd=70))).granted
    server.stop(how)
    try:
        with pytest.raises(Unavailable, match="Redis does not answer"):
            await limits.reserve("key_a", [BUDGET], asked("b", usd=10))
    finally:
        server.start(*KEEPING)
    assert (await limits.reserve("key_a", [BUDGET], asked("a", usd=70))).granted
    assert await limits.settle("key_a", "a", {"usd": 60})
    assert [each.remaining for each in await limits.state("key_a", [BUDGET])] == [40]
    await limits.close()


async def test_money_is_not_entrusted_to_a_server_that_forgets_when_it_restarts(server: Server) -> None:
    limits = RedisLimits(server.url, lasting=True)
    await limits.reserve("key_a", [BUDGET], asked("a", usd=100))
    server.stop()
    server.start()  # without its append-only file
    for _ in range(2):
        with pytest.raises(Unavailable):
            await limits.reserve("key_a", [BUDGET], asked("b", usd=100))
    await limits.close()
    with pytest.raises(ConfigurationError, match=r"no append-only file.*appendonly yes and .* noeviction are allowed"):
        RedisLimits(server.url, lasting=True)


async def test_what_a_minute_granted_may_be_forgotten_and_is_then_granted_once_more(server: Server) -> None:
    server.stop()
    server.start()
    limits = RedisLimits(server.url)
    assert (await limits.reserve("key_a", [TOKENS], asked("a", tokens=100))).granted
    server.stop()
    server.start()
    assert not await limits.settle("key_a", "a", {"tokens": 0})
    assert (await limits.reserve("key_a", [TOKENS], asked("b", tokens=100))).granted
    assert not (await limits.reserve("key_a", [TOKENS], asked("c", tokens=60))).granted
    await limits.close()


def test_money_is_not_entrusted_to_a_server_that_may_evict_it(server: Server) -> None:
    server.run("CONFIG", "SET", "maxmemory", "100mb")
    server.run("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    with pytest.raises(ConfigurationError, match="may evict any key"):
        RedisLimits(server.url, lasting=True)
    RedisLimits(server.url)


async def test_a_server_that_hangs_is_unavailable_in_bounded_time(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = RedisLimits(server.url)
    await limits.reserve("key_a", [TOKENS], asked("a", tokens=10))
    server.pause()
    try:
        with monkeypatch.context() as patch:
            for module in ("redis_limits", "limit_rows"):
                patch.setattr(f"deployments.stores.{module}.ANSWER_S", 0.2)
            with pytest.raises(Unavailable, match=r"did not answer in 0\.2 s"):
                await limits.reserve("key_a", [TOKENS], asked("b", tokens=10))
    finally:
        server.go_on()
    assert await limits.settle("key_a", "a", {"tokens": 5})
    await limits.close()


async def test_a_server_without_memory_is_unavailable(server: Server) -> None:
    limits = RedisLimits(server.url)
    server.run("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(Unavailable):
        await limits.reserve("key_a", [TOKENS], asked("a", tokens=10))
    await limits.close()


async def test_a_server_that_is_not_there_at_the_start_may_come_later(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.stop()
    try:
        limits = RedisLimits(server.url, lasting=True)
        assert "start it, or mend the URL" in caplog.text
        with pytest.raises(Unavailable):
            await limits.reserve("key_a", [TOKENS], asked("a", tokens=10))
    finally:
        server.start()
    with pytest.raises(Unavailable):  # it keeps nothing, and money is not entrusted to it now either
        await limits.reserve("key_a", [TOKENS], asked("a", tokens=10))
    server.run("CONFIG", "SET", "appendonly", "yes")
    assert (await limits.reserve("key_a", [TOKENS], asked("a", tokens=10))).granted
    server.run("CONFIG", "SET", "appendonly", "no")
    await limits.close()


async def test_the_password_is_read_from_its_file_at_each_connection(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "password"
    server.run("ACL", "SETUSER", "moray", "on", ">first", "~moray:*", "+@all")
    server.run("CONFIG", "SET", "requirepass", "nobody")
    url = server.url.replace("127", "moray@127")
    with pytest.raises(ConfigurationError, match=r"limits\.password_file: .*No such file"):
        RedisLimits(url, password_file=str(file))
    file.write_text("wrong\n")
    with pytest.raises(ConfigurationError, match="invalid username-password pair"):
        RedisLimits(url, password_file=str(file))
    file.write_text("first\n")
    limits = RedisLimits(url, password_file=str(file))
    assert (await limits.reserve("key_a", [TOKENS], asked("a", tokens=10))).granted
    await limits.close()


@pytest.mark.parametrize("url", ["redis://host:port/0", "redis://localhost/0?colour=red"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="a URL such as redis://host:6379/0 is allowed"):
        RedisLimits(url)


async def test_the_keys_of_an_account_are_in_one_slot_of_a_cluster() -> None:
    with redis_server("--cluster-enabled", "yes", "--cluster-port", f"{free_port()}") as server:
        server.run("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        eventually(lambda: b"cluster_state:ok" in server.run("CLUSTER", "INFO"), 60, "the cluster is ready")
        limits = RedisLimits(server.url)
        for tenant in ("key_a", "a}b", "{", ""):
            assert (await limits.reserve(tenant, [TOKENS], asked("a", tokens=60))).granted
            assert not (await limits.reserve(tenant, [TOKENS], asked("b", tokens=60))).granted
        await limits.close()
