"""GPU-seconds that replicas held, written into the ledger of usage: what its costs are shared from."""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from cluster.errors import MorayError
from cluster.usage import Held
from deployments.stores.usage_rows import UsageRows

log = logging.getLogger("moray.control")
PERIOD_S = 60.0


class HeldUse:
    """`run`: of this loop, unlike that of any other. `store` is opened in a thread, which alone asks it."""

    def __init__(self, run: str, store: Callable[[], UsageRows]) -> None:
        self._run, self._open = run, store
        self._store: UsageRows | None = None
        self._thread = ThreadPoolExecutor(1, "moray-held")
        self._counted: dict[str, float] = {}
        self._waiting: tuple[Held, ...] = ()
        self._next_s = 0.0

    def hear(self, gpu_s: Mapping[str, float], usd_per_gpu_hour: float, now_s: float) -> None:
        """After every tick: totals by tier since the loop began, and Unix time. Waits for nothing."""
        if now_s >= self._next_s:
            self._next_s = now_s + PERIOD_S
            self._thread.submit(self.write, dict(gpu_s), usd_per_gpu_hour, int(now_s))

    def write(self, gpu_s: Mapping[str, float], usd_per_gpu_hour: float, at_s: int) -> None:
        """What has grown since the last time. What cannot be written is written the next time, by the same ids:

        it may be there already.
        """
        self._waiting += tuple(
            Held(
                id=f"{self._run}/{tier}/{at_s}",
                at_s=at_s,
                tier=tier,
                gpu_s=total - self._counted.get(tier, 0.0),
                usd_per_gpu_hour=usd_per_gpu_hour,
            )
            for tier, total in gpu_s.items()
            if total > self._counted.get(tier, 0.0)
        )
        self._counted |= gpu_s
        try:
            self._store = self._store or self._open()
            self._store.hold(self._waiting)
        except MorayError as failure:
            log.warning("usage: %s; tried again", failure.message)
            return
        self._waiting = ()
