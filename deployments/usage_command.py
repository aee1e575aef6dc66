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
from rich.table import Table

from cluster.errors import ConfigurationError
from cluster.family import Family
from cluster.usage import TOKENS, By, Sum
from deployments.stores.usage import usage_of
from deployments.usage_options import BY

DAY_S = 86_400
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
SHOWN = ("events", "input_tokens", "output_tokens", "video_s", "price_usd", "cost_usd")  # what a terminal has room for


def usage(family: Family, arguments: argparse.Namespace, console: Console) -> int:
    names = _names(arguments.by)
    if arguments.days < 1:
        raise ConfigurationError(f"--days: {arguments.days}; 1 or more is allowed; mend it")
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
        table = Table("day", *names, *SHOWN, box=SIMPLE, pad_edge=False)
        for row in rows:
            table.add_row(*(_cell(row[name]) for name in ("day", *names, *SHOWN)))
        console.print(table, markup=False)
    return 0


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
