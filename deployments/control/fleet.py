"""What there is, as Serve and Ray say it: replicas, GPUs and who holds them, and groups that wait for some."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve

from autoscaling.readings import Count, Fleet
from cluster.family import Family
from cluster.fleet import Node
from cluster.lending import Awaiting, Room
from cluster.placement import CELL_LABEL, CPU_RESOURCE, VIDEO, observed_cells, reach
from deployments.control.words import WORKER, Holding

APP = "moray"
SERVES = "SERVE_REPLICA::"  # and application#deployment#id: the placement group of a replica of Serve
GONE = {"REMOVED"}
FAILED = "REPLICA_STARTUP_FAILED"  # so often that Serve tries no more, until it has another target
KINDS = {
    "STARTING": "starting",
    "UPDATING": "starting",
    "RUNNING": "ready",
    "RECOVERING": "ready",  # Serve's controller has restarted; the replica serves
    "PENDING_MIGRATION": "ready",
    "STOPPING": "draining",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """`gpus_held`: by tier and "video". `nodes_of`: by tier, the nodes that hold ranks of its groups.

    `holdings`: the same by replica.
    `given_up`: by tier of which Serve starts no more replicas since the last ones could not start, how many it has.
    """

    fleet: Fleet
    rooms: tuple[Room, ...]
    awaiting: tuple[Awaiting, ...]
    gpus_held: dict[str, int]
    nodes_of: dict[str, tuple[str, ...]]
    given_up: dict[str, int]
    holdings: tuple[Holding, ...] = ()


@dataclass(frozen=True, slots=True)
class _Held:
    """GPUs that a placement group holds on a node."""

    owner: str
    replica: str
    node: str
    gpus: int


def tier_app(key: str) -> str:
    """The name of the application that serves a tier."""
    return f"{APP}-{key}"


def as_nodes(listed: Iterable[Mapping[str, Any]], family: Family) -> list[Node]:
    """Of the nodes as Ray lists them those that live and have GPUs, or slots for ranks."""
    kind = "GPU" if family.accelerator == "cuda" else CPU_RESOURCE
    return [
        Node(name=node["NodeID"], gpus=gpus, free_gpus=gpus, labels=node["Labels"])
        for node in listed
        if node["Alive"] and (gpus := int(node["Resources"].get(kind, 0)))
    ]


def observe(family: Family) -> Observed:
    """Blocks, for as long as Ray's tables take."""
    groups = ray.util.placement_group_table().values()
    deployments = _deployments(family.tiers)
    if deployments is None:
        return told(family, nodes=ray.nodes(), groups=groups, replicas=None)
    replicas = {key: each.replica_states for key, each in deployments.items()}
    failed = [key for key, each in deployments.items() if each.status_trigger == FAILED]
    return told(family, nodes=ray.nodes(), groups=groups, replicas=replicas, failed=failed)


def _deployments(tiers: Iterable[str]) -> dict[str, Any] | None:
    """What Serve says of each tier. None where it does not answer."""
    try:
        applications = serve.status().applications
    except Exception:  # whatever Ray tells of a lost controller
        return None
    found = {key: applications[tier_app(key)].deployments for key in tiers if tier_app(key) in applications}
    return {key: each[key] for key, each in found.items() if key in each}


