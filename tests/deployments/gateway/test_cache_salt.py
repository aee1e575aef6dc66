"""Whose prompts share cached prefixes, as a replica is told."""

import json
from pathlib import Path
from typing import Any

import pytest
from shell import Exchange, Handle, Replica, application, family
from virtual_time import run

from cluster.access import Grant, Sharing
from cluster.family import Family
from cluster.request import Chat
from deployments import seen
from deployments.stream import Outcome

BODY = json.dumps({"model": "mini", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}).encode()
GRANTS = (Grant(), Grant(), Grant(project="web"))  # two of one project, and one of another


class Told:
    """A replica that remembers with which salts it was asked."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self.salts: list[str] = []

    async def complete(self, chat: Chat) -> Outcome:
        self.salts.append(chat.cache_salt)
        return await self._replica.complete(chat)


async def asked_with(folder: Path, sharing: Sharing) -> list[str]:
    changed: dict[str, Any] = {"accounts": {"prefix_cache": sharing}}
    spec = Family.model_validate(family(folder).model_dump() | changed)
    told = Told(await Replica.started(spec))
    seen.publish("mini", (seen.SeenReplica(replica_id="mini-1", metrics_address=""),))
    gateway, app, _ = await application(spec, {"mini": Handle(told), "turbo": Handle(told)})
    keys = [gateway._keys.create("a", 0.0, None, grant)[0] for grant in GRANTS]
    for key in (*keys, keys[0]):
        headers = {"authorization": f"Bearer {key}"}
        exchange = await Exchange(app, "/v1/chat/completions", BODY, headers=headers).finished()
        assert exchange.status == 200
    return told.salts


@pytest.mark.parametrize(("sharing", "groups"), [("key", [0, 1, 2, 0]), ("project", [0, 0, 2, 0]), ("family", [0] * 4)])
def test_chats_have_the_salt_of_those_whose_prefixes_they_may_use(
    sharing: Sharing, groups: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seen, "_replicas", {})
    monkeypatch.setattr(seen, "_listeners", [])
    salts: list[str] = []

    async def scenario() -> None:
        salts.extend(await asked_with(tmp_path, sharing))

    run(scenario())
    assert [salts.index(salt) for salt in salts] == groups
