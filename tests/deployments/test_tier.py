import asyncio
import json
from pathlib import Path

import pytest
from shell import TIER, Replica, chat, family
from virtual_time import VirtualLoop, run

from cluster.engines import Offload
from cluster.errors import ContextTooLong, EngineFailed, Overloaded, ReplicaLost
from cluster.fleet import DEAD, report_from_stats
from deployments.engines.simulated import SimulatedEngine
from deployments.link import Listener, ReplyTo
from deployments.ranks import ExpertGroup
from deployments.stream import Outcome
from deployments.tier import CHECK_S, HANG_S, LAST_WORDS_S


def test_a_whole_answer_has_its_tokens_and_its_usage(tmp_path: Path) -> None:
    async def scenario() -> None:
        replica = await Replica.started(family(tmp_path))
        outcome = await replica.complete(chat(stream=False, max_tokens=5))
        assert outcome.usage is not None
        assert outcome.usage.completion_tokens == 5
        assert len(json.loads(outcome.body)["choices"][0]["message"]["content"].split()) == 5
        assert (outcome.first_s, outcome.total_s) == pytest.approx((0.01, 0.05), abs=1e-3)

    run(scenario())


def test_callers_may_repeat_a_request_id_at_the_same_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        replica = await Replica.started(family(tmp_path))
        both = await asyncio.gather(*(replica.complete(chat("same", max_tokens=5)) for _ in range(2)))
        assert [outcome.error for outcome in both] == [None, None]

    run(scenario())


def test_a_refusal_is_a_value_so_that_serve_does_not_blame_the_replica(tmp_path: Path) -> None:
    async def scenario() -> None:
        replica = await Replica.started(family(tmp_path, max_running=1, max_waiting=1))
        assert isinstance((await replica.complete(chat(max_tokens=4096))).error, ContextTooLong)
        calls = [asyncio.ensure_future(replica.complete(chat(max_tokens=5))) for _ in range(3)]
        outcomes = await asyncio.gather(*calls)
        assert [type(outcome.error) for outcome in outcomes] == [type(None), Overloaded, Overloaded]

    run(scenario())


def test_a_cancelled_call_frees_its_place(tmp_path: Path) -> None:
    async def scenario() -> None:
        replica = await Replica.started(family(tmp_path))
        whole = asyncio.ensure_future(replica.complete(chat(max_tokens=1000)))
        items = replica.stream(chat(max_tokens=1000))
        assert await anext(items)
        assert replica._engine.report().running == 2
        whole.cancel()
        await items.aclose()  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        assert replica._engine.report().running == 0

    run(scenario())


async def test_losing_the_gateway_ends_the_calls_that_push_to_it(tmp_path: Path) -> None:
    replica = await Replica.started(family(tmp_path))
    listener = Listener()
    reply_to = await listener.start("127.0.0.1")
    stream, sink = listener.open(lambda: None)
    call = asyncio.ensure_future(replica.push(chat(max_tokens=2000), reply_to, stream))
    assert await sink.next()
    await listener.stop()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert replica._engine.report().running == 0


async def test_a_gateway_that_refuses_the_token_ends_the_call(tmp_path: Path) -> None:
    replica = await Replica.started(family(tmp_path))
    listener = Listener()
    address = await listener.start("127.0.0.1")
    stream, sink = listener.open(lambda: None)
    forged = ReplyTo(host=address.host, port=address.port, token=b"x" * 32)
    with pytest.raises(asyncio.CancelledError):
        await replica.push(chat(max_tokens=2000), forged, stream)
    assert await sink.next(0) == b""
    await listener.stop()


async def test_no_way_back_is_an_error_that_names_the_address(tmp_path: Path) -> None:
    replica = await Replica.started(family(tmp_path))
    listener = Listener()
    reply_to = await listener.start("127.0.0.1")
    await listener.stop()
    with pytest.raises(ReplicaLost, match=f"no way back to 127.0.0.1:{reply_to.port}"):
        await replica.push(chat(), reply_to, 1)


def test_the_last_item_of_a_stream_is_its_outcome(tmp_path: Path) -> None:
    async def scenario() -> None:
        replica = await Replica.started(family(tmp_path))
        items = [item async for item in replica.stream(chat(max_tokens=3))]
        assert [type(item) for item in items] == [tuple, tuple, tuple, Outcome]
        assert isinstance(items[0], tuple)
        data, ids = items[0]
        assert data.startswith(b"data: ")
        assert list(ids) == [0]

    run(scenario())


def test_routers_get_the_engines_report_and_a_new_one_each_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        replica = await Replica.started(family(tmp_path))
        running = asyncio.ensure_future(replica.complete(chat(max_tokens=1000)))
        await asyncio.sleep(0.1)
        stats = json.loads(json.dumps(replica.record_routing_stats()))
        report = report_from_stats(stats, replica_id="a", received_s=0.0)
        assert report is not None
        assert (report.running, report.kv_capacity_tokens) == (1, TIER["kv_tokens"])
        assert "beat_s" in stats
        running.cancel()
        assert replica.record_replica_metadata()["tier"] == "mini"

    run(scenario())


