"""What operators look at over the wire: keys in pages, projects, acts, what is taken of limits, all usage."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from sdk import Replies, Served, served
from usage_events import event

from cluster.access import Grant
from cluster.usage import Held

PLANS: dict[str, Any] = {
    "small": {"tiers": ["mini"], "requests_per_minute": 3, "concurrent": 2},
    "open": {"tiers": ["mini"]},
}
HOUR_S = 3600
THEN_S = 100 * 24 * HOUR_S
DAY = ("start_time", THEN_S), ("end_time", THEN_S + 24 * HOUR_S)


class Asked(Served):
    async def get(self, path: str, *query: tuple[str, Any], status: int = 200) -> dict[str, Any]:
        answer = await self.raw("GET", f"/v1/admin/{path}?{urlencode(query)}")
        assert answer.status == status, answer.body
        told: dict[str, Any] = answer.json()
        return told

    def make(self, name: str, plan: str | None = None, **grant: Any) -> str:
        """Its id."""
        record = self.gateway._keys.create(name, 1.0, plan, Grant(**grant))[1]
        return str(record.id)


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Asked]:
    async with served(tmp_path, Replies("Hel", "lo"), plans=PLANS) as here:
        here.gateway._chat._bookings._quotas._limits._clock = lambda: 1e9
        admin = here.gateway._keys.create("ops", 2.0, None, Grant(scopes=("admin",)))[0]
        yield Asked(here.gateway, here.app, admin, here.folder, here.handle)


async def test_keys_come_in_pages_the_newest_first_and_say_when_they_were_used_last(here: Asked) -> None:
    first, second = here.make("first"), here.make("second")
    here.gateway._admin._usage.add([event(1, key_id=first, at_s=77)])
    page = await here.get("keys", ("limit", 1))
    assert ([key["name"] for key in page["data"]], page["has_more"]) == (["ops"], True)
    rest = await here.get("keys", ("after", page["last_id"]), ("limit", 100))
    used = {key["id"]: key["last_used_at"] for key in rest["data"]}
    assert (used[first], used[second], rest["has_more"]) == (77, None, False)
    assert not any("value" in key for key in rest["data"])


async def test_keys_are_found_by_what_they_are_called_whose_they_are_and_how_they_stand(here: Asked) -> None:
    films, over = here.make("Films", org="acme"), here.make("films too", org="acme", project="x")
    here.gateway._keys.revoke(over, 5.0)
    for query, ids in (
        ((("search", "FILMS"),), {films, over}),
        ((("organization_id", "acme"), ("project_id", "x")), {over}),
        ((("search", "films"), ("status", "valid")), {films}),
    ):
        assert {key["id"] for key in (await here.get("keys", *query))["data"]} == ids


async def test_projects_come_in_pages_with_how_many_keys_they_have(here: Asked) -> None:
    here.make("a", org="a/b", project="c%")
    here.make("a", org="z")
    page = await here.get("projects", ("limit", 1))
    (one,) = page["data"]
    assert (one["organization_id"], one["project_id"], one["keys"], one["valid_keys"]) == ("a/b", "c%", 1, 1)
    rest = await here.get("projects", ("after", page["last_id"]))
    assert [(one["organization_id"], one["keys"]) for one in rest["data"]] == [("default", 2), ("z", 1)]


async def test_what_a_project_has_taken_of_each_plan_of_its_keys_is_told(here: Asked) -> None:
    here.make("a", "open")
    client = here.other("b", "small")
    await client.chat.completions.create(model="mini", messages=[{"role": "user", "content": "a"}])
    told = {one["plan"]: one["limits"] for one in (await here.get("limits"))["data"]}
    assert (told[None], told["open"]) == ([], [])
    assert told["small"] == [
        {"limit": "requests_per_minute", "amount": 3, "taken": 1, "resets_in_s": pytest.approx(20)},
        {"limit": "concurrent", "amount": 2, "taken": 0, "resets_in_s": None},
    ]
    assert (await here.get("limits", ("organization_id", "nobody")))["data"] == []


async def test_acts_are_told_back_in_pages_of_some_kinds_or_of_what_was_refused(here: Asked) -> None:
    await here.raw("DELETE", "/v1/admin/keys/key_none")
    for name in ("one", "two"):
        await here.raw("POST", "/v1/admin/keys", b'{"name": "%s"}' % name.encode())
    await here.get("plans")
    made = await here.get("acts", ("act", "keys.create,keys.rotate"), ("limit", 1))
    assert ([act["act"] for act in made["data"]], made["has_more"]) == (["keys.create"], True)
    before = await here.get("acts", ("act", "keys.create"), ("before", made["first_id"]))
    assert (len(before["data"]), before["has_more"]) == (1, False)
    refused = await here.get("acts", ("refused", "true"))
    assert [(act["act"], act["outcome"]) for act in refused["data"]] == [("keys.revoke", "key_not_found")]


async def test_usage_is_told_by_anything_the_dearest_first_with_what_nobody_used(here: Asked) -> None:
    key = here.make("a")
    hour = [THEN_S, THEN_S + HOUR_S]
    here.gateway._admin._usage.add(
        [event(n, at_s=hour[n % 2], key_id=key if n < 3 else "gone", cached_tokens=4, video_s=2) for n in range(4)]
    )
    here.gateway._admin._usage.hold(
        [Held(id=tier, at_s=hour[0], tier=tier, gpu_s=7200, usd_per_gpu_hour=2.5) for tier in ("pro", "mini")]
    )
    told = await here.get("usage", *DAY, ("group_by", "api_key_id"), ("limit", 1))
    (row,) = told["data"]
    assert (row["api_key_id"], row["api_key_name"], row["requests"], told["next_page"]) == (key, "a", 3, "1")
    assert (row["input_tokens"], row["input_cached_tokens"], row["output_tokens"], row["video_seconds"]) == (
        30,
        12,
        15,
        6,
    )
    (last,) = (await here.get("usage", *DAY, ("group_by", "api_key_id"), ("page", 1)))["data"]
    assert (last["api_key_name"], last["price_usd"]) == (None, 0.00125)
    assert told["total"]["price_usd"] == pytest.approx(0.005)
    assert told["total"]["cost_usd"] == pytest.approx(5.0)
    assert told["unallocated"] == [{"tier_served": "mini", "gpu_seconds": 7200.0, "cost_usd": 5.0}]
    over = await here.get("usage", *DAY, ("bucket_width", "1h"), ("api_key_ids", key))
    assert [(row["start_time"], row["requests"]) for row in over["data"]] == [(hour[0], 2), (hour[1], 1)]
    assert over["unallocated"] == [], "of one key alone it says nothing"


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("keys", "limit=0"), ("keys", "limit=101"), ("keys", "after=key_none"), ("keys", "search=%00"),
        ("keys", "status=x"), ("projects", "after=a"), ("projects", "after=%00%2Fa"),
        ("limits", "project=a"), ("acts", "before=act_x"),
        ("acts", "limit=1001"), ("usage", ""), ("usage", "start_time=0&group_by=colour"), ("usage", "start_time=-1"),
        ("usage", "start_time=0&bucket_width=2d"), ("usage", "start_time=0&models=%00"),
    ],
)  # fmt: skip
async def test_what_cannot_be_asked_is_refused_by_its_name(here: Asked, path: str, query: str) -> None:
    answer = await here.raw("GET", f"/v1/admin/{path}?{query}")
    assert (answer.status, answer.json()["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("path", ["keys", "projects", "limits", "acts", "usage", "plans"])
async def test_it_is_for_admins_alone(here: Asked, path: str) -> None:
    usual = here.gateway._keys.create("usual", 1.0)[0]
    asked = Asked(here.gateway, here.app, usual, here.folder, here.handle)
    assert (await asked.get(path, ("start_time", 0), status=403))["error"]["code"] == "insufficient_scope"
