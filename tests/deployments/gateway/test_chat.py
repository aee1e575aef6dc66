"""The whole gateway but Serve, on a virtual clock: every request goes through all of its layers."""

import asyncio
import dataclasses
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from shell import TIER, Exchange, Handle, Replica, application, family
from starlette.types import ASGIApp
from virtual_time import run

from autoscaling.story import Story
from cluster.errors import EngineFailed, InvalidRequest, MorayError, Overloaded
from cluster.family import Family
from cluster.request import Chat, Served
from cluster.retry import MOST_RESCUES
from deployments import seen
from deployments.control.words import Picture, Standing
from deployments.gateway import chat
from deployments.gateway.asked import Asked, Place
from deployments.gateway.chat import KEEPALIVE, KEEPALIVE_S
from deployments.stream import Outcome

PATH = "/v1/chat/completions"
ASKED: dict[str, Any] = {"model": "mini", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}


class Stage:
    """A gateway, whose tiers mini and turbo are what the test gives; a simulated replica where it gives nothing."""

    def __init__(self, gateway: Any, app: ASGIApp, key: str, handle: Handle) -> None:
        self.gateway = gateway
        self.app = app
        self._handle = handle
        self._headers = {"authorization": f"Bearer {key}"}

    @property
    def calls(self) -> list[Any]:
        return self._handle.calls

    def ask(self, headers: dict[str, str] | None = None, **changes: Any) -> Exchange:
        return self.send(json.dumps(ASKED | changes).encode(), headers=headers)

    def send(self, *parts: bytes, headers: dict[str, str] | None = None) -> Exchange:
        return Exchange(self.app, PATH, *parts, headers=self._headers | (headers or {}))

    def plan(self, name: str) -> dict[str, str]:
        """The header of a key with that plan."""
        return {"authorization": f"Bearer {self.gateway._keys.create('a', 0.0, name)[0]}"}

    async def get(self, path: str, query: str = "") -> Exchange:
        return await Exchange(self.app, path, method="GET", query=query, headers=self._headers).finished()

    async def page(self) -> str:
        return (await self.get("/metrics", "only=gateway")).body.decode()


def awake(*tiers: str) -> None:
    for tier in tiers:
        seen.publish(tier, (seen.SeenReplica(replica_id=f"{tier}-1", metrics_address=""),))


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a scenario on such a stage, in virtual time. Tokens come as items of the handle's stream: no sockets."""

    def play(
        scenario: Callable[[Stage], Awaitable[None]],
        target: object = None,
        max_body_bytes: int = 4096,
        parts: dict[str, Any] | None = None,
        asleep: bool = False,
        **tier: Any,
    ) -> None:
        async def played() -> None:
            limits = {"tokens": "streamed", "max_body_bytes": max_body_bytes}
            spec = Family.model_validate(family(tmp_path, gateway=limits, **tier).model_dump() | (parts or {}))
            handle = Handle(target or await Replica.started(spec))
            if not asleep:
                awake("mini", "turbo")
            gateway, app, key = await application(spec, {"mini": handle, "turbo": handle})
            await scenario(Stage(gateway, app, key, handle))

        monkeypatch.setattr(seen, "_replicas", {})
        monkeypatch.setattr(seen, "_listeners", [])
        run(played())

    return play


Play = Callable[..., None]


def error_of(exchange: Exchange) -> dict[str, Any]:
    body = exchange.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error


def events(exchange: Exchange) -> list[str]:
    return [line.removeprefix("data: ") for line in exchange.body.decode().split("\n\n") if line]


def text(exchange: Exchange) -> str:
    chunks = [json.loads(event) for event in events(exchange) if event.startswith("{")]
    return "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])


class Fails:
    """A replica that gives some text, then what it is told."""

    def __init__(self, end: MorayError | Exception, *, said: bytes = b"", after_s: float = 0.0) -> None:
        self._end = end
        self._said = said
        self._after_s = after_s

    async def complete(self, chat: Chat) -> Outcome:
        await asyncio.sleep(self._after_s)
        if isinstance(self._end, MorayError):
            return Outcome(error=self._end)
        raise self._end

    async def stream(self, chat: Chat) -> AsyncIterator[tuple[bytes, tuple[int, ...]] | Outcome]:
        if self._said:
            yield self._said, (1,)
        yield await self.complete(chat)


