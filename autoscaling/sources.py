"""Where samples come from: the expositions themselves, or a Prometheus that scrapes them. Only this module asks.

Both know the same series. A source never raises: what went wrong is the
look's fault.
"""

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from autoscaling.series import NAMES, Look, Sample

TIMEOUT_S = 1.5  # less than a tick
RANGE_S = 30
KEPT = ("tier", "outcome", "replica")
SHAPES = (ValueError, TypeError, LookupError, AttributeError, RecursionError)  # what garbage raises when it is read
BRACES = tuple(name + mark for name in NAMES for mark in "{ ")


def _said(where: str, error: Exception) -> str:
    return f"{where}: {type(error).__name__}: {str(error).partition(chr(10))[0]}"


class Scrape:
    """Reads the expositions at `addresses()`: host:port, with the replica behind each, None for a gateway's.

    `clock`: Unix time, by which the samples are as old as their page.
    """

    def __init__(self, addresses: Callable[[], Mapping[str, str | None]], clock: Callable[[], float]) -> None:
        self._addresses = addresses
        self._clock = clock
        self._client = httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False)

    async def look(self) -> Look:
        addresses = self._addresses()
        if not addresses:
            return Look(now_s=self._clock(), fault="no gateway has been heard of")
        pages = await asyncio.gather(*(self._page(address, replica) for address, replica in addresses.items()))
        samples = tuple(sample for page in pages if not isinstance(page, str) for sample in page)
        faults = [page for page in pages if isinstance(page, str)]
        return Look(now_s=self._clock(), samples=samples, fault=faults[0] if faults and not samples else None)

    async def _page(self, address: str, replica: str | None) -> list[Sample] | str:
        """Its samples, or what is wrong with it. One page in so many may be lost: what it said last still counts."""
        asked = {"only": "gateway"} if replica is None else None
        try:
            async with asyncio.timeout(TIMEOUT_S):
                answer = await self._client.get(f"http://{address}/metrics", params=asked)
            return list(_exposed(answer.raise_for_status().text, address, replica, self._clock()))
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, *SHAPES) as error:
            return _said(address, error)

    async def close(self) -> None:
        await self._client.aclose()


def _exposed(text: str, address: str, replica: str | None, at_s: float) -> Iterator[Sample]:
    """Only the lines that are needed are parsed: the series of experts are thousands."""
    needed = "".join(f"{line}\n" for line in text.splitlines() if line.startswith(BRACES))
    for family in text_string_to_metric_families(needed):
        for sample in family.samples:
            labels = sample.labels if replica is None else sample.labels | {"replica": replica}
            yield Sample(name=sample.name, labels=labels, instance=address, value=float(sample.value), at_s=at_s)


class Prometheus:
    """Asks a Prometheus that scrapes every gateway, or every process itself, at least every 5 s.

    The raw samples of the last half minute come with the time of their scrape, and with them the server's own time: an
    instant vector would show values as much as 5 minutes old as if they were of now.
    """

    def __init__(self, url: str) -> None:
        self._url = f"{url.rstrip('/')}/api/v1/query"
        self._client = httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False)
        self._query = f'{{__name__=~"{"|".join(NAMES)}"}}[{RANGE_S}s]'

    async def look(self) -> Look:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                time, found = await asyncio.gather(self._asked("time()", "scalar"), self._asked(self._query, "matrix"))
            now_s = float(time[0])
            if not math.isfinite(now_s):
                raise ValueError(f"the time is {now_s}")
            return Look(now_s=now_s, samples=tuple(_sample(series) for series in found))
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, *SHAPES) as error:
            return Look(now_s=0.0, fault=_said(self._url, error))

    async def _asked(self, query: str, kind: str) -> Any:
        answer = (await self._client.post(self._url, data={"query": query})).raise_for_status().json()
        data = answer["data"]
        if answer["status"] != "success" or data["resultType"] != kind:
            raise ValueError(f"{query[:40]}: {answer['status']} of type {data['resultType']}, not {kind}")
        return data["result"]

    async def close(self) -> None:
        await self._client.aclose()


def _sample(series: Mapping[str, Any]) -> Sample:
    """The newest of a series. Raises what a wrong shape raises."""
    labels = dict(_texts(series["metric"].items()))
    at_s, value = series["values"][-1]
    return Sample(
        name=labels["__name__"],
        labels={name: text for name, text in labels.items() if name in KEPT},
        instance=labels.get("instance", ""),
        value=float(value),
        at_s=float(at_s),
    )


def _texts(items: Iterable[tuple[Any, Any]]) -> Iterator[tuple[str, str]]:
    for name, text in items:
        if not isinstance(name, str) or not isinstance(text, str):
            raise TypeError(f"label {name!r} is {text!r}; texts are allowed")
        yield name, text
