"""Which cell holds which expert groups, and which video replicas beside them.

Best fit decreasing over GPUs, in four rounds: the initial groups, the initial video replicas, then what the tiers may
grow by, then what video may grow by; all under the GPU budget. A group is whole in one cell, so that its experts talk
over NVLink; only where it has more ranks than any cell has GPUs is it spread, over the emptiest cells, and not even
then if its ranks are processes of one replica. Video prefers cells that hold groups of the tier it is to be beside,
then cells that hold any, then the fullest.

What cannot stand beside all the rest, but fits beside the least that always runs (`min` of each), shares: it takes
turns with what may shrink. What never fits is unplaced, with what would make it fit.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cluster.errors import PlacementError
from cluster.family import Family, Replicas, Tier, Video
from cluster.fleet import CellState, Node
from cluster.packing import Floor, Unit

VIDEO = "video"
CELL_LABEL = "moray/cell"
CPU_RESOURCE = "moray_slot"
SLOT_CPUS = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The ranks of one replica that are in one cell: all of them, unless `spread`."""

    tier: str
    replica: int
    ranks: int
    initial: bool
    spread: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoReplica:
    replica: int
    gpus: int
    initial: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCell:
    name: str
    gpus: int
    free_gpus: int
    groups: tuple[Group, ...]
    video: tuple[VideoReplica, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A replica that runs, on `cells`, only while not all of `turns` have all their replicas."""

    owner: str
    replica: int
    gpus: int
    cells: tuple[str, ...]
    turns: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unplaced:
    """`required`: the family cannot start without it; it is initial, or the only chance of its tier to ever run."""

    what: str
    required: bool
    reason: str
    mend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    family: str
    gpu_budget_gpus: int
    initial_gpus: int
    used_gpus: int
    cells: tuple[PlannedCell, ...]
    shares: tuple[Share, ...]
    unplaced: tuple[Unplaced, ...]


def as_dict(plan: Plan) -> dict[str, Any]:
    """The plan as plain values, ready for JSON."""
    return asdict(plan)


def require(plan: Plan) -> Plan:
    """The plan, if the family can start on it. Raises PlacementError with everything required that does not fit."""
    missing = [one for one in plan.unplaced if one.required]
    if missing:
        raise PlacementError("\n".join(f"{plan.family}: {one.what}: {one.reason}; {one.mend}" for one in missing))
    return plan


def plan(family: Family, cells: Sequence[CellState]) -> Plan:
    """The placement of a family. The same arguments give the same plan; whether it may start is for `require`."""
    units = _units(family)
    floor = Floor(family, cells)
    unplaced = [_unplaced(unit, floor) for unit in units if unit.initial and not floor.take(unit)]
    initial_gpus = floor.used_gpus
    least = [(name, unit, gpus) for name, unit, gpus in floor.parts if unit.always]
    # What may come and go is judged alone: beside the least that always runs, and its own earlier replicas.
    hopeless: dict[Unit, Unplaced] = {}
    for owner in dict.fromkeys(unit.owner for unit in units):
        alone = Floor(family, cells, least)
        own = [unit for unit in units if unit.owner == owner and not unit.always]
        hopeless |= {unit: _unplaced(unit, alone) for unit in own if not alone.take(unit) and not unit.initial}
    growth = [unit for unit in units if not unit.initial and unit not in hopeless]
    waiting = [unit for unit in growth if not floor.take(unit)]
    turns = tuple(sorted({unit.owner for _, unit, _ in floor.parts if not unit.always}))
    asleep = Floor(family, cells, least)
    return Plan(
        family=family.name,
        gpu_budget_gpus=family.gpu_budget_gpus,
        initial_gpus=initial_gpus,
        used_gpus=floor.used_gpus,
        cells=tuple(_planned(cell, floor) for cell in cells),
        shares=tuple(_share(unit, asleep.room(unit), turns, floor) for unit in waiting),
        unplaced=(*unplaced, *hopeless.values()),
    )


def _units(family: Family) -> list[Unit]:
    """Every replica that may ever run, in the order of placing: groups before video, large before small."""
    groups = [
        unit
        for key, tier in family.tiers.items()
        for unit in _replicas_of(key, tier.ranks, tier.replicas, whole=_in_replica(tier))
    ]
    video = _replicas_of(VIDEO, family.video.gpus, family.video.replicas, whole=True) if family.video else []
    # Sorting is stable: alike sizes keep the order of the family file. First replicas go before second ones.
    return [*sorted(groups, key=lambda unit: (-unit.gpus, unit.replica)), *video]


def _replicas_of(owner: str, gpus: int, replicas: Replicas, *, whole: bool) -> list[Unit]:
    return [
        Unit(owner, index, gpus, index < replicas.initial, index < replicas.min, owner == VIDEO, whole)
        for index in range(replicas.max)
    ]


def _planned(cell: CellState, floor: Floor) -> PlannedCell:
    here = [(unit, gpus) for name, unit, gpus in floor.parts if name == cell.name]
    return PlannedCell(
        name=cell.name,
        gpus=cell.gpus,
        free_gpus=floor.free[cell.name],
        groups=tuple(
            Group(tier=unit.owner, replica=unit.replica, ranks=gpus, initial=unit.initial, spread=gpus < unit.gpus)
            for unit, gpus in here
            if not unit.video
        ),
        video=tuple(
            VideoReplica(replica=unit.replica, gpus=gpus, initial=unit.initial) for unit, gpus in here if unit.video
        ),
    )


def _share(unit: Unit, cells: tuple[str, ...], turns: tuple[str, ...], floor: Floor) -> Share:
    left = f"{floor.budget_left_gpus} of the budget and at most {max(floor.free.values())} in one cell"
    return Share(
        owner=unit.owner,
        replica=unit.replica,
        gpus=unit.gpus,
        cells=cells,
        turns=turns,
        reason=f"needs {unit.gpus} GPUs; {left} are left beside all of {', '.join(turns)}, so they take turns",
    )


def _unplaced(unit: Unit, floor: Floor) -> Unplaced:
    reasons, mends = [], []
    if unit.gpus > floor.budget_left_gpus:
        reasons.append(f"{floor.budget_left_gpus} of the budget of {floor.budget} are left")
        mends.append(f"raise gpu_budget_gpus to {floor.used_gpus + unit.gpus}")
    if not floor.room(unit):
        if floor.must_spread(unit):
            free = sum(floor.free.values())
            reasons.append(f"no cell has as many, and all together have {free} free")
            mends.append(f"add cells with {unit.gpus - free} more GPUs")
        else:
            reasons.append(f"the emptiest cell has {max(floor.free.values(), default=0)} free")
            mends.append(f"add a cell with {unit.gpus} free GPUs")
    return Unplaced(
        what=unit.what,
        required=unit.initial or unit.replica == 0,
        reason=f"needs {unit.gpus} GPUs; {' and '.join(reasons)}",
        mend=f"{' and '.join(mends)}, or ask for fewer ranks or replicas",
    )


# How Ray enforces it: nodes carry the label, a replica is one placement group of these bundles on the selected cells.


def declared_cells(family: Family) -> tuple[CellState, ...]:
    """The cells of the family file, all free."""
    return tuple(
        CellState(name=name, gpus=cell.gpus, free_gpus=cell.gpus) for cell in family.cells for name in cell.instances
    )


def observed_cells(nodes: Iterable[Node]) -> tuple[CellState, ...]:
    """The cells of a running cluster: nodes with the same cell label together, a node without one by itself."""
    members: dict[str, list[Node]] = {}
    for node in nodes:
        members.setdefault(node.labels.get(CELL_LABEL, node.name), []).append(node)
    return tuple(
        CellState(name=name, gpus=sum(n.gpus for n in group), free_gpus=sum(n.free_gpus for n in group))
        for name, group in members.items()
    )


def bundles(served: Tier | Video, accelerator: Literal["cpu", "cuda"]) -> list[dict[str, float]]:
    """What one replica reserves: a bundle per rank of a tier, one for all the GPUs of a video replica.

    Ranks that are processes of their replica share its bundle. A rank on CPU names a slot of its cell and next to no
    CPU: a laptop has fewer cores than the family has ranks.
    """
    if isinstance(served, Video):
        return [_bundle(served.gpus, accelerator)]
    if _in_replica(served):
        return [_bundle(served.ranks, accelerator)]
    return [_bundle(1, accelerator) for _ in range(served.ranks)]


def own_share(tier: Tier, accelerator: Literal["cpu", "cuda"]) -> dict[str, float]:
    """What the process of the replica takes of its first bundle: all of it, where it is a rank itself.

    vLLM's ranks on Ray are actors in these bundles, and find the GPU of each free.
    """
    first = dict(bundles(tier, accelerator)[0])
    if tier.engine == "vllm" and tier.vllm is not None and tier.vllm.executor == "ray":
        first.pop("GPU", None)
    return first


def _in_replica(tier: Tier) -> bool:
    """Whether all ranks are processes of the replica, on its node. A rehearsal reserves what will be reserved."""
    return tier.vllm is not None and tier.vllm.executor == "mp"


def _bundle(gpus: int, accelerator: Literal["cpu", "cuda"]) -> dict[str, float]:
    if accelerator == "cpu":
        return {CPU_RESOURCE: gpus, "CPU": round(SLOT_CPUS * gpus, 2)}
    return {"GPU": gpus, "CPU": gpus}


def reach(ranks: int, cells: Sequence[CellState]) -> tuple[str, ...]:
    """The cells that may hold a group: not only where it was planned, so that a lost node costs GPUs and not a tier.

    All of them, where the group is larger than any.
    """
    large = tuple(cell.name for cell in cells if cell.gpus >= ranks)
    return large or tuple(cell.name for cell in cells)


def selector(cells: Sequence[str]) -> dict[str, str]:
    """Ray's label selector for these cells. No space after a comma: Ray 2.60 takes it for a part of the next value."""
    return {CELL_LABEL: cells[0] if len(cells) == 1 else f"in({','.join(cells)})"}


def strategy(tier: Tier, cells: Sequence[CellState]) -> Literal["STRICT_PACK", "PACK"]:
    """Whole on one node, unless no cell has as many GPUs as the group has ranks."""
    return "STRICT_PACK" if any(cell.gpus >= tier.ranks for cell in cells) else "PACK"
