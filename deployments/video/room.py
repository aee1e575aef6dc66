"""The device of a replica: shared by its jobs, or one's alone. Who comes first enters first, so nobody starves."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class _Place:
    alone: bool
    free: asyncio.Future[None]


class Room:
    """On one event loop. Who is to be alone waits for those before it, and those after it for its end."""

    def __init__(self) -> None:
        self._line: list[_Place] = []  # in order of coming; those within are the first of it

    @contextlib.asynccontextmanager
    async def entered(self, stopped: "asyncio.Future[None]", *, alone: bool) -> AsyncIterator[None]:
        """Raises what `stopped` does, where that comes first."""
        place = _Place(alone, asyncio.get_running_loop().create_future())
        self._line.append(place)
        self._call()
        try:
            await asyncio.wait((place.free, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not place.free.done():
                stopped.result()
            yield
        finally:
            self._line.remove(place)
            self._call()

    def _call(self) -> None:
        for at, place in enumerate(self._line):
            if place.alone and at:
                return
            if not place.free.done():
                place.free.set_result(None)
            if place.alone:
                return
