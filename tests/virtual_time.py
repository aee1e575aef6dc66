"""A loop whose time jumps to the next timer, so that hours take milliseconds. Nothing real may be waited for on it."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class VirtualSelector(selectors.DefaultSelector):
    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "nothing is left that could happen"
        self.now_s += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.clock = VirtualSelector()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now_s


def run(scenario: Coroutine[Any, Any, T]) -> T:
    """What the scenario returns. Fails where a callback or a task that nobody awaited failed."""
    failures: list[object] = []
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.get_loop().set_exception_handler(lambda _, it: failures.append(it.get("exception") or it["message"]))
        result = runner.run(scenario)
    assert failures == [], "a callback failed"
    return result
