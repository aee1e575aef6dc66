"""One request's course over replicas that fail, with a desk and a token path that do as they are told."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from shell import Handle, chat, family
from virtual_time import VirtualLoop, run

from cluster.engines import Offload
from cluster.errors import ContextTooLong, EngineFailed, MorayError, Overloaded, ReplicaLost
from cluster.request import Chat, Served, Usage
from cluster.retry import LEAST_AT_ONCE, MOST_RESCUES
from cluster.tiering import Range
from deployments.gateway.asked import Asked, Place
from deployments.gateway.metrics import GatewayMetrics
from deployments.gateway.rescue import LEAST_STALL_S, Course, Courses
from deployments.gateway.tokens import Streamed
from deployments.gateway.wire import DONE
from deployments.link import LinkCounts
from deployments.stream import Outcome

USAGE = Usage(prompt_tokens=3, completion_tokens=4)
Item = tuple[bytes, tuple[int, ...]]
Script = list[Item | float | Exception]
LOST = ReplicaLost("replica: lost")


@dataclass
class Desk:
    """Gives replicas a, b, c, ... of tier mini, each after `wait_s`, and notes what it is told."""

    wait_s: float = 0.0
    ended_: list[tuple[str, bool, Usage | None]] = field(default_factory=list)
    given: list[int] = field(default_factory=list)
    _next: int = 0

    async def place(self, asked: Asked) -> Place:
        await asyncio.sleep(self.wait_s)
        return self._place(asked, 0)

    async def again(self, place: Place, given_tokens: int) -> Place:
        self.given.append(given_tokens)
        await asyncio.sleep(self.wait_s)
        return self._place(place.asked, place.served.resumed + 1)

    def _place(self, asked: Asked, resumed: int) -> Place:
        self._next += 1
        served = Served(tier="mini", replica=chr(ord("a") + self._next - 1), queued_s=self.wait_s, resumed=resumed)
        place: Place = object.__new__(Place)
        for name, value in {"asked": asked, "served": served, "sent_s": 0.0}.items():
            object.__setattr__(place, name, value)
        return place

    def ended(self, place: Place, usage: Usage | None, failed: bool) -> None:
        self.ended_.append((place.served.replica, failed, usage))


class Replicas:
    """The scripts of replicas a, b, ...: bytes with their ids, a pause in seconds, an error, or an outcome."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = scripts
        self.asked: list[Chat] = []

    async def complete(self, chat: Chat) -> Outcome:
        *_, outcome = [item async for item in self.stream(chat)]
        assert isinstance(outcome, Outcome)
        return outcome

    async def stream(self, chat: Chat) -> AsyncIterator[Item | Outcome]:
        script = self._scripts[min(len(self.asked), len(self._scripts) - 1)]
        self.asked.append(chat)
        for step in script:
            match step:
                case float():
                    await asyncio.sleep(step)
                case MorayError():
                    yield Outcome(error=step)
                    return
                case Exception():
                    raise step
                case _:
                    yield step
                    await asyncio.sleep(0.01)
        yield Outcome(usage=USAGE, body=b"whole")


def said(*ids: int) -> Item:
    return b"".join(f"<{id}>".encode() for id in ids), ids


LAST: Item = (DONE, ())
Play = Callable[..., tuple[bytes, Desk, Replicas, Counter[str]]]


class World:
    def __init__(self, folder: Path, desk: Desk, replicas: Replicas) -> None:
        spec = family(folder)
        self.metrics = GatewayMetrics(LinkCounts())
        self.metrics.follow(spec.tiers)
        self.desk = desk
        self.replicas = replicas
        handles: Any = {"mini": Handle(replicas)}
        self.courses = Courses(spec, handles, Streamed(), desk, self.metrics)  # type: ignore[arg-type]

    def open(self, *, stream: bool = True, **sampling: Any) -> Course:
        asked = Asked(
            request_id="req",
            range=Range(("mini",), "a test", False),
            tenant="t",
            priority=0,
            share=1.0,
            prompt_tokens=3,
            arrived_s=0.0,
        )
        return Course(self.courses, chat(stream=stream, seed=7, **sampling), asked)

    def counted(self, name: str) -> float:
        return self.metrics._registry.get_sample_value(name, {"tier": "mini"}) or 0.0


Scenario = Callable[[World], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., None]:
    def play(scenario: Scenario, *scripts: Any, wait_s: float = 0.0) -> None:
        async def played() -> None:
            await scenario(World(tmp_path, Desk(wait_s), Replicas(*scripts)))

        run(played())

    return play


