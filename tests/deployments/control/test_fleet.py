from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from shell import TIER, VIDEO

from autoscaling.readings import Count
from cluster.family import Family
from cluster.lending import Awaiting, Room
from deployments.control.fleet import Observed, told


def family(**changes: Any) -> Family:
    """ultra in groups of 8, pro of 4, turbo of 1, on four nodes of 8 GPUs."""
    tiers = {
        key: TIER | {"names": [key], "ranks": ranks, "replicas": {"min": 0, "max": 2, "initial": 1}}
        for key, ranks in (("ultra", 8), ("pro", 4), ("turbo", 1))
    }
    given: dict[str, Any] = {
        "name": "tested",
        "accelerator": "cuda",
        "gpu_budget_gpus": 32,
        "cells": [{"name": "node", "count": 4, "gpus": 8}],
        "tiers": tiers,
        "video": VIDEO | {"beside": "turbo"},
    }
    return Family.model_validate(given | changes)


def node(name: str, cell: str | None, *, alive: bool = True, **resources: float) -> dict[str, Any]:
    """As Ray lists it, of its many fields those that count."""
    return {
        "NodeID": name,
        "Alive": alive,
        "Resources": {"CPU": 8.0, "memory": 24632496128.0} | (resources or {"GPU": 8.0}),
        "Labels": {"ray.io/node-id": name} | ({"moray/cell": cell} if cell else {}),
    }


def group(name: str, *places: str, state: str = "CREATED", ranks: int = 1, gpus: float = 1.0) -> dict[str, Any]:
    """A row of Ray's table: a bundle per rank, on the given nodes; a rank without one is not placed."""
    return {
        "name": name,
        "bundles": {index: {"GPU": gpus, "CPU": gpus} for index in range(max(ranks, len(places)))},
        "bundles_to_node_id": dict(enumerate(places)) | {index: "" for index in range(len(places), ranks)},
        "strategy": "STRICT_PACK",
        "state": state,
    }


NODES = [
    node("n1", "node-1"),
    {"NodeID": "head", "Alive": True, "Resources": {"CPU": 2.0, "node:__internal_head__": 1.0}, "Labels": {}},
    node("n0", "node-0"),
    node("n2", "node-2"),
    node("n3", "node-3", alive=False),
]
GROUPS = [
    group("SERVE_REPLICA::moray-pro#pro#peoe6sfj", *["n0"] * 4),
    group("SERVE_REPLICA::moray-pro#pro#2k8sk1ax", *["n0"] * 4),
    group("SERVE_REPLICA::moray-turbo#turbo#x1", "n2"),
    group("moray-video-7f", "n2", gpus=2.0),
    group("SERVE_REPLICA::moray-ultra#ultra#gone", *["n1"] * 8, state="REMOVED"),
    group("SERVE_REPLICA::moray-ultra#ultra#q1", state="PENDING", ranks=8),
    group("somebody-else", "n1"),
]
REPLICAS = {"pro": {"RUNNING": 2}, "turbo": {"RUNNING": 1, "STOPPING": 1}, "ultra": {"STARTING": 1}}


def observed(
    groups: list[dict[str, Any]] = GROUPS,
    replicas: Mapping[str, Mapping[str, int]] | None = REPLICAS,
    nodes: list[dict[str, Any]] = NODES,
    failed: Sequence[str] = (),
    **changes: Any,
) -> Observed:
    return told(family(**changes), nodes=nodes, groups=groups, replicas=replicas, failed=failed)


def test_serve_has_given_up_a_tier_whose_replicas_failed_and_of_which_none_starts_or_stops() -> None:
    failed = ("pro", "turbo", "ultra")
    assert observed(failed=failed).given_up == {"pro": 2}
    assert observed(failed=failed, replicas={"turbo": {"RUNNING": 0}}).given_up == {"pro": 0, "turbo": 0, "ultra": 0}
    assert observed().given_up == {}


def test_replicas_are_counted_by_what_serve_says_of_them() -> None:
    assert observed().fleet.counts == {
        "pro": Count(ready=2),
        "turbo": Count(ready=1, draining=1),
        "ultra": Count(starting=1),
        "video": Count(ready=1),
    }


