"""Stores of usage and events for them, and a process that writes them until it is killed."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.usage import Usage
from deployments.stores import usage_journal
from deployments.stores.usage import SqliteUsage
from deployments.stores.usage_journal import Journal
from deployments.stores.usage_rows import UsageRows

OpenUsage = Callable[[], UsageRows]


def event(number: int | str, **given: Any) -> Usage:
    usual: dict[str, Any] = {
        "at_s": 1000, "kind": "chat", "org": "acme", "project": "films", "key_id": "key_a", "model": "gpt-5.2",
        "tier_asked": "pro", "tier_served": "pro", "code": "ok", "input_tokens": 10, "output_tokens": 5, "gpu_s": 0.5,
        "price_nusd": 1_250_000,
    }  # fmt: skip
    return Usage(id=f"req_{number}/a", **usual | given)


async def _request(journal: Journal, number: int, told: Callable[[str], None]) -> None:
    one = event(number)
    journal.open(event(number, code="lost", input_tokens=0, output_tokens=0, price_nusd=0))
    told(f"open {one.id}")
    await journal.settle(one)
    told(f"settled {one.id}")


async def _main(path: Path, gateway: str, remote: Path) -> None:
    """Says of each request when it is open, and when it is settled, until it is killed."""
    usage_journal.WAIT_S = 600.0  # a slow disk's settled events are none before they are written
    journal = Journal(SqliteUsage(path), gateway, SqliteUsage(remote))
    journal.start()
    number = 0

    def told(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    async def client(name: int) -> None:
        nonlocal number
        while True:
            number += 1
            await _request(journal, int(f"{number}{name}"), lambda line: told(f"{line}"))

    await asyncio.gather(*(client(name) for name in range(1, 9)))


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
