import asyncio
import json
from pathlib import Path

import pytest
from shell import TIER, Replica, chat, family
from virtual_time import run

from cluster.errors import ContextTooLong, EngineFailed, Overloaded, ReplicaLost
from cluster.fleet import report_from_stats
from deployments.link import Listener, ReplyTo
from deployments.stream import Outcome


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
        assert isinstance(await anext(items), bytes)
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
        assert [type(item) for item in items] == [bytes, bytes, bytes, Outcome]
        assert isinstance(items[0], bytes)
        assert items[0].startswith(b"data: ")

    run(scenario())


def test_routers_get_the_engines_report_and_a_new_one_each_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        replica = await Replica.started(family(tmp_path))
        running = asyncio.ensure_future(replica.complete(chat(max_tokens=1000)))
        await asyncio.sleep(0.1)
        stats = json.loads(json.dumps(replica.record_routing_stats()))
        report = report_from_stats(stats, replica_id="a", tier="mini", received_s=0.0)
        assert report is not None
        assert (report.running, report.kv_capacity_tokens) == (1, TIER["kv_tokens"])
        assert "beat_s" in stats
        running.cancel()
        assert replica.record_replica_metadata()["tier"] == "mini"

    run(scenario())


def test_a_replica_whose_engine_has_ended_is_not_healthy(tmp_path: Path) -> None:
    async def scenario() -> None:
        replica = await Replica.started(family(tmp_path))
        replica.check_health()
        await replica._engine.stop()
        with pytest.raises(EngineFailed):
            replica.check_health()

    run(scenario())
