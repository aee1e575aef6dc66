"""`moray keys` and `moray plans`."""

import argparse
import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from cluster.access import DEFAULT, USUAL, Grant, KeyRecord
from cluster.errors import ConfigurationError, MorayError
from cluster.family import Family, Plan
from deployments.stores.key_lists import KeysAsked
from deployments.stores.key_rows import Act, KeyRows
from deployments.stores.keys import keys_of

MOST = 1_000_000  # keys told at once
EDGES = 3  # of a table, and what stands between its first two columns
UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
# Columns and the least that each is folded to; what is not named is never folded.
COLUMNS = ("id", "name", "project", "plan", "scopes", "created", "until")
ACT = ("at", "actor", "from", "act", "subject", "outcome")
LEAST = {"name": 12, "project": 9, "scopes": 6, "at": 10, "actor": 16, "from": 9, "act": 11, "outcome": 9}
LESSER = {"project": DEFAULT, "plan": None, "scopes": ()}  # left out where all keys have this
WIDE = 100  # characters, below which a table leaves out when a key was made
SHOWN = 100  # keys of a table where nobody says how many


def keys(family: Family, arguments: argparse.Namespace, console: Console) -> int:
    store = keys_of(family)
    try:
        if arguments.verb == "log":
            acts = store.acts(arguments.last)
            _show([dataclasses.asdict(act) for act in acts], ACT, arguments.json, console)
            return 0
        secret, (records, more) = _asked(family, store, arguments)
    finally:
        store.close()
    shown: dict[str, Any] = {} if secret is None else {"key": secret}
    rows = [dataclasses.asdict(record) | shown for record in records]
    brief = list(map(_brief, records))
    told = [name for name in COLUMNS if name not in LESSER or any(row[name] != LESSER[name] for row in brief)]
    if console.width < WIDE:
        told.remove("created")
    _show(rows if arguments.json else brief, told, arguments.json, console)
    if more and not arguments.json:
        console.print(f"there are more: moray keys list --after {records[-1].id}", soft_wrap=True)
    if secret is not None and not arguments.json:
        console.print(f"the key, shown this once: {secret}", soft_wrap=True)
    return 0


def _asked(
    family: Family, store: KeyRows, arguments: argparse.Namespace
) -> tuple[str | None, tuple[Sequence[KeyRecord], bool]]:
    """A secret where one was made; the keys, and whether there are more."""
    if arguments.verb == "list":
        return None, store.page(_listed(arguments))
    now_s = time.time()
    secret, subject, outcome = None, "", "ok"
    try:
        match arguments.verb:
            case "create":
                plan = known_plan(family, arguments.plan, "--plan")
                secret, record = store.create(arguments.name, now_s, plan, _grant(arguments, now_s))
            case "rotate":
                secret, record = store.rotate(arguments.key, now_s, duration_s(arguments.grace, "--grace"))
            case _:
                record = store.revoke(arguments.key, now_s)
        subject = record.id
    except MorayError as error:
        outcome = error.code
        raise
    finally:
        act = Act(
            at_s=now_s,
            actor=f"command line: user {os.getuid()}",
            from_="command line",
            act=f"keys.{arguments.verb}",
            subject=subject,
            outcome=outcome,
        )
        store.log(act)
    return secret, ((record,), False)


def _listed(arguments: argparse.Namespace) -> KeysAsked:
    """Raises ConfigurationError."""
    limit = arguments.limit
    if limit is not None and not 1 <= limit <= MOST:
        raise ConfigurationError(f"--limit: {limit}; 1 to {MOST} is allowed; mend it")
    return KeysAsked(
        after=arguments.after,
        limit=limit or (MOST if arguments.json else SHOWN),
        order="asc",
        search=arguments.search,
        org=arguments.org,
    )


def _brief(record: KeyRecord) -> dict[str, Any]:
    ends = "expires", record.expires_s
    if record.revoked_s is not None:
        ends = "revoked", record.revoked_s
    return {
        "id": record.id,
        "name": record.name,
        "project": DEFAULT if (record.org, record.project) == (DEFAULT, DEFAULT) else f"{record.org}/{record.project}",
        "plan": record.plan,
        "scopes": () if record.scopes == USUAL else record.scopes,
        "created": _day(record.created_s),
        "until": "" if ends[1] is None else f"{ends[0]} {_day(ends[1])}",
    }


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(seconds))


def _grant(arguments: argparse.Namespace, now_s: float) -> Grant:
    expires = arguments.expires
    return Grant(
        org=arguments.org,
        project=arguments.project,
        scopes=tuple(filter(None, arguments.scope.split(","))),
        expires_s=None if expires is None else now_s + duration_s(expires, "--expires"),
    )


def duration_s(given: str, where: str) -> float:
    """Raises ConfigurationError."""
    found = re.fullmatch(r"(\d{1,9})([smhd])", given)
    if found is None:
        raise ConfigurationError(f"{where}: {given!r}; a number and one of s, m, h, d is allowed; say 90d, or 12h")
    return float(int(found[1]) * UNIT_S[found[2]])


def known_plan(family: Family, plan: str | None, where: str) -> str | None:
    """Raises ConfigurationError."""
    if plan is not None and plan not in family.plans:
        known = ", ".join(family.plans) or "none"
        raise ConfigurationError(f"{where}: {plan!r}; plans of the family are {known}; choose one, or leave it out")
    return plan


def plans(family: Family, arguments: argparse.Namespace, console: Console) -> int:
    rows = [{"plan": name} | plan.model_dump(mode="json") for name, plan in family.plans.items()]
    if arguments.json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return 0
    for group in _beside(rows, console.width):
        table = Table(
            Column("", no_wrap=True),
            *(Column(row["plan"], min_width=_width(row), overflow="fold") for row in group),
            box=SIMPLE,
            padding=0,
        )
        for field in Plan.model_fields:
            cells = [_cell(row, field) for row in group]
            if any(cells):
                table.add_row(field, *map(Text, cells))
        console.print(table, crop=False)  # a figure that is cut is another one
    return 0


def _beside(rows: Sequence[dict[str, Any]], width: int) -> list[list[dict[str, Any]]]:
    """As many plans in a table as there is room for, one at least."""
    groups: list[list[dict[str, Any]]] = []
    room = 0
    for row in rows:
        if room < _width(row):
            groups.append([])
            room = width - max(map(len, Plan.model_fields)) - EDGES
        groups[-1].append(row)
        room -= _width(row) + 1
    return groups


def _width(row: Mapping[str, Any]) -> int:
    """Of its longest word."""
    return max(len(word) for field in ("plan", *Plan.model_fields) for word in (*_cell(row, field).split(), ""))


def _show(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], as_json: bool, console: Console) -> None:
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    table = Table(
        *(Column(name, min_width=LEAST.get(name), no_wrap=name not in LEAST, overflow="fold") for name in columns),
        box=SIMPLE,
        show_edge=False,
        padding=0,
    )
    for row in rows:
        table.add_row(*(Text(_cell(row, column)) for column in columns))
    console.print(table)


def _cell(row: Mapping[str, Any], column: str) -> str:
    for name in (column, f"{column}_"):
        if name in row:
            value = row[name]
            parts = map(str, value) if isinstance(value, list | tuple) else ("" if value is None else str(value),)
            return ", ".join(parts)
    seconds = row[f"{column}_s"]
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds is not None else ""
