"""Keys of several plans beside each other under load: limits, priority and spill are what the plans' text says."""

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import pytest
from integration.conftest import Stage
from integration.families import tenanted
from integration.server import QUIET_S, Server, eventually
from integration.talk import ASK, LONG, Stream

pytestmark = pytest.mark.slow


@pytest.fixture
def server(stage: Stage) -> Server:
    return stage.serve("tenanted", tenanted)


def key_of(server: Server, plan: str) -> str:
    """Of a project of its own."""
    made = server.moray("keys", "create", plan, "--plan", plan, "--project", plan, "--json")
    assert made.returncode == 0, made.stderr
    return str(json.loads(made.stdout)[0]["key"])


def ask(server: Server, key: str, model: str, tokens: int = 4) -> httpx.Response:
    body = {"model": model, "messages": ASK, "max_tokens": tokens}
    return server.http(key).post("/v1/chat/completions", json=body, timeout=QUIET_S)


def holds(server: Server, requests: int) -> bool:
    return server.metric("moray_held_requests", tier="narrow") == requests


def used(server: Server, project: str) -> list[dict[str, Any]]:
    rows = json.loads(server.moray("usage", "--by", "project,asked,tier", "--json").stdout)
    return [row for row in rows if row["project"] == project]


def test_a_plan_is_granted_its_requests_a_minute_to_the_last_and_others_are_not_held_by_them(server: Server) -> None:
    small, large = key_of(server, "trial"), key_of(server, "gold")
    with ThreadPoolExecutor(8) as pool:
        mine = list(pool.map(lambda _: ask(server, small, "swift"), range(8)))
        others = list(pool.map(lambda _: ask(server, large, "swift"), range(8)))
    refused = [answer for answer in mine if answer.status_code == 429]
    assert [answer.status_code for answer in others] == [200] * 8
    assert len(refused) == 5, "three a minute"
    assert {answer.json()["error"]["code"] for answer in refused} == {"rate_limit_exceeded"}
    assert all(1 <= int(answer.headers["retry-after"]) <= 60 for answer in refused)
    eventually(lambda: sum(row["events"] for row in used(server, "trial")) == 3, QUIET_S, "in the ledger")


def test_of_those_who_wait_the_plan_of_higher_priority_goes_first(server: Server) -> None:
    low, high = key_of(server, "silver"), key_of(server, "platinum")
    before = Stream(server, "narrow", LONG).begun()
    ended: list[str] = []

    def asked(key: str, name: str) -> None:
        assert ask(server, key, "narrow", 20).status_code == 200
        ended.append(name)

    with ThreadPoolExecutor(12) as pool:
        for key, name, held in ((low, "low", 4), (high, "high", 8)):
            for _ in range(4):
                pool.submit(asked, key, name)
            eventually(partial(holds, server, held), QUIET_S, "all wait")
        before.hang_up()
    assert ended == ["high"] * 4 + ["low"] * 4


def test_where_a_tier_is_full_a_plan_that_may_is_spilled_and_pays_the_tier_asked_and_another_waits(
    server: Server,
) -> None:
    may, may_not = key_of(server, "gold"), key_of(server, "silver")
    before = Stream(server, "brisk", LONG).begun()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, server, may_not, "brisk")
        spilled = ask(server, may, "brisk")
        assert not waiting.done()
        before.hang_up()
    waited = waiting.result()
    assert (spilled.status_code, spilled.headers["moray-tier"]) == (200, "swift")
    assert spilled.headers["moray-spilled"].startswith("brisk saturated")
    assert (waited.status_code, waited.headers["moray-tier"]) == (200, "brisk")
    assert "moray-spilled" not in waited.headers
    tokens = spilled.json()["usage"]

    def told() -> list[dict[str, Any]]:
        return [row for row in used(server, "gold") if row["asked"] == "brisk"]

    (row,) = eventually(told, QUIET_S, "in the ledger")
    assert (row["tier"], row["input_tokens"], row["output_tokens"]) == (
        "swift",
        tokens["prompt_tokens"],
        tokens["completion_tokens"],
    )
    price = (10 * tokens["prompt_tokens"] + 20 * tokens["completion_tokens"]) / 1e6
    assert row["price_usd"] == pytest.approx(price), "of brisk, not of swift"