def test_a_replica_whose_engine_has_ended_tells_its_routers_and_then_ends(tmp_path: Path) -> None:
    async def scenario() -> None:
        replica = await Replica.started(family(tmp_path))
        await replica.check_health()
        call = asyncio.ensure_future(replica.complete(chat(max_tokens=1000)))
        await asyncio.sleep(0.1)
        await replica._engine.stop()
        assert replica.record_routing_stats() == DEAD
        began_s = asyncio.get_running_loop().time()
        assert not replica.exited
        await replica.check_health()
        assert replica.exited
        assert asyncio.get_running_loop().time() - began_s == pytest.approx(LAST_WORDS_S)
        assert isinstance((await call).error, EngineFailed)

    run(scenario())


def test_a_replica_whose_engine_has_ended_ends_though_nobody_asks(tmp_path: Path) -> None:
    async def scenario() -> None:
        replica = await Replica.started(family(tmp_path))
        await replica._engine.stop()
        await asyncio.sleep(CHECK_S + LAST_WORDS_S + 0.1)
        assert replica.exited

    run(scenario())


def test_an_engine_that_hangs_ends_its_streams_and_its_replica(tmp_path: Path) -> None:
    async def scenario() -> None:
        replica = await Replica.started(family(tmp_path))
        loop = asyncio.get_running_loop()
        await asyncio.sleep(100)  # idle is not hung
        items = replica.stream(chat(max_tokens=1500))
        assert await anext(items)
        assert replica._engine._timer is not None  # type: ignore[attr-defined]
        replica._engine._timer.cancel()  # type: ignore[attr-defined]
        began_s = loop.time()
        last = [item async for item in items][-1]
        assert isinstance(last, Outcome)
        assert isinstance(last.error, EngineFailed)
        assert "1 requests and no step for 10 s" in last.error.message
        assert HANG_S <= loop.time() - began_s <= HANG_S + 2 * CHECK_S
        assert replica.record_routing_stats() == DEAD
        assert not replica.exited
        await asyncio.sleep(LAST_WORDS_S + 0.1)
        assert replica.exited

    run(scenario())


def test_steps_of_an_offloaded_model_may_take_as_long_as_its_requests(tmp_path: Path) -> None:
    async def scenario() -> None:
        served = family(tmp_path)
        slow = served.tiers["mini"].model_copy(update={"offload": Offload(limit_s=60)})
        replica = await Replica.started(served.model_copy(update={"tiers": {"mini": slow}}))
        call = asyncio.ensure_future(replica.complete(chat(max_tokens=1500)))
        await asyncio.sleep(1)
        assert replica._engine._timer is not None  # type: ignore[attr-defined]
        replica._engine._timer.cancel()  # type: ignore[attr-defined]
        await asyncio.sleep(5 * HANG_S)
        assert not replica.exited
        error = (await call).error
        assert isinstance(error, EngineFailed)
        assert "1 requests and no step for 60 s" in error.message

    run(scenario())


def test_a_replica_that_works_or_stood_still_is_not_taken_for_hung(tmp_path: Path) -> None:
    async def scenario() -> None:
        replica = await Replica.started(family(tmp_path))
        call = asyncio.ensure_future(replica.complete(chat(max_tokens=2000)))
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        await asyncio.sleep(5)
        loop.clock.now_s += 10 * HANG_S  # as of a process that was frozen
        await asyncio.sleep(3)
        assert not replica.exited
        assert (await call).error is None

    run(scenario())


def test_a_replica_whose_watch_has_failed_is_unhealthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        replica = await Replica.started(family(tmp_path))
        monkeypatch.setattr(replica._engine, "report", lambda: 1 / 0)
        await asyncio.sleep(CHECK_S + 0.1)
        with pytest.raises(ZeroDivisionError):
            await replica.check_health()

    run(scenario())


async def test_a_stream_is_on_its_link_before_its_first_token(tmp_path: Path) -> None:
    replica = await Replica.started(family(tmp_path, cost=TIER["cost"] | {"a_ms": 3_600_000}))
    listener = Listener()
    reply_to = await listener.start("127.0.0.1")
    stream, sink = listener.open(lambda: None)
    call = asyncio.ensure_future(replica.push(chat(max_tokens=5), reply_to, stream))
    async with asyncio.timeout(10):
        while sink.link is None:
            await asyncio.sleep(0)
    await listener.stop()
    with pytest.raises(ReplicaLost):
        await sink.next(10)
    with pytest.raises(asyncio.CancelledError):
        await call


def test_a_follower_that_ends_while_rank_0_loads_fails_the_start_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def load_for_ever(self: SimulatedEngine) -> None:
        await asyncio.Event().wait()

    def check(self: ExpertGroup) -> None:
        if asyncio.get_running_loop().time() > 7:
            raise EngineFailed("expert group: rank 1 ended: ActorDiedError")

    monkeypatch.setattr(SimulatedEngine, "start", load_for_ever)
    monkeypatch.setattr(ExpertGroup, "check", check)

    async def scenario() -> None:
        with pytest.raises(EngineFailed, match="rank 1 ended"):
            await Replica.started(family(tmp_path))
        assert asyncio.get_running_loop().time() <= 7 + CHECK_S

    run(scenario())
