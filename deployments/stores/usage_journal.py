"""What a gateway writes into the ledger of usage.

A request is settled before its response ends: on the event loop where the file is free, which takes less than to hand
it to a thread, else by the journal's thread, in commits that many requests share. Who takes longer than OPENED_S is
written as open meanwhile. So, whenever and however a gateway's process dies:

- an event whose `settle` was awaited is in the journal, once;
- a request that was open so long is settled as lost, at no charge, by the next gateway of the machine;
- what the journal has comes to the database of all gateways, once: a row's id is written once, and the journal lets go
  of it only behind the database's commit.

A machine that loses its power may lose what was committed in its last second. A disk that has no room holds up no
answer beyond WAIT_S; what waits for it is kept in memory, up to MOST_WAITING, and is lost with the process.
"""

import asyncio
import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict

from cluster.errors import Unavailable
from cluster.usage import Usage
from deployments.stores.usage import SqliteUsage
from deployments.stores.usage_rows import UsageRows

log = logging.getLogger("ray.serve")
WAIT_S = 1.0  # that an answer is held up for a disk that does not write
AGAIN_S = 0.5
OPENED_S = 0.25
SYNC_S = 1.0
MOST_WAITING = 100_000
SHIPPED_AT_ONCE = 1000


class Journal:
    """`written` hears of events once they are committed, on any thread. `remote`: where they go from here."""

    def __init__(
        self,
        store: SqliteUsage,
        gateway: str,
        remote: UsageRows | None = None,
        written: Callable[[tuple[Usage, ...]], None] = lambda _: None,
    ) -> None:
        """Settles what dead gateways left open. Raises Unavailable."""
        self._store, self._gateway, self._remote, self._written = store, gateway, remote, written
        self.failures = 0  # times that a commit or a shipment failed
        self.refused = 0  # events that found no room in memory; the log has them
        self._opened: dict[str, Usage] = {}
        self._settled: list[Usage] = []
        self._forgotten: set[str] = set()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._changed = threading.Condition()
        self._writing = threading.Lock()  # a batch is under way
        self._unsynced = False
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []
        store.live(gateway)
        written(store.lost())

    def start(self) -> None:
        jobs = [self._write] if self._remote is None else [self._write, self._ship]
        self._threads = [threading.Thread(target=job, name="moray-usage", daemon=True) for job in jobs]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Writes what waits, and ends."""
        self._closed.set()
        with self._changed:
            self._changed.notify()
        for thread in self._threads:
            thread.join()
        with contextlib.suppress(Unavailable):
            self.flush()
            self._store.sync()

    @property
    def pending(self) -> int:
        """Settled events that are in memory alone."""
        return len(self._settled)

    def open(self, event: Usage) -> None:
        """What is settled as it stands, should this process die. Waits for nothing."""
        with self._changed:
            if len(self._opened) < MOST_WAITING:
                self._opened[event.id] = event

    def forget(self, event_id: str) -> None:
        """It used nothing."""
        with self._changed:
            unwritten = self._opened.pop(event_id, None) is not None
            if not unwritten and len(self._forgotten) < MOST_WAITING:
                self._forgotten.add(event_id)

    def put(self, event: Usage) -> None:
        """Settles it without waiting."""
        with self._changed:
            if len(self._settled) < MOST_WAITING:
                self._settled.append(event)
            else:
                self.refused += 1
                log.error("usage: no room for %s", json.dumps(asdict(event)))
            self._changed.notify()

    async def settle(self, event: Usage) -> None:
        """Returns once it is committed, or after WAIT_S."""
        if self._settled_at_once(event):
            return
        loop = asyncio.get_running_loop()
        written = loop.create_future()
        with self._changed:  # a commit between the two would wake who waits for the next one
            self._waiters.append((loop, written))
            self.put(event)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WAIT_S):
                await written

    def _settled_at_once(self, event: Usage) -> bool:
        """Unless others wait already, or the file is not free."""
        if self._settled or not self._writing.acquire(blocking=False):
            return False
        try:
            self._store.commit(self._gateway, (), (event,), at_once=True)
            with self._changed:
                self._opened.pop(event.id, None)
        except Exception:  # Busy; or what the journal's thread will meet again, and tell
            return False
        finally:
            self._writing.release()
        self._unsynced = True
        self._written((event,))
        return True

    def flush(self) -> None:
        """Commits what waits. Raises Unavailable; all of it waits on, then, but for who waited WAIT_S."""
        with self._writing:
            settled = self._flushed()
        if settled:
            self._written(settled)

    def _flushed(self) -> tuple[Usage, ...]:
        with self._changed:
            opened, self._opened = self._opened, {}
            settled, self._settled = self._settled, []
            gone, self._forgotten = self._forgotten, set()
            waiters, self._waiters = self._waiters, []
        if not (opened or settled or gone):
            return ()
        try:
            self._store.commit(self._gateway, tuple(opened.values()), settled, gone)
            self._unsynced = True
        except Exception:
            with self._changed:
                self._opened, self._settled = opened | self._opened, settled + self._settled
                self._forgotten |= gone
                self._waiters = [each for each in waiters if not each[1].done()] + self._waiters
            raise
        for loop, written in waiters:
            with contextlib.suppress(RuntimeError):  # a loop that is closed waits for nothing
                loop.call_soon_threadsafe(_done, written)
        return tuple(settled)

    def _write(self) -> None:
        """Syncs every SYNC_S, however much there is to commit."""
        due_s = time.monotonic()
        while not self._closed.is_set():
            with self._changed:
                if not self._settled:
                    self._changed.wait(OPENED_S)
            try:
                self.flush()
                if self._unsynced and time.monotonic() >= due_s:
                    due_s, self._unsynced = time.monotonic() + SYNC_S, False
                    self._unsynced = not self._store.sync() or self._unsynced
            except Exception as failure:  # nothing may end this thread; it tries again
                self._unsynced = True
                self._failed(failure)

    def _ship(self) -> None:
        assert self._remote is not None
        while True:
            closed = self._closed.is_set()
            try:
                edge, events = self._store.unshipped(SHIPPED_AT_ONCE)
                if events:
                    self._remote.add(events)
                    self._store.shipped(edge)
                    continue
            except Exception as failure:  # as above
                self._failed(failure)
            if closed:
                return
            self._closed.wait(AGAIN_S)

    def _failed(self, failure: Exception) -> None:
        self.failures += 1
        log.warning("usage: %s; tried again", failure)
        self._closed.wait(AGAIN_S)  # requests that come meanwhile hurry nothing


def _done(written: asyncio.Future[None]) -> None:
    if not written.done():
        written.set_result(None)
