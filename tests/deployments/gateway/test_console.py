"""The console's routes, asked as a browser asks."""

import asyncio
import itertools
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
from shell import Exchange, Handle, Replica, application, family
from starlette.types import ASGIApp

from deployments.control.words import Standing
from deployments.gateway.app import Gateway
from deployments.gateway.console import routes

STATIC = Path(routes.__file__).with_name("static")
PARTS = sorted(part.name for part in STATIC.iterdir() if part.suffix != ".html")
PAGES = {"/console": "app.js", "/console/studio": "studio.js", "/console/accounts": "accounts.js"}
Ask = Callable[..., Awaitable[Exchange]]


@pytest.fixture
async def served(tmp_path: Path) -> tuple[Gateway, ASGIApp]:
    spec = family(tmp_path)
    tiers = {key: Handle(await Replica.started(spec, key)) for key in spec.tiers}
    gateway, app, _ = await application(spec, tiers)
    return gateway, app


@pytest.fixture
def ask(served: tuple[Gateway, ASGIApp]) -> Ask:
    def asked(path: str, method: str = "GET", **headers: str) -> Awaitable[Exchange]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return Exchange(served[1], path, method=method, headers=named).finished()

    return asked


def snapshots(exchange: Exchange) -> list[dict[str, Any]]:
    events = exchange.body.decode().split("\n\n")
    return [json.loads(event.removeprefix("data: ")) for event in events if event.startswith("data: ")]


@pytest.mark.parametrize("path", [*PAGES, "/console/state", *(f"/console/{name}" for name in PARTS)])
async def test_every_route_is_open_guarded_and_takes_nothing_from_elsewhere(ask: Ask, path: str) -> None:
    answer = await ask(path)
    assert answer.status == 200
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
    assert policy["frame-ancestors"] == "'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert int(answer.headers["content-length"]) == len(answer.body)


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_has_no_inline_code_and_names_only_parts_that_are_there(ask: Ask, path: str) -> None:
    page = (await ask(path)).body.decode()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|https?://", page)
    named = [urljoin(path, link) for link in re.findall(r'(?:src|href)="([^"#]+)"', page)]
    assert set(named) <= {*PAGES, *(f"/console/{name}" for name in PARTS)}
    assert f"/console/{PAGES[path]}" in named


@pytest.mark.parametrize("name", [name for name in PARTS if name.endswith(".js")])
def test_a_module_imports_only_parts_that_are_there_and_parses_no_markup(name: str) -> None:
    text = (STATIC / name).read_text(encoding="utf-8")
    assert set(re.findall(r'from "\./([^"]+)"', text)) <= set(PARTS)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|\beval\b|new Function|document\.write|localStorage", text)


@pytest.mark.parametrize(("name", "kind"), [("app.js", "text/javascript"), ("console.css", "text/css")])
async def test_a_part_is_sent_again_only_where_it_has_changed(ask: Ask, name: str, kind: str) -> None:
    first = await ask(f"/console/{name}")
    assert first.headers["content-type"] == f"{kind}; charset=utf-8"
    assert first.headers["cache-control"] == "no-cache"
    again = await ask(f"/console/{name}", if_none_match=first.headers["etag"])
    assert (again.status, again.body) == (304, b"")


@pytest.mark.parametrize("path", ["/console", "/console/state", "/console/events", "/console/app.js"])
async def test_a_head_has_the_headers_and_no_body(ask: Ask, path: str) -> None:
    answer = await ask(path, "HEAD")
    assert (answer.status, answer.body) == (200, b"")


@pytest.mark.parametrize("path", ["/console/state", "/console/events", "/console"])
async def test_other_methods_are_refused(ask: Ask, path: str) -> None:
    answer = await ask(path, "POST")
    assert (answer.status, answer.json()["error"]["code"]) == (405, "method_not_allowed")


@pytest.mark.parametrize("path", ["/console/secret", "/console/../app.py", "/console/index.html"])
async def test_what_is_not_there_is_not_found_as_elsewhere(ask: Ask, path: str) -> None:
    answer = await ask(path)
    assert (answer.status, answer.json()["error"]["code"]) == (404, "route_not_found")


async def test_the_state_is_never_cached_and_knows_every_tier(ask: Ask) -> None:
    answer = await ask("/console/state")
    assert answer.headers["cache-control"] == "no-store"
    assert [tier["key"] for tier in answer.json()["tiers"]] == ["mini", "turbo"]
    assert answer.json()["control"]["picture_age_s"] is None


