"""The engine's one thread. What fails on it holds no tensor; what never ends on it is given up, not waited for."""

import asyncio
import contextlib
import inspect
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import Generic, ParamSpec, TypeVar

from cluster.faults import hangs

LOOK_S = 5.0  # between looks at a call that has not ended
_AWAITS = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
P = ParamSpec("P")
T = TypeVar("T")


class EngineHung(Exception):
    """The device does not answer. The thread is lost with it, and its process can only be ended."""


class _Call(Generic[T]):
    """`since_s`: when the thread came to it."""

    def __init__(self, call: Callable[[], T], now_s: Callable[[], float]) -> None:
        self._call, self._now_s = call, now_s
        self.since_s: float | None = None

    def __call__(self) -> T:
        self.since_s = self._now_s()
        return _forgetful(self._call)


class EngineThread:
    """`now_s`: of a clock that never goes back. `broken`: the device is lost; who waits for the thread waits no more.

    `usual_s` of a call: what it is expected to take; math.inf: nobody knows. Calls raise what the engine raises, and
    EngineHung.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self.now_s = now_s
        self.broken = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")

    async def ask(self, usual_s: float, call: Callable[P, T], *given: P.args, **_: P.kwargs) -> T:
        asked = _Call(partial(call, *given), self.now_s)
        answer = asyncio.wrap_future(self._thread.submit(asked))
        try:
            while not (await asyncio.wait((answer,), timeout=LOOK_S))[0]:
                self._look(asked, usual_s)
            return answer.result()
        finally:
            del answer  # it knows the error, whose traceback knows it

    def wait(self, usual_s: float, call: Callable[[], T]) -> T:
        """For another thread."""
        asked = _Call(call, self.now_s)
        answer = self._thread.submit(asked)
        try:
            while not wait((answer,), LOOK_S).done:
                self._look(asked, usual_s)
            return answer.result()
        finally:
            del answer

    def _look(self, asked: _Call[T], usual_s: float) -> None:
        """Whose call it is that hangs hears of it first, and is blamed."""
        if self.broken:
            raise EngineHung("the engine's thread is lost")
        if asked.since_s is not None and hangs(lasts_s := self.now_s() - asked.since_s, usual_s):
            raise EngineHung(f"the engine has not answered for {lasts_s:.0f} s, where {usual_s:.1f} s are usual")


def _forgetful(call: Callable[[], T]) -> T:
    """What it raises holds no tensor on the device, as frames of tracebacks do for as long as an error is known."""
    try:
        return call()
    except BaseException as error:
        each: BaseException | None = error
        while each is not None:
            for frame, _ in traceback.walk_tb(each.__traceback__):
                if not frame.f_code.co_flags & _AWAITS:  # one that was raised before: clearing would end a coroutine
                    with contextlib.suppress(RuntimeError):  # it runs
                        frame.clear()
            each = each.__cause__ or each.__context__
        raise
