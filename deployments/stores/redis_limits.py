"""Limits in Redis, or what speaks its protocol, for gateways on several machines: one script, by its own clock.

An account and its leases are two keys with one hash tag, so that they are in one slot of a cluster. What Redis forgets
when it restarts without an append-only file, or evicts, was granted and is granted again. Of a minute's limit that is a
minute's worth; of a day's or a month's, which are money, all of it, so these are refused by a Redis that does not keep:
at the start, and on every new connection, as after a restart. Its machine's crash may forget the last second.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError, AuthorizationError, RedisError
from redis.retry import Retry

from cluster.errors import ConfigurationError, Unavailable
from cluster.limits import CURRENCIES, Currency, Limit, Reservation, Standing, Verdict, judged, whole
from deployments.stores.limit_rows import ANSWER_S, slow

log = logging.getLogger("ray.serve")
SCRIPT = Path(__file__).with_suffix(".lua").read_text(encoding="utf-8")
CONNECTIONS = 16  # of each gateway; other calls wait for one
KEEPING = "appendonly yes and maxmemory-policy noeviction are allowed"


class RedisLimits:
    """A call that met a connection which was cut is asked once more: that is safe, as the law says of ids."""

    def __init__(
        self,
        url: str,
        *,
        password_file: str | None = None,
        lasting: bool = False,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """`lasting`: limits of a day or a month will be asked. A server may come later. Raises ConfigurationError."""
        self._clock, self._lasting = clock, lasting
        words: dict[str, Any] = {"socket_timeout": ANSWER_S, "socket_connect_timeout": ANSWER_S}
        if password_file is not None:
            url, words["credential_provider"] = _credentials(url, password_file)
        self._where = f"limits.store: {url}"
        self._seen_once(url, words)
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            url,
            **words,
            max_connections=CONNECTIONS,
            timeout=ANSWER_S,
            retry=AsyncRetry(NoBackoff(), 1),
            redis_connect_func=self._connected,
        )
        self._redis = redis.asyncio.Redis.from_pool(pool)
        self._script = self._redis.register_script(SCRIPT)

    async def reserve(self, tenant: str, limits: Sequence[Limit], asked: Reservation) -> Verdict:
        told = await self._asked(tenant, "reserve", asked.id, asked.lease_s, *_words(limits, asked.amounts))
        outcome, (at_s, now_s, *spent) = told[0], map(float, told[1:])
        amounts = {} if outcome == b"again" else asked.amounts
        return judged(limits, _by_currency(limits, spent), amounts, at_s, at_s - now_s)

    async def settle(self, tenant: str, reservation: str, actual: Mapping[Currency, float]) -> bool:
        whole(actual)
        words = [word for currency, amount in actual.items() for word in (currency, _exact(amount))]
        return bool(await self._asked(tenant, "settle", reservation, *words))

    async def refund(self, tenant: str, reservation: str) -> bool:
        return await self.settle(tenant, reservation, dict.fromkeys(CURRENCIES, 0.0))

    async def renew(self, tenant: str, reservations: Collection[str], lease_s: float) -> frozenset[str]:
        return frozenset(one.decode() for one in await self._asked(tenant, "renew", lease_s, *reservations))

    async def state(self, tenant: str, limits: Sequence[Limit]) -> tuple[Standing, ...]:
        at_s, now_s, *spent = map(float, await self._asked(tenant, "state", *_words(limits, {})))
        return judged(limits, _by_currency(limits, spent), {}, at_s, at_s - now_s).standings

    async def close(self) -> None:
        await self._redis.aclose()

    async def _asked(self, tenant: str, what: str, *words: str | float) -> Any:
        """What the script says. Raises Unavailable."""
        account = f"moray:{{limits:{quote(tenant, safe='')}}}"
        given = [_exact(word) if isinstance(word, float | int) else word for word in words]
        now = _exact(self._clock()) if self._clock else ""
        try:
            async with asyncio.timeout(ANSWER_S):
                return await self._script(keys=[account, f"{account}:leases"], args=[what, now, *given])
        except TimeoutError as error:
            raise slow() from error
        except (RedisError, OSError) as error:
            log.warning("%s: %s", self._where, error)
            raise Unavailable("limits: Redis does not answer; one that does is allowed; try again soon") from error

    async def _connected(self, connection: redis.asyncio.Connection) -> None:
        await connection.on_connect()
        if self._lasting:
            await connection.send_command("INFO")
            if fault := _forgets(_facts(await connection.read_response())):
                raise redis.ConnectionError(fault)

    def _seen_once(self, url: str, words: Mapping[str, Any]) -> None:
        """Before anything is asked: what is wrong with the family file is told at the start."""
        try:
            with redis.Redis.from_url(url, **words, retry=Retry(NoBackoff(), 0)) as once:
                facts = _facts(once.execute_command("INFO"))
        except (AuthenticationError, AuthorizationError) as error:
            raise ConfigurationError(
                f"{self._where}: {error}; a user whom the server takes is allowed; mend the URL or the password"
            ) from error
        except (RedisError, OSError) as error:
            log.warning("%s: %s; a server that answers is allowed; start it, or mend the URL", self._where, error)
            return
        except (ValueError, TypeError) as error:
            raise ConfigurationError(
                f"{self._where}: {error}; a URL such as redis://host:6379/0 is allowed; mend it"
            ) from error
        if self._lasting and (fault := _forgets(facts)):
            raise ConfigurationError(
                f"{self._where}: {fault}, and plans have limits per day or month; {KEEPING}; set "
                "them, or name another store"
            )


class _Password(CredentialProvider):
    """Read for each connection, so that it may change."""

    def __init__(self, user: str | None, file: str) -> None:
        self._user, self._file = user, file

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        password = Path(self._file).read_text(encoding="utf-8").strip()
        return (self._user, password) if self._user else (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        return self.get_credentials()


def _credentials(url: str, file: str) -> tuple[str, _Password]:
    """The URL without its user, who comes with the password."""
    parts = urlsplit(url)
    user, _, place = parts.netloc.rpartition("@")
    password = _Password(unquote(user) or None, file)
    try:
        password.get_credentials()
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"limits.password_file: {error}; a file with the password alone is allowed; mend it"
        ) from error
    return parts._replace(netloc=place).geturl(), password


def _facts(info: Any) -> Mapping[str, str]:
    if isinstance(info, dict):
        return {key: str(value) for key, value in info.items()}
    text = info.decode() if isinstance(info, bytes) else str(info)
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def _forgets(facts: Mapping[str, str]) -> str:
    """Why this Redis is not to be trusted with money; "" where it is."""
    if facts.get("aof_enabled") != "1":
        return "this Redis has no append-only file, and forgets when it restarts"
    if facts.get("maxmemory", "0") != "0" and facts.get("maxmemory_policy", "").startswith("allkeys"):
        return f"this Redis may evict any key ({facts['maxmemory_policy']})"
    return ""


def _words(limits: Sequence[Limit], amounts: Mapping[Currency, float]) -> list[str]:
    return [
        word
        for limit in limits
        for word in (
            limit.currency,
            _exact(limit.amount),
            limit.period,
            _exact(amounts.get(limit.currency, 0.0)),
        )
    ]


def _by_currency(limits: Sequence[Limit], spent: Sequence[float]) -> dict[Currency, float]:
    return {limit.currency: each for limit, each in zip(limits, spent, strict=True)}


def _exact(number: float) -> str:
    return repr(float(number))