class Slow:
    """Takes a while for its first bytes."""

    def __init__(self, first_s: float) -> None:
        self._first_s = first_s

    async def complete(self, chat: Chat) -> Outcome:
        await asyncio.sleep(self._first_s)
        return Outcome(body=b'{"awake":true}')

    async def stream(self, chat: Chat) -> AsyncIterator[tuple[bytes, tuple[int, ...]] | Outcome]:
        await asyncio.sleep(self._first_s)
        yield b"data: awake\n\n", (1,)
        yield Outcome()


def test_an_answer_comes_whole_or_as_events_with_the_same_text(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        whole, streamed = await asyncio.gather(stage.ask(seed=7).finished(), stage.ask(seed=7, stream=True).finished())
        assert (whole.status, whole.headers["content-type"]) == (200, "application/json")
        assert (streamed.status, streamed.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert whole.json()["choices"][0]["message"]["content"] == text(streamed) != ""
        assert events(streamed)[-1] == "[DONE]"

    play(scenario)


def test_every_answer_says_which_tier_served_it_and_that_it_is_simulated(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        for exchange in (await stage.ask().finished(), await stage.ask(stream=True).finished()):
            assert exchange.headers["moray-tier"] == "mini"
            assert exchange.headers["moray-engine"] == "simulated"
        assert (await stage.ask(model="turbo").finished()).headers["moray-tier"] == "turbo"

    play(scenario)


def test_the_request_id_of_the_caller_is_the_id_of_the_answer(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        given = {"x-request-id": "mine-1"}
        assert (await stage.ask(given).finished()).json()["id"] == "mine-1"
        assert '"id":"mine-1"' in events(await stage.ask(given, stream=True).finished())[0]

    play(scenario)


@pytest.mark.parametrize("given", ["", "Bearer sk-moray-unknown", "Basic dTpw"])
def test_a_request_without_a_known_key_is_refused_before_its_body_is_read(play: Play, given: str) -> None:
    async def scenario(stage: Stage) -> None:
        exchange = await stage.send(b"not even JSON", headers={"authorization": given}).finished()
        assert (exchange.status, error_of(exchange)["code"]) == (401, "invalid_api_key")
        assert stage.calls == []

    play(scenario)


@pytest.mark.parametrize(("body", "code"), [(b"{", "invalid_json"), (b"", "invalid_json"), (b"[]", "invalid_value")])
def test_what_is_no_json_object_is_refused(play: Play, body: bytes, code: str) -> None:
    async def scenario(stage: Stage) -> None:
        exchange = await stage.send(body).finished()
        assert (exchange.status, error_of(exchange)["code"]) == (400, code)

    play(scenario)


def test_an_unknown_model_is_refused_with_the_served_ones(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        exchange = await stage.ask(model="gpt-x").finished()
        error = error_of(exchange)
        assert (exchange.status, error["code"], error["param"]) == (404, "model_not_found", "model")
        assert "served: mini, turbo" in error["message"]

    play(scenario)


@pytest.mark.parametrize("declared", [True, False])
def test_an_oversize_body_is_refused_declared_or_chunked(play: Play, declared: bool) -> None:
    async def scenario(stage: Stage) -> None:
        body = json.dumps(ASKED | {"user": "x" * 5000}).encode()
        headers = {"content-length": str(len(body))} if declared else {}
        exchange = await stage.send(body[:2000], body[2000:4000], body[4000:], headers=headers).finished()
        assert (exchange.status, error_of(exchange)["code"]) == (413, "body_too_large")

    play(scenario)


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_keeps_its_own_status_also_where_a_stream_was_asked_for(play: Play, stream: bool) -> None:
    async def scenario(stage: Stage) -> None:
        too_long = await stage.ask(max_tokens=4096, stream=stream).finished()
        assert (too_long.status, error_of(too_long)["code"]) == (400, "context_length_exceeded")

    async def full(stage: Stage) -> None:
        refused = await stage.ask(stream=stream).finished()
        assert (refused.status, error_of(refused)["code"]) == (429, "overloaded")
        assert refused.headers["Retry-After"] == "7"

    play(scenario)
    play(full, Fails(Overloaded("full", retry_after_s=6.2)))


@pytest.mark.parametrize("stream", [False, True])
def test_a_replica_that_only_dies_is_told_after_some_tries(play: Play, stream: bool) -> None:
    async def scenario(stage: Stage) -> None:
        exchange = await stage.ask(stream=stream).finished()
        error = json.loads(events(exchange)[-1])["error"] if stream else error_of(exchange)
        assert (exchange.status, error["code"]) == (200 if stream else 503, "replica_lost")
        assert "secret" not in exchange.body.decode()
        assert len(stage.calls) == 1 + MOST_RESCUES

    play(scenario, Fails(RuntimeError("a secret traceback")))


@pytest.mark.parametrize(
    ("end", "code"), [(EngineFailed("engine: gone"), "engine_failed"), (RuntimeError(), "replica_lost")]
)
def test_an_error_mid_stream_becomes_an_error_event_and_no_done(play: Play, end: Exception, code: str) -> None:
    async def scenario(stage: Stage) -> None:
        exchange = await stage.ask(stream=True).finished()
        assert exchange.status == 200
        *first, last = events(exchange)
        assert set(first) == {"so far"}, "as often as it was asked elsewhere"
        assert json.loads(last)["error"]["code"] == code
        assert exchange.sent[-1][1] == {"type": "http.response.body", "body": b""}
        assert f'code="{code}",tier="mini"' in await stage.page()

    play(scenario, Fails(end, said=b"data: so far\n\n", after_s=1.0))


def test_a_stream_that_an_engine_refuses_late_leaves_nothing_of_the_request_in_the_log(
    play: Play, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat.log, "propagate", True)
    error = InvalidRequest("messages: given 'my prompt'; other is allowed; change it")

    async def scenario(stage: Stage) -> None:
        exchange = await stage.ask(stream=True).finished()
        assert json.loads(events(exchange)[-1])["error"]["message"] == error.message

    with caplog.at_level(logging.INFO, chat.log.name):
        play(scenario, Fails(error, said=b"data: so far\n\n", after_s=1.0))
    assert "stream broke" in caplog.text
    assert "my prompt" not in str([vars(record) for record in caplog.records])


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_call(play: Play, stream: bool) -> None:
    async def scenario(stage: Stage) -> None:
        exchange = stage.ask(stream=stream, max_tokens=2000)
        await asyncio.sleep(1.0)
        assert not exchange.task.done()
        exchange.task.cancel()
        await asyncio.wait([exchange.task])
        await asyncio.sleep(0.1)
        assert [call.task.cancelled() for call in stage.calls] == [True]
        page = await stage.page()
        assert 'moray_requests_total{code="client_gone",tier="mini"} 1.0' in page
        assert 'moray_streams{tier="mini"} 1.0' not in page

    play(scenario)


def test_comments_keep_a_stream_alive_while_a_sleeping_tier_starts(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        asyncio.get_running_loop().call_later(25, awake, "mini")
        exchange = await stage.ask(stream=True).finished()
        assert exchange.status == 200
        assert exchange.chunks == [KEEPALIVE, KEEPALIVE, b"data: awake\n\n", b""]
        assert [at_s for at_s, _ in exchange.sent] == [KEEPALIVE_S, KEEPALIVE_S, 2 * KEEPALIVE_S, 25, 25]
        assert exchange.headers["moray-tier"] == "mini"
        assert "moray-replica" not in exchange.headers, "nobody knew it yet"

    play(scenario, Slow(0), asleep=True, start_timeout_s=100, patience_s=100)


def test_an_answer_that_is_not_streamed_waits_for_a_sleeping_tier(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        asyncio.get_running_loop().call_later(25, awake, "mini")
        exchange = await stage.ask().finished()
        assert (exchange.status, exchange.json()) == (200, {"awake": True})
        assert exchange.sent[0][0] == 25

    play(scenario, Slow(0), asleep=True, start_timeout_s=100, patience_s=100)


@pytest.mark.parametrize("stream", [False, True])
def test_a_tier_that_does_not_wake_up_in_time_is_told(play: Play, stream: bool) -> None:
    async def scenario(stage: Stage) -> None:
        exchange = await stage.ask(stream=stream).finished()
        error = json.loads(events(exchange)[-1])["error"] if stream else error_of(exchange)
        assert error["code"] == "start_timeout"
        assert exchange.status == (200 if stream else 503)
        assert stage.calls == []

    play(scenario, Slow(0), asleep=True, start_timeout_s=30, patience_s=100)


@pytest.mark.parametrize("stream", [False, True])
def test_a_replica_may_take_its_time_for_its_first_token(play: Play, stream: bool) -> None:
    async def scenario(stage: Stage) -> None:
        exchange = await stage.ask(stream=stream).finished()
        assert exchange.status == 200
        assert b"awake" in exchange.body

    play(scenario, Slow(1000), start_timeout_s=30)


def test_an_answer_says_who_gave_it_and_how_long_it_was_held(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        for stream in (False, True):
            headers = (await stage.ask(stream=stream).finished()).headers
            assert (headers["moray-tier"], headers["moray-replica"]) == ("mini", "mini-1")
            assert float(headers["moray-queued-ms"]) < 1000
            assert "moray-spilled" not in headers

    play(scenario)


def test_a_spilled_answer_says_why_and_is_counted_where_it_was_asked_and_where_it_was_served(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        place = stage.gateway._courses.desk.place

        async def spilled(asked: Asked) -> Place:
            placed: Place = await place(asked)
            served = Served(tier="turbo", replica="turbo-1", queued_s=0.5, spilled="mini saturated")
            return dataclasses.replace(placed, served=served)

        with patch.object(stage.gateway._courses.desk, "place", spilled):
            headers = (await stage.ask().finished()).headers
        assert (headers["moray-tier"], headers["moray-spilled"]) == ("turbo", "mini saturated")
        page = await stage.page()
        assert 'moray_arrivals_total{tier="mini"} 1.0' in page
        assert 'moray_spilled_total{tier="mini"} 1.0' in page
        assert 'moray_promises_total{outcome="kept",tier="mini"} 1.0' in page
        assert 'moray_finished_total{tier="turbo"} 1.0' in page
        assert 'moray_finished_total{tier="mini"} 0.0' in page

    play(scenario)


PLANS = {"plans": {"small": {"tiers": ["mini"]}, "all": {"tiers": ["mini", "turbo"], "priority": 2, "share": 3}}}
RISING: dict[str, Any] = {
    "auto": {
        "names": ["gpt-5.2"],
        "default": "turbo",
        "long": "mini",
        "long_prompt_tokens": 999,
        "efforts": {"high": "mini"},
    },
    "tiers": {"mini": TIER | {"names": ["mini"], "quality": 2}, "turbo": TIER | {"names": ["turbo"], "quality": 1}},
}
AUTO = {"auto": {"names": ["gpt-5.2"], "default": "turbo", "long": "turbo", "long_prompt_tokens": 10}}


def test_a_plan_says_which_tiers_a_key_may_use(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        small = stage.plan("small")
        assert (await stage.ask(small).finished()).status == 200
        refused = await stage.ask(small, model="turbo").finished()
        assert (refused.status, error_of(refused)["code"]) == (403, "not_in_plan")

    play(scenario, parts=PLANS)


@pytest.mark.parametrize("body", [b"{}", b"not even JSON"])
def test_a_key_whose_plan_is_gone_is_refused_before_its_body_is_read(play: Play, body: bytes) -> None:
    async def scenario(stage: Stage) -> None:
        refused = await stage.send(body, headers=stage.plan("gold")).finished()
        assert (refused.status, error_of(refused)["code"]) == (403, "not_in_plan")
        assert "'gold' is not offered any more; plans are small, all" in error_of(refused)["message"]

    play(scenario, parts=PLANS)


def test_the_desk_hears_whose_request_it_is_and_where_it_may_go(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        place, heard = stage.gateway._courses.desk.place, []

        async def listening(asked: Asked) -> Place:
            heard.append(asked)
            placed: Place = await place(asked)
            return placed

        with patch.object(stage.gateway._courses.desk, "place", listening):
            await stage.ask(stage.plan("all")).finished()
            await stage.ask().finished()
        with_plan, without = heard
        assert (with_plan.priority, with_plan.share, with_plan.range.tiers) == (2, 3, ("mini", "turbo"))
        assert (without.priority, without.share, without.range.tiers) == (0, 1, ("mini",)), "nobody permitted a spill"
        assert with_plan.tenant != without.tenant

    play(scenario, parts=PLANS)


def test_a_plain_name_leaves_the_tier_to_the_gateway_and_is_listed(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        answer = await stage.ask(model="gpt-5.2").finished()
        assert answer.headers["moray-tier"] == "turbo"
        assert answer.json()["model"].startswith("gpt-5.2")
        assert "gpt-5.2" in [model["id"] for model in (await stage.get("/v1/models")).json()["data"]]
        assert (await stage.get("/v1/models/gpt-5.2")).json()["price"] == TIER["price"]

    play(scenario, parts=AUTO)


def test_more_effort_is_a_better_tier_where_the_gateway_chooses_and_refused_where_the_caller_did(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        for effort, tier in (("low", "turbo"), ("high", "mini")):
            answer = await stage.ask(model="gpt-5.2", reasoning_effort=effort).finished()
            assert answer.headers["moray-tier"] == tier
        assert (await stage.ask(reasoning_effort="minimal").finished()).status == 200
        refused = await stage.ask(reasoning_effort="high").finished()
        assert (refused.status, error_of(refused)["param"]) == (400, "reasoning_effort")

    play(scenario, parts=RISING)


@pytest.mark.parametrize(
    ("header", "given", "param"),
    [
        ("moray-floor", "gold", "floor"),
        ("moray-hint", "poetry", "hint"),
        ("moray-ceiling-usd-per-mtok", "cheap", "ceiling_usd_per_mtok"),
        ("moray-ceiling-usd-per-mtok", "nan", "ceiling_usd_per_mtok"),
        ("moray-ceiling-usd-per-mtok", "-1", "ceiling_usd_per_mtok"),
        ("moray-ceiling-usd-per-mtok", "0.5", "ceiling_usd_per_mtok"),
    ],
)
def test_a_wish_that_cannot_be_met_or_understood_is_refused_by_name(
    play: Play, header: str, given: str, param: str
) -> None:
    async def scenario(stage: Stage) -> None:
        refused = await stage.ask({header: given}, model="gpt-5.2").finished()
        assert (refused.status, error_of(refused)["param"]) == (400, param)
        assert 'moray_arrivals_total{tier="turbo"} 0.0' in await stage.page()

    play(scenario, parts=AUTO)


@pytest.mark.parametrize("model", ["mini", "gpt-5.2"])
def test_only_the_engine_says_that_a_prompt_is_too_long(play: Play, model: str) -> None:
    async def scenario(stage: Stage) -> None:
        long = [{"role": "user", "content": "x" * 20_000}]
        answer = await stage.ask(stage.plan("all"), model=model, messages=long).finished()
        assert answer.status == 200

    play(scenario, Slow(0), max_body_bytes=50_000, parts=PLANS | AUTO)


def test_a_newer_family_is_served_from_the_next_request_on(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        spec = stage.gateway._family
        renamed = spec.tiers["mini"].model_copy(update={"names": ("nano",)})
        newer = spec.model_copy(update={"tiers": {**spec.tiers, "mini": renamed}})
        standing = Standing(version=1, family=newer, workers=(), metrics_address="", targets={})
        stage.gateway._heard(standing)
        assert (await stage.ask(model="mini").finished()).status == 404
        assert (await stage.ask(model="nano").finished()).status == 200
        assert [model["id"] for model in (await stage.get("/v1/models")).json()["data"]] == ["nano", "turbo"]

    play(scenario)


def test_prometheus_is_told_of_the_pages_of_this_gateway_of_the_others_and_of_the_control_loop(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        others = {"10.0.0.2:5": None, "10.0.0.3:6": "r"}
        family = stage.gateway._family
        standing = Standing(
            version=0, family=family, workers=(), metrics_address="10.0.0.1:1", targets={}, pages=others
        )
        stage.gateway._heard(standing)
        answer = await stage.get("/metrics/targets")
        assert answer.headers["content-type"] == "application/json"
        plain, labelled = answer.json()
        assert sorted(plain["targets"]) == sorted(["10.0.0.1:1", "10.0.0.2:5", stage.gateway._address])
        assert labelled == {"targets": ["10.0.0.3:6"], "labels": {"replica": "r"}}

    play(scenario)


def test_a_broken_promise_is_counted_and_a_clients_own_fault_is_none(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.ask(max_tokens=4096).finished()
        assert 'moray_promises_total{outcome="missed",tier="mini"} 0.0' in await stage.page()

    async def lost(stage: Stage) -> None:
        await stage.ask().finished()
        assert 'moray_promises_total{outcome="missed",tier="mini"} 1.0' in await stage.page()

    async def late(stage: Stage) -> None:
        await stage.ask().finished()
        assert 'moray_promises_total{outcome="missed",tier="mini"} 1.0' in await stage.page()

    play(scenario)
    play(lost, Fails(RuntimeError()))
    play(late, slo={"ttft_s": 1, "tpot_ms": 1})


def test_what_was_asked_and_answered_is_counted(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await asyncio.gather(*(stage.ask(stream=stream).finished() for stream in (False, True)))
        await stage.ask(model="none of ours").finished()
        page = await stage.page()
        assert 'moray_requests_total{code="ok",tier="mini"} 2.0' in page
        assert 'moray_requests_total{code="model_not_found",tier="none"} 1.0' in page
        assert 'moray_completion_tokens_total{tier="mini"} 10.0' in page
        assert 'moray_ttft_seconds_count{tier="mini"} 2.0' in page
        assert 'moray_tpot_seconds_count{tier="mini"} 2.0' in page
        assert 'moray_streams{tier="mini"} 0.0' in page

    play(scenario)


def test_one_slow_answer_holds_up_no_other(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        slow = stage.ask(stream=True, max_tokens=1000)
        quick = await stage.ask(max_tokens=1).finished()
        assert quick.status == 200
        assert not slow.task.done()
        assert len(events(await slow.finished())) > 1000

    play(scenario)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "route_not_found"),
        ("GET", "/", 404, "route_not_found"),
        ("POST", "/v1/fine_tuning/jobs", 404, "route_not_found"),
        ("GET", PATH, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/models", 401, "invalid_api_key"),
        ("GET", "/v1/models/mini", 401, "invalid_api_key"),
        ("GET", "/v1/videos", 404, "route_not_found"),
    ],
)
def test_every_error_is_openais_error_object(play: Play, method: str, path: str, status: int, code: str) -> None:
    async def scenario(stage: Stage) -> None:
        exchange = await Exchange(stage.app, path, method=method).finished()
        assert (exchange.status, error_of(exchange)["code"]) == (status, code)
        assert exchange.headers["content-type"] == "application/json"

    play(scenario)


def test_the_models_are_those_of_the_family(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        listed = await stage.get("/v1/models")
        assert [model["id"] for model in listed.json()["data"]] == ["mini", "turbo"]
        one = await stage.get("/v1/models/turbo")
        assert one.json()["price"] == TIER["price"]
        unknown = await stage.get("/v1/models/x")
        assert (unknown.status, error_of(unknown)["code"]) == (404, "model_not_found")

    play(scenario)


def test_health_needs_no_key_and_counts_the_replicas_seen(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        awake("mini")
        exchange = await Exchange(stage.app, "/health", method="GET").finished()
        assert exchange.json() == {
            "status": "ok",
            "version": metadata.version("moray"),
            "family": "tested",
            "family_version": 0,
            "replicas": {"mini": 1, "turbo": 0},
            "control": None,
        }

    play(scenario, asleep=True)


def test_health_tells_the_versions_and_how_old_the_word_of_the_control_loop_is(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        family = stage.gateway._family
        picture = Picture(age_s=2.0, gpus=1, rooms=(), holdings=(), awaiting=(), leaving=(), counts={}, story=Story())
        stage.gateway._heard(
            Standing(
                version=3, family=family, workers=(), metrics_address="", targets={}, picture=picture, moray="0.0.1"
            )
        )
        health = (await stage.get("/health")).json()
        assert health["family_version"] == 3
        assert health["control"]["version"] == "0.0.1"
        assert health["control"]["picture_age_s"] == health["control"]["heard_age_s"] + 2.0

    play(scenario)


def ledger(stage: Stage) -> list[dict[str, Any]]:
    store = stage.gateway._metrics.journal._store
    columns = ("code", "input_tokens", "output_tokens", "tier_asked", "tier_served", "price_nusd", "estimated")
    rows = store._run(f"SELECT {', '.join(columns)} FROM usage_events ORDER BY seq", ())
    assert store._run("SELECT count(*) FROM usage_open", ()) == [(0,)], "nothing is open any more"
    return [dict(zip(columns, row, strict=True)) for row in rows]


def billed(page: str, what: str) -> float:
    return sum(float(line.split()[1]) for line in page.splitlines() if line.startswith(f"moray_{what}_tokens_total{{"))


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_is_in_the_ledger_at_the_list_price_and_adds_up_to_the_metrics(play: Play, stream: bool) -> None:
    async def scenario(stage: Stage) -> None:
        for _ in range(3):
            await stage.ask(stream=stream, headers={"x-request-id": "the same"}).finished()
        rows = ledger(stage)
        assert [(row["code"], row["estimated"], row["output_tokens"]) for row in rows] == [("ok", 0, 5)] * 3
        tokens = rows[0]["input_tokens"]
        assert rows[0]["price_nusd"] == 1000 * tokens + 2000 * 5, "1 and 2 dollars a million"
        page = await stage.page()
        assert billed(page, "billed_prompt") == billed(page, "prompt") == 3 * tokens
        assert billed(page, "billed_completion") == billed(page, "completion") == 15
        assert "moray_usage_pending 0.0" in page

    play(scenario)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("plan", "asked", "served", "factor"),
    [
        ("all", "auto", "default", 1),
        ("all", "flex", "flex", 0.5),
        ("all", "priority", "priority", 2),
        ("small", "priority", "default", 1),
        ("all", None, None, 1),
    ],
)
def test_an_answer_says_in_which_class_it_was_served_and_costs_as_much(
    play: Play, stream: bool, plan: str, asked: str | None, served: str | None, factor: float
) -> None:
    async def scenario(stage: Stage) -> None:
        answer = await stage.ask(stage.plan(plan), stream=stream, service_tier=asked).finished()
        told = [json.loads(event) for event in events(answer)[:-1]] if stream else [answer.json()]
        assert {one.get("service_tier") for one in told} == {served}
        (row,) = ledger(stage)
        assert row["price_nusd"] == factor * (1000 * row["input_tokens"] + 2000 * 5)

    play(scenario, parts=PLANS)


@pytest.mark.parametrize("stream", [True, False])
def test_what_may_wait_is_refused_in_the_words_of_the_api_and_breaks_no_promise(play: Play, stream: bool) -> None:
    async def scenario(stage: Stage) -> None:
        for asked, code in (("flex", "resource_unavailable"), ("default", "overloaded")):
            answer = await stage.ask(stream=stream, service_tier=asked).finished()
            assert (answer.status, error_of(answer)["code"]) == (429, code)
        page = await stage.page()
        assert 'moray_promises_total{outcome="missed",tier="mini"} 1.0' in page, "of the second alone"

    play(scenario, Fails(Overloaded("engine: full; less is allowed; come back", retry_after_s=3)))


def test_what_may_wait_is_never_spilled(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        place, heard = stage.gateway._courses.desk.place, []

        async def listening(asked: Asked) -> Place:
            heard.append(asked)
            placed: Place = await place(asked)
            return placed

        with patch.object(stage.gateway._courses.desk, "place", listening):
            await stage.ask(stage.plan("all"), service_tier="flex").finished()
        (asked,) = heard
        assert (asked.priority, asked.patience, asked.range.tiers) == (-1, 4, ("mini",))

    play(scenario, parts=PLANS)


def test_what_gave_no_token_is_not_in_the_ledger(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        for stream in (True, False):
            await stage.ask(stream=stream).finished()
            await stage.ask(stream=stream, model="none").finished()
        assert ledger(stage) == []

    play(scenario, Fails(EngineFailed("engine: it broke; a new request; send it again")))


def test_a_stream_that_breaks_behind_tokens_is_in_the_ledger_with_them(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.ask(stream=True).finished()
        (row,) = ledger(stage)
        assert row["output_tokens"] >= 1
        assert (row["code"], row["estimated"]) == ("invalid_value", 1)

    play(scenario, Fails(InvalidRequest("x: y; z; w"), said=b"data: {}\n\n"))


def test_a_client_that_leaves_pays_for_the_tokens_that_it_was_given(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        asked = stage.ask(stream=True, max_tokens=500)
        while len(asked.sent) < 4:
            await asyncio.sleep(0.01)
        asked.task.cancel()
        await asyncio.wait((asked.task,))
        (row,) = ledger(stage)
        assert (row["code"], row["estimated"]) == ("client_gone", 1)
        assert 1 <= row["output_tokens"] <= 10

    play(scenario)
