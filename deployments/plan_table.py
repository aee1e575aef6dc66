"""A placement as tables for people: each cell with what it holds, who takes turns, and what has no place and why."""

from collections import Counter
from collections.abc import Iterator

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table

from cluster.placement import VIDEO, Plan, PlannedCell


def tables(plan: Plan) -> Lines:
    return Lines(*_parts(plan))


def _parts(plan: Plan) -> Iterator[RenderableType]:
    yield (
        f"{plan.family}: {plan.initial_gpus} GPUs at the start and {plan.used_gpus} at most, "
        f"of a budget of {plan.gpu_budget_gpus}"
    )
    yield _cells(plan)
    if plan.shares:
        table = Table("taking turns", "GPUs", "cells", "why")
        for share in plan.shares:
            table.add_row(f"{share.owner} {share.replica}", str(share.gpus), ", ".join(share.cells), share.reason)
        yield table
    if plan.unplaced:
        table = Table("without a place", "needed", "why", "mend")
        for one in plan.unplaced:
            table.add_row(one.what, "to start" if one.required else "to grow", one.reason, one.mend)
        yield table


def _cells(plan: Plan) -> Table:
    table = Table("cell", "GPUs", "free", "holds", "GPUs each", "at the start", "later")
    for cell in plan.cells:
        head = (cell.name, str(cell.gpus), str(cell.free_gpus))
        for name, gpus, initial, later in _held(cell) or [("nothing", 0, 0, 0)]:
            table.add_row(*head, name, *(str(number or "") for number in (gpus, initial, later)))
            head = ("", "", "")
        table.add_section()
    return table


def _held(cell: PlannedCell) -> list[tuple[str, int, int, int]]:
    """Replicas that are alike in one line: who, GPUs of each in this cell, how many at the start, how many later."""
    groups = [(f"{g.tier} (a part)" if g.spread else g.tier, g.ranks, g.initial) for g in cell.groups]
    alike = Counter([*groups, *((VIDEO, video.gpus, video.initial) for video in cell.video)])
    kinds = dict.fromkeys((name, gpus) for name, gpus, _ in alike)
    return [(name, gpus, alike[name, gpus, True], alike[name, gpus, False]) for name, gpus in kinds]
