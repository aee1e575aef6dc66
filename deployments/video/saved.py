"""The state of an unfinished job beside its file, so that it goes on where it stopped, on whatever replica.

Written whole and renamed: a reader never meets half a state. It is an aid: where it cannot be read or written the log
says so, and the job begins anew or goes on.
"""

import logging
import secrets
import time
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger("ray.serve")
EVERY_S = 10.0  # work that a replica which dies loses at most, a step and a write apart


class SavedState:
    """The state of the job whose video goes to `video`. Used by one thread."""

    def __init__(
        self,
        video: Path,
        *,
        every_s: float = EVERY_S,
        on_saved: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = video.with_name("state")
        self._every_s = every_s
        self._on_saved = on_saved
        self._clock = clock
        self._last_s = clock()

    @property
    def due(self) -> bool:
        return self._clock() - self._last_s >= self._every_s

    def read(self) -> bytes | None:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self.discard(error)
            return None

    def write(self, state: bytes) -> None:
        partial = self.path.with_name(f"state.{secrets.token_hex(4)}.partial")
        try:
            partial.write_bytes(state)
            partial.replace(self.path)
            self._on_saved()
        except OSError as error:  # a full disk, or the folder of a job that was deleted meanwhile
            log.warning("%s: not saved: %s", self.path, error)
            partial.unlink(missing_ok=True)
        finally:
            self._last_s = self._clock()

    def discard(self, why: object) -> None:
        log.warning("%s: %s; the job begins anew", self.path, why)
        self.remove()

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
