"""`moray usage`."""

import argparse
import csv
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
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
SELDOM = ("video_s", "cost_usd")
LEAST = 8  # characters that a name is folded to


def usage(family: Family, arguments: argparse.Namespace, console: Console) -> int:
    names = _names(arguments.by)
    if not 1 <= arguments.days <= MOST_DAYS:
        raise ConfigurationError(f"--days: {arguments.days}; 1 to {MOST_DAYS} is allowed; mend it")
    only: list[tuple[By, Sequence[str]]] = [("key_id", (arguments.key,))] if arguments.key else []
    only += [("org", (arguments.org,))] if arguments.org else []
    end_s = (int(time.time()) // DAY_S + 1) * DAY_S
    store = usage_of(family)
    try:
        span = end_s - arguments.days * DAY_S, end_s, DAY_S
        sums = store.report(*span, [COLUMNS[name] for name in names], only)
        unused = () if only else store.unused(*span)
    finally:
        store.close()
    rows = [_row(one, dict(zip(names, one.by, strict=True))) for one in sums]
    idle = [_row(one, dict.fromkeys(names) | ({"tier": one.by[0]} if one.by else {})) for one in _idle(unused, names)]
    if arguments.json:
        told = [row | {"unallocated": False} for row in rows] + [row | {"unallocated": True} for row in idle]
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    elif arguments.csv:
        writer = csv.DictWriter(sys.stdout, ("day", *names, *FIGURES, "unallocated"), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        writer.writerows(row | {"unallocated": "yes"} for row in idle)
    else:
        console.print(_table(names, rows) if rows else "nothing was used", crop=False)
        if unused:
            console.print(f"held while nobody used their tier, in no row: {_held(unused)}", soft_wrap=True)
    return 0


def _idle(unused: Sequence[Sum], names: Sequence[str]) -> Iterator[Sum]:
    """By day, and by tier where that is asked."""
    parts: dict[tuple[int, tuple[str, ...]], list[Sum]] = {}
    for one in unused:
        parts.setdefault((one.start_s, one.by if "tier" in names else ()), []).append(one)
    for (start_s, by), of in parts.items():
        gpu_s, cost_usd = sum(one.gpu_s for one in of), sum(one.cost_usd for one in of)
        yield Sum(start_s=start_s, by=by, gpu_s=gpu_s, cost_usd=cost_usd)


def _held(unused: Sequence[Sum]) -> str:
    tiers = dict.fromkeys(one.by[0] for one in unused)
    sums = {tier: [one for one in unused if one.by == (tier,)] for tier in sorted(tiers)}
    return "; ".join(
        f"{tier} {sum(one.gpu_s for one in of) / 3600:.2f} GPU-hours, {sum(one.cost_usd for one in of):.2f} USD"
        for tier, of in sums.items()
    )


def _table(names: Sequence[str], rows: Sequence[dict[str, Any]]) -> Table:
    """Where it is too narrow names are folded, since a figure that is cut is another one."""
    shown = {name: header for name, header in SHOWN.items() if name not in SELDOM or any(row[name] for row in rows)}
    figures = (Column(header, justify="right", no_wrap=True) for header in shown.values())
    of = (Column(name, min_width=LEAST, overflow="fold") for name in names)
    table = Table(Column("day", no_wrap=True), *of, *figures, box=SIMPLE, show_edge=False, padding=0)
    for row in rows:
        table.add_row(*(Text(_cell(row[name])) for name in ("day", *names, *shown)))
    return table


def _names(given: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(filter(None, given.split(","))))
    for name in names:
        if name not in COLUMNS:
            raise ConfigurationError(f"--by: {name!r}; {', '.join(BY)} are allowed; choose of them")
    return names


def _row(one: Sum, of: Mapping[str, str | None]) -> dict[str, Any]:
    row: dict[str, Any] = {"day": time.strftime("%Y-%m-%d", time.gmtime(one.start_s)), **of}
    row |= {name: getattr(one, name) for name in FIGURES if name != "margin_usd"}
    return row | {"margin_usd": one.price_usd - one.cost_usd}


def _cell(value: object) -> str:
    return f"{value:.6f}" if isinstance(value, float) else str(value)
