"""The talk with the control loop, with an actor that is there, gone, or silent."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shell import Handle, family

from cluster.family import Family
from deployments.control.words import Hello, Standing
from deployments.gateway import announce
from deployments.gateway.announce import Announcer

HELLO = Hello(gateway_id="g", metrics=("here:1",), replica_of={}, jobs=None)


class Loop:
    """The control loop's actor: answers as often as it may, then is gone; or never says a word."""

    def __init__(self, spec: Family, *, answers: float = float("inf"), silent: bool = False) -> None:
        self.spec = spec
        self.heard: list[Hello] = []
        self.woken: list[str] = []
        self._answers = answers
        self._silent = silent

    async def announce(self, hello: Hello) -> Standing:
        if self._silent:
            await asyncio.get_running_loop().create_future()
        if len(self.heard) >= self._answers:
            raise ConnectionError("the actor died")
        self.heard.append(hello)
        return Standing(version=len(self.heard), family=self.spec, workers=(), metrics_address="", targets={})

    async def wake(self, tier: str) -> None:
        if self._silent:
            raise ConnectionError("the actor died")
        self.woken.append(tier)


class Talk:
    """An announcer that runs; `control` hands out the given loops one after the other, then the last for ever."""

    def __init__(self, *loops: Loop) -> None:
        self._loops = list(loops)
        self._standings: asyncio.Queue[Standing] = asyncio.Queue()
        self.announcer = Announcer(loops[0].spec, lambda: HELLO, self._standings.put_nowait, self._control)
        self.task = asyncio.ensure_future(self.announcer.run())

    def _control(self, spec: Family) -> Any:
        return Handle(self._loops.pop(0) if len(self._loops) > 1 else self._loops[0])

    async def standing(self) -> Standing:
        return await asyncio.wait_for(self._standings.get(), 10)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announce, "PERIOD_S", 0.001)


@pytest.fixture
def spec(tmp_path: Path) -> Family:
    return family(tmp_path)


async def test_each_hello_brings_a_standing(spec: Family) -> None:
    loop = Loop(spec)
    talk = Talk(loop)
    assert [(await talk.standing()).version for _ in range(3)] == [1, 2, 3]
    assert loop.heard[:3] == [HELLO] * 3
    talk.task.cancel()


async def test_a_loop_that_died_is_found_or_started_again(spec: Family) -> None:
    talk = Talk(Loop(spec, answers=1), Loop(spec))
    assert [(await talk.standing()).version for _ in range(3)] == [1, 1, 2]
    talk.task.cancel()


async def test_a_silent_loop_is_waited_for_only_so_long(spec: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announce, "TIMEOUT_S", 0.01)
    talk = Talk(Loop(spec, silent=True), Loop(spec))
    assert (await talk.standing()).version == 1
    talk.task.cancel()


@pytest.mark.parametrize("fails", [lambda spec: (_ for _ in ()).throw(OSError("no cluster"))])
async def test_trouble_is_told_once_and_its_end_too(
    spec: Family, caplog: pytest.LogCaptureFixture, fails: Callable[[Family], Any]
) -> None:
    caplog.set_level(logging.INFO, "ray.serve")
    tries: list[int] = []
    answered = asyncio.Event()

    def control(spec: Family) -> Any:
        tries.append(1)
        return fails(spec) if len(tries) < 5 else Handle(Loop(spec))

    task = asyncio.ensure_future(Announcer(spec, lambda: HELLO, lambda _: answered.set(), control).run())
    await asyncio.wait_for(answered.wait(), 10)
    while "answers again" not in caplog.text:
        await asyncio.sleep(0)
    assert caplog.text.count("cannot be reached: OSError: no cluster") == 1
    task.cancel()


async def test_a_sleeping_tier_is_named_to_the_loop(spec: Family) -> None:
    loop = Loop(spec)
    talk = Talk(loop)
    await talk.standing()
    talk.announcer.wake("mini")
    while not loop.woken:
        await talk.standing()
    assert loop.woken == ["mini"]
    talk.task.cancel()


async def test_a_loop_that_cannot_hear_of_a_sleeping_tier_stops_nobody(
    spec: Family, caplog: pytest.LogCaptureFixture
) -> None:
    announcer = Announcer(spec, lambda: HELLO, lambda _: None, lambda _: Handle(Loop(spec, silent=True)))
    announcer.wake("mini")
    await asyncio.gather(*announcer._waking)
    assert "the control loop was not told to wake it" in caplog.text
