"""Threads for what stores are asked, and nothing else: a database that hangs holds up no other work of a process."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from cluster.errors import Unavailable

_P = ParamSpec("_P")
_T = TypeVar("_T")
MOST = 8
ANSWER_S = 15.0  # with the wait for a thread
THREADS = ThreadPoolExecutor(MOST, "stores")


async def in_thread(call: Callable[_P, _T], *given: _P.args, **named: _P.kwargs) -> _T:
    """What the store answers. Raises what it raises, and Unavailable after ANSWER_S; it may then still do it."""
    answer = asyncio.get_running_loop().run_in_executor(THREADS, partial(call, *given, **named))
    try:
        async with asyncio.timeout(ANSWER_S):
            return await answer
    except TimeoutError:
        raise Unavailable(
            f"stores: no answer in {ANSWER_S:.0f} s; one that answers is allowed; try again soon"
        ) from None
