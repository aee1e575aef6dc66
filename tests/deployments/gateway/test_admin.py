"""Keys over the wire for admins, usage for them and for each key; nothing of it for anybody else."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from shell import Exchange, Handle, Replica, application, family
from virtual_time import run

from cluster.access import Grant
from cluster.family import Plan
from deployments import seen


class Stage:
    def __init__(self, gateway: Any, app: Any, usual: str) -> None:
        self.gateway, self.app, self.usual = gateway, app, usual
        self.admin, self.admins = gateway._keys.create("ops", 0.0, None, Grant(scopes=("admin",)))

    async def ask(self, method: str, path: str, body: Any = None, key: str | None = None, query: str = "") -> Exchange:
        headers = {"authorization": f"Bearer {self.admin if key is None else key}"}
        sent = b"" if body is None else json.dumps(body).encode()
        return await Exchange(self.app, path, sent, method=method, query=query, headers=headers).finished()

    async def chat(self, key: str) -> dict[str, Any]:
        body = {"model": "mini", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
        answer = await self.ask("POST", "/v1/chat/completions", body, key)
        assert answer.status == 200, answer.body
        usage: dict[str, Any] = answer.json()["usage"]
        return usage


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a scenario on the gateway, in virtual time."""

    async def at_once(call: Callable[..., Any], *given: Any) -> Any:
        return call(*given)

    def play(scenario: Callable[[Stage], Awaitable[None]]) -> None:
        async def played() -> None:
            spec = family(tmp_path, gateway={"tokens": "streamed"})
            spec = spec.model_copy(update={"plans": {"pro": Plan(tiers=("mini",))}})
            handle = Handle(await Replica.started(spec))
            seen.publish("mini", (seen.SeenReplica(replica_id="mini-1", metrics_address=""),))
            gateway, app, key = await application(spec, {"mini": handle, "turbo": handle})
            await scenario(Stage(gateway, app, key))

        monkeypatch.setattr(seen, "_replicas", {})
        monkeypatch.setattr(seen, "_listeners", [])
        for module in ("admin", "admin_views"):
            monkeypatch.setattr(f"deployments.gateway.{module}.in_thread", at_once)
        run(played())

    return play


Play = Callable[[Callable[[Stage], Awaitable[None]]], None]


def test_an_admin_makes_rotates_and_revokes_keys_and_a_secret_is_shown_once(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        asked = {"name": "studio", "plan": "pro", "organization_id": "acme", "scopes": ["chat"]}
        made = (await stage.ask("POST", "/v1/admin/keys", asked)).json()
        assert (made["organization_id"], made["project_id"], made["scopes"]) == ("acme", "default", ["chat"])
        await stage.chat(made["value"])
        turned = (await stage.ask("POST", f"/v1/admin/keys/{made['id']}/rotate", {})).json()
        assert turned["value"] != made["value"]
        body = {"model": "mini", "messages": []}
        assert (await stage.ask("POST", "/v1/chat/completions", body, made["value"])).status == 401
        await stage.chat(turned["value"])
        assert (await stage.ask("DELETE", f"/v1/admin/keys/{made['id']}")).json()["revoked_at"] is not None
        assert (await stage.ask("POST", "/v1/chat/completions", body, turned["value"])).status == 401
        listed = (await stage.ask("GET", "/v1/admin/keys")).json()["data"]
        assert {key["name"] for key in listed} == {"tester", "ops", "studio"}
        assert not any("value" in key for key in listed)
        plans = (await stage.ask("GET", "/v1/admin/plans")).json()["data"]
        assert [plan["id"] for plan in plans] == ["pro"]

    play(scenario)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"name": "a", "plan": "gold"}, "invalid_value"),
        ({"name": "a", "scopes": ["root"]}, "invalid_value"),
        ({"name": "a", "expires_at": 1}, "invalid_value"),
        ({"name": "a", "expires_at": 10**400}, "invalid_value"),
        ({"name": " "}, "invalid_value"),
        ({"nam": "a"}, "missing_parameter"),
        ({"name": "a", "orgs": "b"}, "unknown_parameter"),
        ([], "invalid_value"),
    ],
)
def test_a_key_that_cannot_be_is_refused(play: Play, body: Any, code: str) -> None:
    async def scenario(stage: Stage) -> None:
        refused = await stage.ask("POST", "/v1/admin/keys", body)
        assert (refused.status, refused.json()["error"]["code"]) == (400, code)
        assert len((await stage.ask("GET", "/v1/admin/keys")).json()["data"]) == 2

    play(scenario)


