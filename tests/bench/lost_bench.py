"""Clients that leave and gateways that are killed, at random: what limits and the ledger say then.

Sixteen clients ask a simulated tier for short answers, streamed and whole; many leave before theirs has ended, and the
gateway's process is killed again and again. `lost`: answers that were whole, and are not in the ledger once, with their
tokens. `doubled`: requests with two events. `refused_and_billed`: requests that were told of an error, and have one.
`places`: requests at once that the limits still count when all are over, and leases too. `unpaid_usd`: what the ledger
has beyond what the budget of the plan has spent. The budget may have spent more: what a dead gateway had reserved.
"""

import asyncio
import contextlib
import json
import random
import sqlite3
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
from bench.live_world import COST, fixed, served, tier
from integration.server import QUIET_S, Server, eventually

from cluster.family import Family
from cluster.limits import LEASE_S
from deployments.gateway.quota import account_of
from deployments.stores.limits import LIMITS_FILE
from deployments.stores.sqlite_limits import SqliteLimits
from deployments.stores.usage import USAGE_FILE

LEFT, KILLS, CLIENTS = 1000, 20, 16
LEAVES, LEAVES_WITHIN_S = 0.4, 0.5  # share of requests
KILL_EVERY_S = 5.0
PLAN = {"tiers": ["mini"], "tokens_per_minute": 1e9, "concurrent": 1000, "budget_usd_per_month": 1e6}
AIM = {"lost": 0, "doubled": 0, "refused_and_billed": 0, "places": 0, "unpaid_usd": 0}
Tokens = tuple[int, int]


def run(quick: bool = False) -> dict[str, Any]:
    left, kills = (LEFT // 5, KILLS // 5) if quick else (LEFT, KILLS)
    quickly = tier("mini", replicas=fixed(1), cost=COST | {"a_ms": 10, "b_ms_per_seq": 0})
    with served({"mini": quickly}, 1, 1, plans={"measured": PLAN}) as (server, family):
        made = server.moray("keys", "create", "bench", "--plan", "measured", "--json")
        crowd = _Crowd(server, json.loads(made.stdout)[0]["key"], left, kills)
        seen = asyncio.run(crowd.run())
        eventually(partial(_quiet, server), QUIET_S, "all is settled")
        found = _ledger(Path(family.state_folder), seen) | asyncio.run(_limits(family))
    found["unpaid_usd"] = max(0.0, round(found["ledger_usd"] - found["spent_usd"], 9))
    figures = {name: found[name] for name in AIM}
    table = {"killed": crowd.killed, **Counter(what for what, _ in seen.values()), **found}
    print(json.dumps(table), file=sys.stderr, flush=True)
    return {"figures": figures, "aim": AIM, "met": figures == AIM, "runs": 1, "table": table}


class _Crowd:
    """Until so many have left and so many gateways are dead. `run`: how each request ended, and its tokens."""

    def __init__(self, server: Server, key: str, left: int, kills: int) -> None:
        self._server, self._key, self._left, self._kills = server, key, left, kills
        self._rng = random.Random(1)
        self._seen: dict[str, tuple[str, Tokens | None]] = {}
        self._over = False
        self.killed = 0

    async def run(self) -> dict[str, tuple[str, Tokens | None]]:
        headers = {"authorization": f"Bearer {self._key}"}
        async with httpx.AsyncClient(base_url=self._server.url, headers=headers, timeout=60) as client:
            clients = [asyncio.create_task(self._client(client, number)) for number in range(CLIENTS)]
            while self.killed < self._kills:
                await asyncio.sleep(KILL_EVERY_S * (0.5 + self._rng.random()))
                await self._killed()
            while Counter(what for what, _ in self._seen.values())["left"] < self._left:
                await asyncio.sleep(0.1)
            self._over = True
            await asyncio.gather(*clients)
        return self._seen

    async def _killed(self) -> None:
        while not (gateways := await asyncio.to_thread(self._server.gateways)):
            await asyncio.sleep(0.1)
        with contextlib.suppress(psutil.NoSuchProcess):
            gateways[0].kill()
            self.killed += 1

    async def _client(self, client: httpx.AsyncClient, number: int) -> None:
        turn = 0
        while not self._over:
            turn += 1
            name = f"bench-{number}-{turn}"
            stays = asyncio.create_task(self._asked(client, name))
            leaves_s = self._rng.random() * LEAVES_WITHIN_S if self._rng.random() < LEAVES else None
            await asyncio.wait((stays,), timeout=leaves_s)
            if stays.cancel():
                await asyncio.wait((stays,))
            self._seen[name] = ("left", None) if stays.cancelled() else stays.result()
            if self._seen[name][0] == "cut":
                await asyncio.sleep(0.2)

    async def _asked(self, client: httpx.AsyncClient, name: str) -> tuple[str, Tokens | None]:
        stream = self._rng.random() < 0.5
        body: dict[str, Any] = {"model": "mini", "max_tokens": self._rng.randint(2, 40), "stream": stream}
        body["messages"] = [{"role": "user", "content": "go " * self._rng.randint(1, 50)}]
        body |= {"stream_options": {"include_usage": True}} if stream else {}
        try:
            answer = await client.post("/v1/chat/completions", json=body, headers={"x-request-id": name})
        except httpx.HTTPError:
            return "cut", None
        if answer.status_code != 200:
            return ("refused", None) if answer.headers.get("x-request-id") else ("cut", None)
        return _told(answer.text, stream)


def _told(text: str, stream: bool) -> tuple[str, Tokens | None]:
    events = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: {")]
    told = [json.loads(line) for line in (events if stream else [text])]
    usages = [one["usage"] for one in told if one.get("usage")]
    if stream and "[DONE]" not in text:
        return "broken", None
    return "answered", (usages[-1]["prompt_tokens"], usages[-1]["completion_tokens"])


def _quiet(server: Server) -> bool:
    return not server.metric("moray_usage_pending") and not server.metric("moray_streams")


def _ledger(state: Path, seen: dict[str, tuple[str, Tokens | None]]) -> dict[str, Any]:
    with contextlib.closing(sqlite3.connect(state / USAGE_FILE)) as file:
        rows = file.execute("SELECT id, code, input_tokens, output_tokens, price_nusd FROM usage_events").fetchall()
    events: dict[str, list[tuple[str, Tokens]]] = {}
    for name, code, *tokens, _ in rows:
        events.setdefault(name.split("/")[0], []).append((code, (tokens[0], tokens[1])))
    whole = {name: tokens for name, (what, tokens) in seen.items() if what == "answered"}
    return {
        "lost": sum(events.get(name) != [("ok", tokens)] for name, tokens in whole.items()),
        "doubled": sum(len(each) > 1 for each in events.values()),
        "refused_and_billed": sum(name in events for name, (what, _) in seen.items() if what == "refused"),
        "events": len(rows),
        "events_lost": sum(code == "lost" for _, code, *_ in rows),
        "ledger_usd": sum(row[-1] for row in rows) / 1e9,
    }


async def _limits(family: Family) -> dict[str, Any]:
    limits = SqliteLimits(Path(family.state_folder) / LIMITS_FILE, lambda: time.time() + LEASE_S)
    plan = family.plans["measured"]
    standings = await limits.state(account_of("default", "default", "measured"), plan.limits)
    await limits.close()
    taken = {each.limit.currency: each.limit.amount - each.remaining for each in standings}
    return {"places": round(taken["concurrent"]), "spent_usd": taken["usd"]}
