"""`moray usage`."""

import argparse
import csv
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from cluster.errors import ConfigurationError
from cluster.family import Family
from cluster.usage import TOKENS, By, Sum
from deployments.stores.usage import usage_of
from deployments.usage_options import BY

DAY_S = 86_400
MOST_DAYS = 3660
COLUMNS: dict[str, By] = {
    "key": "key_id",
    "project": "project",
    "org": "org",
    "tier": "tier_served",
    "asked": "tier_asked",
    "model": "model",
    "kind": "kind",
    "code": "code",
}
FIGURES = ("events", *TOKENS, "video_s", "price_usd", "gpu_s", "cost_usd", "margin_usd")
SHOWN = {  # what a terminal has room for, and how it is headed there
    "events": "events",
    "input_tokens": "input",
    "output_tokens": "output",
    "video_s": "video_s",
    "price_usd": "price_usd",
    "cost_usd": "cost_usd",
}


def usage(family: Family, arguments: argparse.Namespace, console: Console) -> int:
    names = _names(arguments.by)
    if not 1 <= arguments.days <= MOST_DAYS:
        raise ConfigurationError(f"--days: {arguments.days}; 1 to {MOST_DAYS} is allowed; mend it")
    only: list[tuple[By, Sequence[str]]] = [("key_id", (arguments.key,))] if arguments.key else []
    only += [("org", (arguments.org,))] if arguments.org else []
    end_s = (int(time.time()) // DAY_S + 1) * DAY_S
    store = usage_of(family)
    try:
        sums = store.report(end_s - arguments.days * DAY_S, end_s, DAY_S, [COLUMNS[name] for name in names], only)
    finally:
        store.close()
    rows = [_row(names, one) for one in sums]
    if arguments.json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    elif arguments.csv:
        writer = csv.DictWriter(sys.stdout, ("day", *names, *FIGURES), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        console.print(_table(names, rows) if rows else "nothing was used")
    return 0


def _table(names: Sequence[str], rows: Sequence[dict[str, Any]]) -> Table:
    """Where it is too narrow names are folded: a figure that is cut is another one."""
    figures = (Column(header, justify="right", no_wrap=True) for header in SHOWN.values())
    table = Table(
        Column("day", no_wrap=True), *(Column(name, overflow="fold") for name in names), *figures, box=SIMPLE, padding=0
    )
    for row in rows:
        table.add_row(*(Text(_cell(row[name])) for name in ("day", *names, *SHOWN)))
    return table


def _names(given: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(filter(None, given.split(","))))
    for name in names:
        if name not in COLUMNS:
            raise ConfigurationError(f"--by: {name!r}; {', '.join(BY)} are allowed; choose of them")
    return names


def _row(names: Sequence[str], one: Sum) -> dict[str, Any]:
    row: dict[str, Any] = {"day": time.strftime("%Y-%m-%d", time.gmtime(one.start_s))}
    row |= dict(zip(names, one.by, strict=True)) | {
        name: getattr(one, name) for name in FIGURES if name != "margin_usd"
    }
    return row | {"margin_usd": one.price_usd - one.cost_usd}


def _cell(value: object) -> str:
    return f"{value:.6f}" if isinstance(value, float) else str(value)