async def read(course: Course) -> bytes:
    """All bytes up to the end, or to the error, which is then the last of them."""
    got = b""
    try:
        while (data := await course.next(10.0)) is not None:
            got += data
    except MorayError as error:
        got += f"!{error.code}".encode()
    finally:
        course.close()
    return got


@pytest.mark.parametrize("end", [LOST, EngineFailed("engine: gone"), RuntimeError("killed")])
def test_a_stream_goes_on_elsewhere_behind_the_tokens_its_client_has(play: Play, end: Exception) -> None:
    async def scenario(world: World) -> None:
        assert await read(world.open()) == b"<1><2><3><4>" + DONE
        first, second = world.replicas.asked
        assert (first.given, second.given) == ((), (1, 2, 3))
        assert first.sampling == second.sampling
        assert (second.served is not None, second.served and second.served.resumed) == (True, 1)
        assert world.desk.ended_ == [("a", True, None), ("b", False, USAGE)]
        assert world.desk.given == [3]
        assert world.counted("moray_resumed_total") == 1
        assert world.counted("moray_pause_seconds_count") == 1

    play(scenario, [said(1), said(2, 3), end], [said(4), LAST])


def test_a_stream_that_is_lost_twice_goes_on_behind_both(play: Play) -> None:
    async def scenario(world: World) -> None:
        assert await read(world.open()) == b"<1><2><3>" + DONE
        assert [one.given for one in world.replicas.asked] == [(), (1,), (1, 2)]

    play(scenario, [said(1), LOST], [said(2), LOST], [said(3), LAST])


def test_a_stream_lost_before_its_first_token_begins_afresh(play: Play) -> None:
    async def scenario(world: World) -> None:
        assert await read(world.open()) == b"<1>" + DONE
        assert [one.given for one in world.replicas.asked] == [(), ()]

    play(scenario, [LOST], [said(1), LAST])


def test_a_whole_answer_is_asked_for_again(play: Play) -> None:
    async def scenario(world: World) -> None:
        course = world.open(stream=False)
        assert (await course.whole()).body == b"whole"
        course.close()
        assert [one.given for one in world.replicas.asked] == [(), ()]
        assert world.desk.ended_ == [("a", True, None), ("b", False, USAGE)]

    play(scenario, [LOST], [1.0])


@pytest.mark.parametrize("stream", [True, False])
def test_a_poison_request_takes_only_so_many_replicas_down(play: Play, stream: bool) -> None:
    async def scenario(world: World) -> None:
        course = world.open(stream=stream)
        if stream:
            assert await read(course) == b"<1>" * (MOST_RESCUES + 1) + b"!replica_lost"
        else:
            with pytest.raises(ReplicaLost):
                await course.whole()
            course.close()
        assert [failed for _, failed, _ in world.desk.ended_] == [True] * (MOST_RESCUES + 1)
        assert world.counted("moray_retries_refused_total") == 1
        assert world.counted("moray_resumed_total") == MOST_RESCUES

    play(scenario, [said(1), LOST])


@pytest.mark.parametrize("error", [Overloaded("full", retry_after_s=1), ContextTooLong("too long")])
def test_what_is_no_loss_is_the_clients_to_know_and_no_fault_of_the_replica(play: Play, error: MorayError) -> None:
    async def scenario(world: World) -> None:
        assert await read(world.open()) == f"!{error.code}".encode()
        assert world.desk.ended_ == [("a", False, None)]

    play(scenario, [error])


def test_a_begun_stream_that_falls_silent_goes_on_elsewhere(play: Play) -> None:
    async def scenario(world: World) -> None:
        assert await read(world.open()) == b"<1><2>" + DONE
        assert LEAST_STALL_S <= asyncio.get_running_loop().time() < LEAST_STALL_S + 1
        assert world.desk.ended_ == [("a", True, None), ("b", False, USAGE)]

    play(scenario, [said(1), 1000.0], [said(2), LAST])


def test_a_stream_of_offloaded_weights_may_be_silent_for_as_long_as_a_request_takes(play: Play) -> None:
    async def scenario(world: World) -> None:
        mini = world.courses.family.tiers["mini"].model_copy(update={"offload": Offload(limit_s=60)})
        world.courses.family = world.courses.family.model_copy(update={"tiers": {"mini": mini}})
        assert await read(world.open()) == b"<1><2>" + DONE
        assert world.desk.ended_ == [("a", False, USAGE)]

    play(scenario, [said(1), 50.0, said(2), LAST])


