"""Experts as tables for people: of each replica's layers the experts with the most rows, and what each domain uses."""

import math
from collections.abc import Iterator

import numpy as np
from rich import box
from rich.columns import Columns
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from deployments.experts import MOST_USED, Layer, Seen, most_used, shares

MOST_EXPERTS = 16  # rows of a table; --json tells of all
NOTHING = "-"


def tables(seen: Seen) -> Lines:
    return Lines(*_parts(seen))


def _parts(seen: Seen) -> Iterator[RenderableType]:
    for group in seen.groups:
        moved = f"{group.rebalances} rebalances, {group.moves} copies moved"
        stall = f", the last one stalled decoding for {group.stall_s:.3g} s" if group.rebalances else ""
        yield Text(
            f"{group.tier}, replica {group.replica or NOTHING}: {group.ranks} ranks, {moved}{stall}", style="bold"
        )
        for layer in group.layers:
            yield from _layer(layer)
    for tier, why in seen.without.items():
        yield Text(f"{tier} {why}", style="dim")


def _layer(layer: Layer) -> Iterator[RenderableType]:
    loads = ", ".join(f"rank {rank} {_percent(share)}" for rank, share in enumerate(layer.rank_shares.tolist()))
    rows = f"{int(layer.window.sum()):,d} rows in the window: {loads}; " if loads else ""
    yield Text(f"layer {layer.index}: {rows}most/mean {_ratio(layer.imbalance)}")
    if not layer.held.size:
        yield Text("  not shown expert by expert: the model is too large for a page", style="dim")
        return
    yield Columns([_experts(layer), _domains(layer)], padding=(0, 3))  # below each other where it is narrow


def _experts(layer: Layer) -> Table:
    """Those with most of the window's rows first."""
    table = _table("expert", "rows", "share", "copies", "on ranks")
    rows, held = layer.window.sum(1), layer.held
    order = np.argsort(-rows, kind="stable").tolist()
    for expert in order[:MOST_EXPERTS]:
        ranks = ", ".join(map(str, np.flatnonzero(held[expert])))
        table.add_row(str(expert), f"{rows[expert]:,d}", _percent(layer.shares[expert]), str(held[expert].sum()), ranks)
    if others := order[MOST_EXPERTS:]:
        table.add_row(f"{len(others)} more", f"{rows[others].sum():,d}", _percent(layer.shares[others].sum()), "", "")
    return table


def _domains(layer: Layer) -> Table:
    table = _table("domain", "rows since start", "most at experts", text=(0, 2))
    for name, rows in layer.since_start.items():
        used = ", ".join(f"{expert} ({shares(rows)[expert]:.0%})" for expert in most_used(rows)[:MOST_USED])
        table.add_row(name, f"{rows.sum():,d}", used)
    return table


def _table(*headers: str, text: tuple[int, ...] = ()) -> Table:
    """Numbers to the right, columns of `text` to the left."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, header in enumerate(headers):
        table.add_column(header, justify="left" if index in text else "right", no_wrap=True)
    return table


def _percent(share: float) -> str:
    return NOTHING if math.isnan(share) else f"{share:.1%}"


def _ratio(value: float) -> str:
    return NOTHING if math.isnan(value) else f"{value:.2f}"
