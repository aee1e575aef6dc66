"""The targets of the control loop as one process knows them: asked for by a thread, read without waiting."""

import functools
import logging
import threading
from collections.abc import Callable, Mapping

import ray

from deployments.control.words import CONTROL, NAMESPACE

PERIOD_S = 0.3
ANSWER_S = 2.0

log = logging.getLogger("ray.serve")


class Targets:
    """The last answer of `ask`; while it fails, the last one stays. Before the first: None."""

    def __init__(self, ask: Callable[[], Mapping[str, int]]) -> None:
        self._ask = ask
        self._unheard = False
        self.last: Mapping[str, int] | None = None

    def follow(self, stopped: Callable[[], bool]) -> None:
        """Until stopped. Says once when no answer comes any more."""
        while not stopped():
            try:
                self.last = self._ask()
            except Exception as error:  # whatever Ray tells of a lost actor
                if not self._unheard and self.last is not None:
                    log.warning("control loop: no answer (%s); the last targets stay", error)
                self._unheard = True
            else:
                self._unheard = False


class _Actor:
    """The control loop by its name; looked up again after a failure."""

    def __init__(self) -> None:
        self._handle: ray.actor.ActorHandle | None = None

    def targets(self) -> Mapping[str, int]:
        try:
            self._handle = self._handle or ray.get_actor(CONTROL, namespace=NAMESPACE)
            found: Mapping[str, int] = ray.get(self._handle.targets.remote(), timeout=ANSWER_S)
        except Exception:
            self._handle = None
            raise
        return found


@functools.cache
def _followed() -> Targets:
    """One thread per process, however many policies there are."""
    targets, stop = Targets(_Actor().targets), threading.Event()
    threading.Thread(target=targets.follow, args=(lambda: stop.wait(PERIOD_S),), daemon=True).start()
    return targets


def last() -> Mapping[str, int] | None:
    """By tier; None where there was no answer yet."""
    return _followed().last
