"""Files that have no row: looked for now and then, and deleted once they are old. See cluster/orphans.py.

A store of files may be shared, by mistake, with another database, whose files have no row in ours. So each database
leaves a mark in the store, long before its first file is old, and where there are several nothing is swept.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

from cluster.errors import Unavailable
from cluster.orphans import Kind, old, orphans
from deployments.stores.files import Files
from deployments.stores.threads import in_thread

log = logging.getLogger("ray.serve")
FIRST_S, EVERY_S = 600.0, 6 * 3600.0  # a look lists all that there is
MOST_IDS = 100  # of one question
MARKS = "swept"
Present = Callable[[Collection[str]], frozenset[str]]  # of at most MOST_IDS ids those that have a row; blocking
Rows = Mapping[Kind, Present]


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """`name`: of what lies in these files. `database`: the URL of its rows; None: they are in the state folder."""

    name: str
    files: Files
    database: str | None
    rows: Rows


async def sweeping(stores: Sequence[Swept], state_folder: Path, now_s: Callable[[], float] = time.time) -> None:
    """Never ends, whatever fails."""
    await asyncio.sleep(FIRST_S)
    while True:
        for store in stores:
            try:
                await sweep(store, state_folder, now_s())
            except Exception as failure:  # the next turn tries again
                log.error("%s: not swept: %s", store.name, failure, exc_info=not isinstance(failure, Unavailable))
        await asyncio.sleep(EVERY_S)


async def sweep(store: Swept, state_folder: Path, now_s: float) -> tuple[str, ...]:
    """What was deleted. Raises Unavailable, OSError."""
    rows = store.database
    if rows is None:
        rows = await asyncio.to_thread(_identity, state_folder)
    marks = f"{MARKS}/{store.name}"
    mark = f"{marks}/{hashlib.sha256(rows.encode()).hexdigest()[:16]}"
    await store.files.put_bytes(mark, b"")
    found = [each async for each in store.files.list()]
    if {each.key for each in found if each.key.startswith(f"{marks}/")} != {mark}:
        log.warning(
            "%s: not swept: several databases have files here; one may; give each a store of its own, then delete %s/",
            store.name,
            marks,
        )
        return ()
    gone: tuple[str, ...] = ()
    for kind, present in store.rows.items():
        candidates = old(found, kind, now_s)
        gone += orphans(candidates, await _present(present, tuple(candidates)))
    for prefix in gone:
        log.info("%s: %s has no row: deleted", store.name, prefix)
        await store.files.delete(prefix)
    return gone


async def _present(present: Present, ids: Sequence[str]) -> frozenset[str]:
    found: frozenset[str] = frozenset()
    for begin in range(0, len(ids), MOST_IDS):
        found |= await in_thread(present, ids[begin : begin + MOST_IDS])
    return found


def _identity(state_folder: Path) -> str:
    """Of the rows in this folder, wherever it is moved: drawn once."""
    path = state_folder / "identity"
    if not path.exists():
        drawn = path.with_name(f".identity.{token_hex(4)}")
        drawn.write_text(token_hex(16), encoding="ascii")
        with contextlib.suppress(FileExistsError):  # another gateway was first
            os.link(drawn, path)  # whole, or not there
        drawn.unlink()
    return path.read_text(encoding="ascii")
