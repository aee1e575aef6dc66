"""The gateway's talk with the control loop: each second it says what it knows, and hears the standing of the family."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from cluster.family import Family
from deployments.control import start
from deployments.control.words import Hello, Standing

log = logging.getLogger("ray.serve")
PERIOD_S = 1.0
TIMEOUT_S = 5.0


class Announcer:
    """`hello`: what to say. `heard` gets each answer. `control` finds or starts the loop's actor, and may block."""

    def __init__(
        self,
        family: Family,
        hello: Callable[[], Hello],
        heard: Callable[[Standing], None],
        control: Callable[[Family], Any] = start.control,
    ) -> None:
        self._family = family
        self._hello = hello
        self._heard = heard
        self._control = control
        self._finding: asyncio.Future[Any] | None = None  # the actor; looked for again after it failed
        self._trouble = ""
        self._waking: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """For ever. A loop that cannot be reached is found or started again; the gateway goes on meanwhile."""
        while True:
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    standing = await (await self._found()).announce.remote(self._hello())
                self._family = standing.family
                self._heard(standing)
                self._note(None)
            except Exception as error:  # whatever Ray raises; the next second tries again
                self._forget()
                self._note(error)
            await asyncio.sleep(PERIOD_S)

    def wake(self, tier: str) -> None:
        """Tell the loop that a request waits for a sleeping tier. Held requests tell it, too: this is only sooner."""
        task = asyncio.ensure_future(self._wake(tier))
        self._waking.add(task)
        task.add_done_callback(self._waking.discard)

    async def _wake(self, tier: str) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await (await self._found()).wake.remote(tier)
        except Exception as error:  # its held requests are still in the metrics that the loop reads
            log.warning("tier %s: the control loop was not told to wake it: %s: %s", tier, type(error).__name__, error)

    async def _found(self) -> Any:
        if self._finding is None:
            self._finding = asyncio.ensure_future(asyncio.to_thread(self._control, self._family))
        return await asyncio.shield(self._finding)

    def _forget(self) -> None:
        """But not a search that still goes on: it blocks a thread."""
        if self._finding is not None and self._finding.done():
            self._finding = None

    def _note(self, error: Exception | None) -> None:
        """Once per change, not each second."""
        trouble = type(error).__name__ if error else ""
        if trouble and trouble != self._trouble:
            log.warning("control loop: cannot be reached: %s: %s", trouble, error)
        elif self._trouble and not trouble:
            log.info("control loop: answers again")
        self._trouble = trouble
