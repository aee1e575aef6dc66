import gc
import weakref
from collections.abc import Iterator

import pytest

from deployments.video.thread import EngineThread


class Fault(Exception):
    pass


def fails() -> None:
    raise Fault


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("waits", [False, True])
async def test_an_error_is_gone_with_the_last_who_knows_it(waits: bool) -> None:
    thread = EngineThread()

    async def raised() -> "weakref.ref[Fault]":
        try:
            if waits:
                thread.wait(0.0, fails)
            await thread.ask(0.0, fails)
        except Fault as error:
            return weakref.ref(error)
        raise AssertionError

    error = await raised()
    assert thread.wait(0.0, int) == 0  # the engine's thread is past the call by then
    assert error() is None
