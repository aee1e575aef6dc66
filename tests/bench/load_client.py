"""A load client in a process of its own: N streams at a time over keep-alive connections, each answer checked.

`python load_client.py URL KEY STREAMS SECONDS TOKENS` prints one JSON object. It speaks just enough HTTP/1.1 to cost
less than what it measures. Every token names its position, so one that is lost, doubled or out of order is counted.
"""

import asyncio
import json
import re
import sys
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

TOKEN = re.compile(rb"w(\d+)-[0-9a-f]{8} ")
TIMEOUT_S = 60.0


@dataclass
class Tally:
    ttft_ms: list[float] = field(default_factory=list)
    lag_ms: list[float] = field(default_factory=list)
    finished: int = 0
    broken: list[str] = field(default_factory=list)


async def one(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, tokens: int, to: Tally
) -> None:
    """One request on an open connection. A token's lag is counted against a schedule of 10 ms after the first."""
    begun_s = time.perf_counter()
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in head[:20]:
        raise ConnectionError(head[:200].decode("latin-1"))
    positions: list[int] = []
    first_s = 0.0
    while (size := int(await reader.readline(), 16)) > 0:
        chunk = await reader.readexactly(size + 2)
        found = [int(match) for match in TOKEN.findall(chunk)]
        now_s = time.perf_counter()
        if found and not positions:
            first_s = now_s
            to.ttft_ms.append((now_s - begun_s) * 1e3)
        positions.extend(found)
        if positions:
            to.lag_ms.append((now_s - first_s) * 1e3 - (positions[-1] - positions[0]) * 10.0)
    await reader.readline()
    if positions == list(range(tokens)):
        to.finished += 1
    else:
        to.broken.append(f"{len(positions)} of {tokens} tokens, or out of order")


async def stream(host: str, port: int, request: bytes, tokens: int, times_s: tuple[float, float], to: Tally) -> None:
    """From the first of two times to the second."""
    begin_s, until_s = times_s
    await asyncio.sleep(begin_s - time.perf_counter())
    reader, writer = await asyncio.open_connection(host, port)
    try:
        while time.perf_counter() < until_s:
            async with asyncio.timeout(TIMEOUT_S):
                await one(reader, writer, request, tokens, to)
    except (OSError, ValueError, asyncio.IncompleteReadError, TimeoutError) as error:
        to.broken.append(f"{type(error).__name__}: {error}"[:200])
    finally:
        writer.close()


async def load(url: str, key: str, streams: int, seconds: float, tokens: int) -> dict[str, object]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    body = json.dumps(
        {"model": "sim", "stream": True, "max_tokens": tokens, "messages": [{"role": "user", "content": "go " * 50}]}
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    request = head.encode() + body
    tally = Tally()
    begun_s = time.perf_counter()
    # Spread over one answer's length: streams that begin together would stay together for ever.
    begins_s = (begun_s + number / streams * tokens / 100 for number in range(streams))
    await asyncio.gather(
        *(stream(parts.hostname, parts.port, request, tokens, (at_s, begun_s + seconds), tally) for at_s in begins_s)
    )
    return {
        "finished": tally.finished,
        "broken": len(tally.broken),
        "first_fault": tally.broken[0] if tally.broken else None,
        "seconds": time.perf_counter() - begun_s,
        "ttft_ms": {"p50": percentile(tally.ttft_ms, 0.5), "p99": percentile(tally.ttft_ms, 0.99)},
        "lag_ms": {"p50": percentile(tally.lag_ms, 0.5), "p99": percentile(tally.lag_ms, 0.99)},
    }


def percentile(values: list[float], q: float) -> float | None:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))] if values else None


if __name__ == "__main__":
    url, key, streams, seconds, tokens = sys.argv[1:]
    print(json.dumps(asyncio.run(load(url, key, int(streams), float(seconds), int(tokens)))))