@pytest.mark.parametrize(
    ("state", "count"),
    [
        ("UPDATING", Count(starting=2)),
        ("RECOVERING", Count(ready=2)),
        ("PENDING_MIGRATION", Count(ready=2)),
        ("STOPPED", Count()),
    ],
)
def test_every_state_of_serve_has_a_meaning(state: str, count: Count) -> None:
    counts = observed(replicas={"pro": {state: 2}}).fleet.counts
    assert counts is not None
    assert (counts["pro"], counts["turbo"]) == (count, Count())


def test_nothing_is_counted_when_serve_does_not_answer() -> None:
    assert observed(replicas=None).fleet.counts is None


@pytest.mark.parametrize(("budget", "gpus"), [(32, 24), (16, 16)])
def test_the_family_may_hold_its_budget_of_what_lives(budget: int, gpus: int) -> None:
    assert observed(gpu_budget_gpus=budget).fleet.gpus == gpus


def test_a_room_is_a_live_node_with_gpus_and_free_is_what_no_group_holds() -> None:
    assert observed().rooms == (
        Room(node="n1", cell="node-1", gpus=8, free_gpus=7),
        Room(node="n0", cell="node-0", gpus=8, free_gpus=0),
        Room(node="n2", cell="node-2", gpus=8, free_gpus=5),
    )


def test_gpus_are_held_by_tiers_and_video() -> None:
    assert observed().gpus_held == {"ultra": 0, "pro": 8, "turbo": 1, "video": 2}
    assert observed().nodes_of == {"ultra": (), "pro": ("n0",), "turbo": ("n2",)}


def test_a_group_without_a_place_waits_for_any_cell_that_can_hold_it() -> None:
    (waiting,) = observed().awaiting
    assert (waiting.tier, waiting.ranks) == ("ultra", 8)
    assert waiting.cells == ("node-1", "node-0", "node-2")


def test_nodes_without_the_cells_of_the_family_file_are_all_allowed() -> None:
    (waiting,) = observed(nodes=[node("a", None), node("b", None)]).awaiting
    assert waiting == Awaiting(tier="ultra", ranks=8, cells=("a", "b"))


def test_a_group_that_lost_a_node_waits_and_holds_what_is_left_of_it() -> None:
    halves = [group("SERVE_REPLICA::moray-ultra#ultra#q", *["n1"] * 3, state="RESCHEDULING", ranks=8)]
    seen = observed(groups=halves)
    assert [each.tier for each in seen.awaiting] == ["ultra"]
    assert seen.gpus_held["ultra"] == 3
    assert seen.nodes_of["ultra"] == ("n1",)


def test_a_video_replica_without_a_place_is_starting_and_no_tier_waits() -> None:
    seen = observed(groups=[group("moray-video-7f", state="PENDING", ranks=1)])
    assert seen.fleet.counts is not None
    assert seen.fleet.counts["video"] == Count(starting=1)
    assert (seen.awaiting, seen.gpus_held["video"]) == ((), 0)


def test_a_group_of_an_application_that_is_no_tiers_is_nobodys() -> None:
    seen = observed(groups=[group("SERVE_REPLICA::other#pro#x", "n1"), group("SERVE_REPLICA::moray-pro", "n1")])
    assert seen.gpus_held["pro"] == 0
    assert seen.rooms[0].free_gpus == 6


def test_on_cpu_slots_stand_for_gpus() -> None:
    slots = {"bundles": {0: {"moray_slot": 1.0, "CPU": 0.01}}, "bundles_to_node_id": {0: "n1"}, "state": "CREATED"}
    seen = observed(
        groups=[slots | {"name": "SERVE_REPLICA::moray-turbo#turbo#x"}],
        nodes=[node("n1", "node-0", moray_slot=8.0)],
        accelerator="cpu",
    )
    assert seen.rooms == (Room(node="n1", cell="node-0", gpus=8, free_gpus=7),)
    assert seen.gpus_held["turbo"] == 1


def test_each_replica_is_known_with_its_node_and_gpus_and_those_of_others_are_not() -> None:
    held = {(each.owner, each.replica, each.node): each.gpus for each in observed().holdings}
    assert held == {
        ("pro", "peoe6sfj", "n0"): 4,
        ("pro", "2k8sk1ax", "n0"): 4,
        ("turbo", "x1", "n2"): 1,
        ("video", "7f", "n2"): 2,
    }