async def test_what_was_asked_and_who_asked_is_not_in_it(tmp_path: Path) -> None:
    spec = family(tmp_path)
    tiers = {key: Handle(await Replica.started(spec, key)) for key in spec.tiers}
    gateway, app, secret = await application(spec, tiers, key="a-tenant")
    said = {"model": "mini", "messages": [{"role": "user", "content": "a-whisper"}], "max_tokens": 3}
    headers = {"authorization": f"Bearer {secret}"}
    asking = Exchange(app, "/v1/chat/completions", json.dumps(said).encode(), headers=headers)
    while not gateway._desk.held()["mini"][0]:
        await asyncio.sleep(0)
    state = (await Exchange(app, "/console/state", method="GET").finished()).body.decode()
    asking.task.cancel()
    assert json.loads(state)["tiers"][0]["held_requests"] == 1
    assert not any(word in state for word in ("a-whisper", "a-tenant", secret))


async def test_a_word_of_the_control_loop_is_in_the_next_snapshot(
    served: tuple[Gateway, ASGIApp], ask: Ask, tmp_path: Path
) -> None:
    said = Standing(version=7, family=family(tmp_path), workers=(), metrics_address="", targets={"mini": 2})
    served[0]._heard(said)
    state = (await ask("/console/state")).json()
    assert state["control"]["version"] == 7
    assert state["tiers"][0]["replicas"]["target"] == 2


async def test_who_opens_the_page_late_sees_the_last_minute_alone(
    served: tuple[Gateway, ASGIApp], ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Standing(version=1, family=family(tmp_path), workers=(), metrics_address="", targets={})
    console = served[0]._console
    clock = itertools.count(console._clock())
    monkeypatch.setattr(console, "_clock", lambda: next(clock))
    for _ in range(300):
        console.heard(said)
    window_s = (await ask("/console/state")).json()["tiers"][0]["figures"]["window_s"]
    assert routes.WINDOW_S <= window_s <= routes.WINDOW_S + routes.READ_S


async def test_what_limits_refused_is_counted_since_the_gateway_began(
    served: tuple[Gateway, ASGIApp], ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = served[0]._console
    clock = itertools.count(console._clock() + 1000, 1000)
    monkeypatch.setattr(console, "_clock", lambda: next(clock))
    assert (await ask("/console/state")).json()["refusals"]["by_limit"] == {}
    for limit in ("tokens_per_minute", "concurrent", "concurrent"):
        served[0]._metrics.count("moray_limit_refusals_total", limit=limit)
    told = (await ask("/console/state")).json()["refusals"]
    assert told["by_limit"] == {"concurrent": 2, "tokens_per_minute": 1}
    assert told["since_s"] >= 2000


async def test_a_stream_tells_a_snapshot_each_period_and_ends_by_itself(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "PERIOD_S", 0.01)
    monkeypatch.setattr(routes, "LIFE_S", 1.0)
    answer = await ask("/console/events")
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.body.startswith(b"retry: 1000\n\n")
    told = snapshots(answer)
    assert len(told) > 1
    assert {state["family"] for state in told} == {"tested"}
    assert answer.sent[-1][1].get("more_body", False) is False


async def test_a_browser_that_leaves_ends_its_stream(served: tuple[Gateway, ASGIApp]) -> None:
    exchange = Exchange(served[1], "/console/events", method="GET")
    while not exchange.chunks:
        await asyncio.sleep(0)
    exchange._closed.set_result(None)
    await asyncio.wait_for(exchange.task, routes.LIFE_S / 2)
    assert served[0]._console.streams == 0


async def test_more_streams_than_allowed_are_refused_and_those_that_ended_count_no_more(
    served: tuple[Gateway, ASGIApp], ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "MOST_STREAMS", 2)
    watching = [Exchange(served[1], "/console/events", method="GET") for _ in range(2)]
    while not all(exchange.chunks for exchange in watching):
        await asyncio.sleep(0)
    refused = await ask("/console/events")
    assert refused.status == 429
    assert "2 are watched already" in refused.json()["error"]["message"]
    for exchange in watching:
        exchange._closed.set_result(None)
        await exchange.finished()
    assert (await ask("/console/events", "HEAD")).status == 200


async def test_a_browser_that_reads_no_more_is_left(
    served: tuple[Gateway, ASGIApp], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "LIFE_S", 0.05)
    monkeypatch.setattr(routes, "LAST_WORD_S", 0.05)

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    events = routes.Events(served[0]._console)
    await asyncio.wait_for(events({"type": "http", "method": "GET"}, receive, send), 5)
    assert served[0]._console.streams == 0