def told(
    family: Family,
    *,
    nodes: Iterable[Mapping[str, Any]],
    groups: Iterable[Mapping[str, Any]],
    replicas: Mapping[str, Mapping[str, int]] | None,
    failed: Iterable[str] = (),
) -> Observed:
    """The same from Ray's tables as they are, and from the states of Serve's replicas by tier.

    `failed`: tiers whose last replicas could not start.
    """
    machines = as_nodes(nodes, family)
    owned = [(_owner(group["name"]), group) for group in groups if group["state"] not in GONE]
    kind = "GPU" if family.accelerator == "cuda" else CPU_RESOURCE
    held = [each for owner, group in owned for each in _held(owner, group, kind)]
    taken: Counter[str] = Counter()
    by_owner: Counter[str] = Counter()
    for each in held:
        taken[each.node] += each.gpus
        by_owner[each.owner] += each.gpus
    rooms = tuple(
        Room(
            node=node.name,
            cell=node.labels.get(CELL_LABEL, node.name),
            gpus=node.gpus,
            free_gpus=node.gpus - taken[node.name],
        )
        for node in machines
    )
    waiting = [(owner, group) for owner, group in owned if owner in family.tiers and not _placed(group)]
    cells = observed_cells(machines)
    return Observed(
        fleet=Fleet(
            counts=None if replicas is None else _counts(family, replicas, owned),
            gpus=min(family.gpu_budget_gpus, sum(node.gpus for node in machines)),
        ),
        rooms=rooms,
        awaiting=tuple(
            Awaiting(tier=owner, ranks=ranks, cells=reach(ranks, cells))
            for ranks, owner in ((family.tiers[owner].ranks, owner) for owner, _ in waiting)
        ),
        gpus_held={owner: by_owner[owner] for owner in (*family.tiers, VIDEO)},
        nodes_of={key: tuple(dict.fromkeys(each.node for each in held if each.owner == key)) for key in family.tiers},
        given_up={key: counts["RUNNING"] for key in failed if (counts := _still(replicas, key)) is not None},
        holdings=_holdings(each for each in held if each.owner),
    )


def _holdings(held: Iterable[_Held]) -> tuple[Holding, ...]:
    """The ranks of a replica on one node together."""
    gpus: Counter[tuple[str, str, str]] = Counter()
    for each in held:
        gpus[each.owner, each.replica, each.node] += each.gpus
    return tuple(
        Holding(owner=owner, replica=replica, node=node, gpus=count) for (owner, replica, node), count in gpus.items()
    )


def _still(replicas: Mapping[str, Mapping[str, int]] | None, key: str) -> Counter[str] | None:
    """Replicas by state where none starts or stops."""
    counts = Counter({str(state): count for state, count in (replicas or {}).get(key, {}).items() if count})
    return counts if counts.keys() <= {"RUNNING"} else None


def _owner(name: str) -> str:
    """The tier, or video, that a placement group belongs to; empty where it is nobody's of ours."""
    if name.startswith(WORKER):
        return VIDEO
    app, _, rest = name.removeprefix(SERVES).partition("#")
    key = rest.partition("#")[0]
    return key if name.startswith(SERVES) and app == tier_app(key) else ""


def _replica(name: str) -> str:
    """The id of the replica of Serve, or of the video worker, that a placement group is for."""
    return name.removeprefix(WORKER).rpartition("#")[2]


def _placed(group: Mapping[str, Any]) -> bool:
    return bool(group["state"] == "CREATED")


def _held(owner: str, group: Mapping[str, Any], kind: str) -> list[_Held]:
    """Where a node was lost, the group holds its other bundles while Ray looks for a place for the rest."""
    if group["state"] == "PENDING":  # Ray tells nodes that it tries, too
        return []
    places = group["bundles_to_node_id"]
    return [
        _Held(owner, _replica(group["name"]), places[index], int(bundle.get(kind, 0)))
        for index, bundle in group["bundles"].items()
        if places.get(index)
    ]


def _counts(
    family: Family, replicas: Mapping[str, Mapping[str, int]], owned: list[tuple[str, Mapping[str, Any]]]
) -> dict[str, Count]:
    """Video replicas count as ready with their GPUs; whether they have loaded, their pool knows."""
    counts = {key: _count(replicas.get(key, {})) for key in family.tiers}
    if family.video is not None:
        placed = Counter(_placed(group) for owner, group in owned if owner == VIDEO)
        counts[VIDEO] = Count(ready=placed[True], starting=placed[False])
    return counts


def _count(states: Mapping[str, int]) -> Count:
    found: Counter[str] = Counter()
    for state, count in states.items():
        found[KINDS.get(str(state), "")] += count
    return Count(ready=found["ready"], starting=found["starting"], draining=found["draining"])