def test_every_act_of_a_key_is_logged_with_who_and_what_refused_ones_too_and_no_secret(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        made = (await stage.ask("POST", "/v1/admin/keys", {"name": "a"})).json()
        assert (await stage.ask("DELETE", f"/v1/admin/keys/{stage.admins.id}", key=stage.usual)).status == 403
        assert (await stage.ask("GET", "/v1/admin/keys", key="sk-moray-none")).status == 401
        assert (await stage.ask("DELETE", "/v1/admin/keys/key_")).status == 404
        leaked = await stage.ask("DELETE", f"/v1/admin/keys/{made['value']}")
        assert (leaked.status, made["value"][9:] in str(leaked.body)) == (404, False)
        acts = (await stage.ask("GET", "/v1/admin/acts")).json()["data"]
        usual = next(key.id for key in stage.gateway._keys.list() if key.name == "tester")
        assert [(act["actor"], act["act"], act["subject"], act["outcome"]) for act in acts] == [
            (stage.admins.id, "keys.create", made["id"], "ok"),
            (usual, "keys.revoke", stage.admins.id, "insufficient_scope"),
            (stage.admins.id, "keys.revoke", "key_", "key_not_found"),
            (stage.admins.id, "keys.revoke", "sk-moray-...", "key_not_found"),
        ]
        assert not any(secret in str(acts) for secret in (made["value"], stage.admin, stage.usual))

    play(scenario)


def test_usage_is_told_as_openai_tells_it_to_admins_for_all_and_to_each_key_for_itself(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        other, record = stage.gateway._keys.create("other", 0.0, None, Grant(org="acme", project="films"))
        counted = [await stage.chat(key) for key in (stage.usual, other, other)]
        path, query = "/v1/organization/usage/completions", "start_time=0&limit=31&page={}&group_by={}"
        import time

        today = int(time.time()) // 86_400 * 86_400
        page = (await stage.ask("GET", path, query=query.format(today, "api_key_id"))).json()
        (bucket,) = page["data"]
        assert (page["object"], page["has_more"], bucket["start_time"]) == ("page", False, today)
        by_key = {result["api_key_id"]: result for result in bucket["results"]}
        assert by_key[record.id]["num_model_requests"] == 2
        assert by_key[record.id]["input_tokens"] == counted[1]["prompt_tokens"] + counted[2]["prompt_tokens"]
        assert sum(result["output_tokens"] for result in by_key.values()) == 15
        told = (await stage.ask("GET", "/v1/organization/costs", query=query.format(today, "project_id"))).json()
        amounts = {result["project_id"]: result["amount"] for result in told["data"][0]["results"]}
        tokens = counted[0]["prompt_tokens"]
        assert amounts["default"] == {"value": pytest.approx((tokens * 1 + 5 * 2) / 1e6), "currency": "usd"}
        own = (await stage.ask("GET", "/v1/usage", key=stage.usual, query=query.format(today, "api_key_id"))).json()
        assert [result["num_model_requests"] for result in own["data"][0]["results"]] == [1]
        assert (await stage.ask("GET", path, key=stage.usual, query=query.format(today, "model"))).status == 403

    play(scenario)


@pytest.mark.parametrize(
    "query", ["", "start_time=x", "start_time=0&bucket_width=2d", "start_time=0&group_by=user", "start_time=0&limit=99",
              "start_time=0&colour=red", "start_time=0&models=a%00"]
)  # fmt: skip
def test_a_page_that_cannot_be_is_refused(play: Play, query: str) -> None:
    async def scenario(stage: Stage) -> None:
        refused = await stage.ask("GET", "/v1/organization/costs", query=query)
        assert refused.status == 400
        assert refused.json()["error"]["message"].count(";") >= 1

    play(scenario)