def test_a_gateway_that_stood_still_takes_no_stream_for_lost(play: Play) -> None:
    async def scenario(world: World) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.call_later(1.0, lambda: setattr(loop.clock, "now_s", 60.0))
        assert await read(world.open()) == b"<1><2>" + DONE
        assert world.desk.ended_ == [("a", False, USAGE)]

    play(scenario, [said(1), 5.0, said(2), LAST])


def test_a_stream_that_has_not_begun_may_be_silent(play: Play) -> None:
    async def scenario(world: World) -> None:
        assert await read(world.open()) == b"<1>" + DONE
        assert world.desk.ended_ == [("a", False, USAGE)]

    play(scenario, [1000.0, said(1), LAST])


def test_a_replica_lost_behind_the_last_byte_changes_nothing(play: Play) -> None:
    async def scenario(world: World) -> None:
        course = world.open()
        assert await read(course) == b"<1>" + DONE
        assert course.outcome is not None
        assert course.outcome.error is None
        assert world.desk.ended_ == [("a", False, None)]

    play(scenario, [said(1), LAST, LOST], [said(2)])


def test_silence_is_told_while_a_place_is_awaited(play: Play) -> None:
    async def scenario(world: World) -> None:
        course = world.open()
        assert [await course.next(10.0) for _ in range(3)] == [b"", b"", b"<1>"]
        assert asyncio.get_running_loop().time() == 25
        course.close()

    play(scenario, [said(1), LAST], wait_s=25.0)


@pytest.mark.parametrize("after_s", [0.0, 2.0])
def test_the_desk_hears_once_of_a_client_that_leaves(play: Play, after_s: float) -> None:
    async def scenario(world: World) -> None:
        course = world.open()
        await asyncio.sleep(after_s)
        course.close()
        await asyncio.sleep(1.0)
        assert world.desk.ended_ == [("a", False, None)] * (after_s > 1)
        assert world.courses.ongoing.total() == 0

    play(scenario, [said(1), 1000.0], wait_s=1.0)


def test_an_answer_held_to_a_schema_goes_on_behind_the_tokens_already_told_where_the_engine_can(play: Play) -> None:
    async def begun(world: World) -> None:
        mini = world.courses.family.tiers["mini"].model_copy(update={"engine": "torch"})
        world.courses.family = world.courses.family.model_copy(update={"tiers": {"mini": mini}})
        assert await read(world.open(json_schema="{}")) == b"<1><2><3>" + DONE
        assert [asked.given for asked in world.replicas.asked] == [(), (1, 2)]

    play(begun, [said(1, 2), LOST], [said(3), LAST])


def test_elsewhere_it_goes_on_only_while_its_client_has_none_of_it(play: Play) -> None:
    async def unread(world: World) -> None:
        assert await read(world.open(json_schema="{}")) == b"<1>" + DONE
        assert [asked.given for asked in world.replicas.asked] == [(), ()]

    async def begun(world: World) -> None:
        course = world.open(json_schema="{}")
        assert await course.next(10.0) == b"<1><2>"
        with pytest.raises(ReplicaLost, match="lost behind 2 tokens; an answer held to a form cannot go on"):
            await course.next(10.0)
        course.close()
        assert len(world.replicas.asked) == 1
        assert world.counted("moray_retries_refused_total") == 1
        assert world.courses.ongoing.total() == 0
        assert all(world.courses.permit("mini") for _ in range(LEAST_AT_ONCE)), "the budget was not touched"

    async def whole(world: World) -> None:
        course = world.open(stream=False, json_schema="{}")
        assert (await course.whole()).body == b"whole"
        course.close()

    play(unread, [LOST], [said(1), LAST])
    play(begun, [said(1, 2), LOST], [said(3), LAST])
    play(whole, [said(1, 2), LOST], [said(3), LAST])


def test_every_stream_of_a_lost_replica_goes_on_at_once(play: Play) -> None:
    async def scenario(world: World) -> None:
        courses = [world.open() for _ in range(40)]
        assert await asyncio.gather(*map(read, courses)) == [b"<1><2>" + DONE] * 40
        assert world.counted("moray_resumed_total") == 40
        assert world.courses.ongoing.total() == 0

    async def once(world: World) -> None:
        lost: Script = [said(1), 1.0, LOST]
        world.replicas._scripts = (*[lost] * 40, [said(2), LAST])
        await scenario(world)

    play(once, [LOST])


def test_a_tier_that_only_fails_spends_its_budget(play: Play) -> None:
    async def scenario(world: World) -> None:
        for _ in range(20):
            assert (await read(world.open())).endswith(b"!replica_lost")
        assert world.counted("moray_resumed_total") == 16

    play(scenario, [LOST])
