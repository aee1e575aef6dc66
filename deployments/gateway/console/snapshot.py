"""The family as it is now, ready for JSON: who runs where, demand against replicas, and what was decided why.

One pure function from what the gateway knows. No prompt, no answer, no key and no tenant is in it: it says what
/metrics says, so whoever may read those may read this.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from autoscaling.readings import Count
from autoscaling.story import Story
from cluster.family import Family
from cluster.fleet import ReplicaReport
from cluster.placement import VIDEO, declared_cells
from deployments.control.words import Holding, Picture, Standing
from deployments.gateway.console.figures import Figures
from deployments.seen import SeenReplica


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """`at_s`: Unix time. `standing`: the control loop's last word, `standing_age_s` old; None before the first.

    The rest is this gateway's: `seen` replicas by tier, `held`, `ongoing` requests and open `breakers` by tier,
    `figures` by tier, `jobs`: unfinished video jobs, None where it keeps none, `refusals` by limit since it began,
    `up_s` ago.
    """

    family: Family
    at_s: float
    standing: Standing | None
    standing_age_s: float
    seen: Mapping[str, tuple[SeenReplica, ...]]
    held: Mapping[str, tuple[int, int]]
    ongoing: Mapping[str, int]
    breakers: Mapping[str, int]
    figures: Mapping[str, Figures]
    jobs: int | None
    refusals: Mapping[str, int]
    up_s: float


def snapshot(known: Known) -> dict[str, Any]:
    """What `GET /console/state` answers. Every number is finite; what is not known is null."""
    family, standing = known.family, known.standing
    picture = standing.picture if standing is not None else None
    story = picture.story if picture is not None else Story()
    return {
        "family": family.name,
        "accelerator": family.accelerator,
        "at_s": known.at_s,
        "control": {
            "heard_age_s": None if standing is None else known.standing_age_s,
            "picture_age_s": None if picture is None else known.standing_age_s + picture.age_s,
            "version": None if standing is None else standing.version,
        },
        "budget": _budget(family, picture),
        "cells": _declared(family) if picture is None else _cells(known, picture),
        "awaiting": [{"tier": one.tier, "ranks": one.ranks} for one in (picture.awaiting if picture else ())],
        "tiers": [_tier(known, key, picture, story) for key in family.tiers],
        "video": None if family.video is None else _video(known, picture, story),
        "refusals": {"since_s": known.up_s, "by_limit": dict(known.refusals)},
        "events": [asdict(event) for event in story.events],
    }


def _budget(family: Family, picture: Picture | None) -> dict[str, Any]:
    """`gpus`: that the family may hold now, fewer than its budget where nodes are lost."""
    held = {owner: 0 for owner in (*family.tiers, *((VIDEO,) if family.video else ()))}
    for holding in picture.holdings if picture else ():
        held[holding.owner] = held.get(holding.owner, 0) + holding.gpus
    return {"most_gpus": family.gpu_budget_gpus, "gpus": picture.gpus if picture else None, "held": held}


def _declared(family: Family) -> list[dict[str, Any]]:
    """The cells of the family file, where nobody has looked at the cluster yet."""
    return [{"name": cell.name, "gpus": cell.gpus, "nodes": []} for cell in declared_cells(family)]


def _cells(known: Known, picture: Picture) -> list[dict[str, Any]]:
    """In the order of their names, with the nodes of each."""
    cells: dict[str, list[dict[str, Any]]] = {}
    for room in picture.rooms:
        node = {
            "node": room.node,
            "gpus": room.gpus,
            "free_gpus": room.free_gpus,
            "holdings": [_holding(known, picture, one) for one in picture.holdings if one.node == room.node],
            "lent": [{"tier": one.tier, "gpus": one.gpus} for one in picture.story.lent if one.node == room.node],
        }
        cells.setdefault(room.cell, []).append(node)
    return [
        {"name": name, "gpus": sum(node["gpus"] for node in nodes), "nodes": nodes}
        for name, nodes in sorted(cells.items())
    ]


def _holding(known: Known, picture: Picture, holding: Holding) -> dict[str, Any]:
    """`state`: ready, leaving (video that makes room), or changing: it starts or stops."""
    if holding.owner == VIDEO:
        assert known.standing is not None
        ready = {worker.worker_id for worker in known.standing.workers}
    else:
        ready = {replica.replica_id for replica in known.seen.get(holding.owner, ()) if not replica.dead}
    leaving = holding.replica in picture.leaving
    state = "leaving" if leaving else "ready" if holding.replica in ready else "changing"
    return {"owner": holding.owner, "replica": holding.replica, "gpus": holding.gpus, "state": state}


def _tier(known: Known, key: str, picture: Picture | None, story: Story) -> dict[str, Any]:
    spec = known.family.tiers[key]
    reports = [replica.report for replica in known.seen.get(key, ()) if replica.report is not None]
    held, held_tokens = known.held.get(key, (0, 0))
    return {
        "key": key,
        "names": list(spec.names),
        "engine": spec.engine,
        "ranks": spec.ranks,
        "replicas": _replicas(known, key, picture, story),
        "slo": {"ttft_s": spec.slo.ttft_s, "tpot_ms": spec.slo.tpot_ms, "objective": spec.slo.objective},
        "held_requests": held,
        "held_prompt_tokens": held_tokens,
        "ongoing_requests": known.ongoing.get(key, 0),
        "breakers_open": known.breakers.get(key, 0),
        "engines": _engines(reports),
        "figures": asdict(known.figures[key]) if key in known.figures else None,
    }


def _engines(reports: Iterable[ReplicaReport]) -> dict[str, int]:
    """What the replicas say of themselves, together."""
    names = ("running", "waiting", "kv_used_tokens", "kv_capacity_tokens")
    all_of = list(reports)
    return {name: sum(getattr(report, name) for report in all_of) for name in names}


def _video(known: Known, picture: Picture | None, story: Story) -> dict[str, Any]:
    video = known.family.video
    assert video is not None
    return {
        "names": list(video.names),
        "gpus": video.gpus,
        "replicas": _replicas(known, VIDEO, picture, story),
        "jobs": known.jobs,
        "deadline_s": video.slo.deadline_s,
    }


def _replicas(known: Known, name: str, picture: Picture | None, story: Story) -> dict[str, Any]:
    """Those that exist, as the control loop counts them, against those that should."""
    part = known.family.video if name == VIDEO else known.family.tiers[name]
    assert part is not None
    count = (picture.counts.get(name) if picture is not None else None) or Count()
    decided = story.now.get(name)
    return {
        "ready": count.ready,
        "starting": count.starting,
        "draining": count.draining,
        "min": part.replicas.min,
        "max": part.replicas.max,
        "target": None if known.standing is None else known.standing.targets.get(name),
        "wanted": None if decided is None else decided.wanted,
        "cause": None if decided is None else decided.cause,
        "reason": None if decided is None else decided.reason,
    }
