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

from cluster.access import Grant, KeyRecord
from cluster.errors import ConfigurationError, MorayError
from cluster.family import Family, Plan
from deployments.stores.key_rows import Act, KeyRows
from deployments.stores.keys import keys_of

UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
COLUMNS = ("id", "name", "project", "plan", "scopes", "created", "until")
WHOLE = ("id", "name", "plan")
ACT = ("at", "actor", "from", "act", "subject", "outcome")


def keys(family: Family, arguments: argparse.Namespace, console: Console) -> int:
    store = keys_of(family)
    try:
        if arguments.verb == "log":
            acts = store.acts(arguments.last)
            _show([dataclasses.asdict(act) for act in acts], ACT, arguments.json, console)
            return 0
        secret, records = _asked(family, store, arguments)
    finally:
        store.close()
    shown: dict[str, Any] = {} if secret is None else {"key": secret}
    rows = [dataclasses.asdict(record) | shown for record in records]
    _show(rows if arguments.json else list(map(_brief, records)), COLUMNS, arguments.json, console)
    if secret is not None and not arguments.json:
        console.print(f"the key, shown this once: {secret}", soft_wrap=True)
    return 0


def _asked(family: Family, store: KeyRows, arguments: argparse.Namespace) -> tuple[str | None, Sequence[KeyRecord]]:
    if arguments.verb == "list":
        return None, [record for record in store.list() if arguments.org in (None, record.org)]
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
    return secret, (record,)


def _brief(record: KeyRecord) -> dict[str, Any]:
    ends = "expires", record.expires_s
    if record.revoked_s is not None:
        ends = "revoked", record.revoked_s
    return {
        "id": record.id,
        "name": record.name,
        "project": f"{record.org}/{record.project}",
        "plan": record.plan,
        "scopes": record.scopes,
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
    table = Table(
        Column("", no_wrap=True),
        *(Column(name, min_width=len(name), overflow="fold") for name in family.plans),
        box=SIMPLE,
        padding=0,
    )
    for field in Plan.model_fields:  # more of them than a terminal has room for beside each other
        cells = [_cell(row, field) for row in rows]
        if any(cells):
            table.add_row(field, *map(Text, cells))
    console.print(table, crop=False)  # a figure that is cut is another one
    return 0


def _show(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], as_json: bool, console: Console) -> None:
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    table = Table(
        *(Column(name, no_wrap=name in WHOLE, overflow="fold") for name in columns), box=SIMPLE, pad_edge=False
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
