"""What the console shows of what the gateway knows: nothing lost, nothing invented, nothing secret."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shell import family

from autoscaling.readings import Count
from autoscaling.signals import Target
from autoscaling.story import Event, Lent, Story
from cluster.fleet import ReplicaReport
from cluster.lending import Awaiting, Room
from deployments.control.words import Holding, Picture, Standing, Worker
from deployments.gateway.console.figures import figures, percentile
from deployments.gateway.console.snapshot import Known, snapshot
from deployments.seen import SeenReplica

SPEC = family(Path("/nowhere"), video=True)
REPORT = ReplicaReport(
    replica_id="r1",
    at_s=1.0,
    running=3,
    waiting=2,
    waiting_prefill_tokens=10,
    kv_used_tokens=100,
    kv_capacity_tokens=1000,
    step_ms=10.0,
    prefill_us_per_token=1.0,
)
ROOMS = (Room(node="n1", cell="a", gpus=8, free_gpus=4), Room(node="n2", cell="a", gpus=8, free_gpus=8))
HOLDINGS = (
    Holding(owner="mini", replica="r1", node="n1", gpus=2),
    Holding(owner="mini", replica="r2", node="n1", gpus=1),
    Holding(owner="video", replica="w1", node="n1", gpus=1),
)
EVENT = Event(at_s=9.0, name="mini", before=1, after=2, cause="rise", reason="more is asked")


def picture(**changes: Any) -> Picture:
    story = Story(
        at_s=10.0, now={"mini": Target(replicas=2, wanted=3, cause="budget", reason="it is full")}, events=(EVENT,)
    )
    given: dict[str, Any] = {
        "age_s": 0.5,
        "gpus": 8,
        "rooms": ROOMS,
        "holdings": HOLDINGS,
        "awaiting": (Awaiting(tier="turbo", ranks=4, cells=("a",)),),
        "leaving": (),
        "counts": {"mini": Count(ready=1, starting=1), "video": Count(ready=1)},
        "story": story,
    }
    return Picture(**given | changes)


def standing(shown: Picture | None) -> Standing:
    worker = Worker(worker_id="w1", node_id="n1", actor=None)
    return Standing(
        version=4, family=SPEC, workers=(worker,), metrics_address="m:1", targets={"mini": 2, "video": 1}, picture=shown
    )


def known(said: Standing | None, **changes: Any) -> Known:
    seen = (SeenReplica(replica_id="r1", metrics_address="m:2", report=REPORT),)
    given: dict[str, Any] = {
        "family": SPEC,
        "at_s": 100.0,
        "standing": said,
        "standing_age_s": 1.5,
        "seen": {"mini": seen},
        "held": {"mini": (5, 70)},
        "ongoing": {"mini": 3},
        "breakers": {"mini": 1},
        "figures": {},
        "jobs": 2,
        "refusals": {"tokens_per_minute": 3},
        "up_s": 60.0,
    }
    return Known(**given | changes)


def told(shown: Picture | None = None, **changes: Any) -> dict[str, Any]:
    return snapshot(known(standing(shown or picture()), **changes))


def test_it_says_how_many_requests_each_limit_refused_and_since_when() -> None:
    assert told()["refusals"] == {"since_s": 60.0, "by_limit": {"tokens_per_minute": 3}}


def test_each_replica_is_on_its_node_with_its_gpus_and_its_state() -> None:
    (cell,) = told()["cells"]
    first, second = cell["nodes"]
    assert (cell["name"], cell["gpus"], first["free_gpus"], second["holdings"]) == ("a", 16, 4, [])
    assert [(one["owner"], one["replica"], one["gpus"], one["state"]) for one in first["holdings"]] == [
        ("mini", "r1", 2, "ready"),
        ("mini", "r2", 1, "changing"),
        ("video", "w1", 1, "ready"),
    ]


def test_video_that_makes_room_is_marked_and_so_are_the_gpus_that_it_lent() -> None:
    story = Story(lent=(Lent(node="n2", tier="mini", gpus=2),))
    (cell,) = told(picture(leaving=("w1",), story=story))["cells"]
    first, second = cell["nodes"]
    assert first["holdings"][2]["state"] == "leaving"
    assert (first["lent"], second["lent"]) == ([], [{"tier": "mini", "gpus": 2}])


def test_a_tier_shows_demand_and_replicas_side_by_side_and_why() -> None:
    mini, turbo = told()["tiers"]
    assert (mini["held_requests"], mini["held_prompt_tokens"], mini["ongoing_requests"]) == (5, 70, 3)
    assert mini["engines"] == {"running": 3, "waiting": 2, "kv_used_tokens": 100, "kv_capacity_tokens": 1000}
    replicas = mini["replicas"]
    assert (replicas["ready"], replicas["starting"], replicas["target"], replicas["wanted"]) == (1, 1, 2, 3)
    assert (replicas["cause"], replicas["reason"]) == ("budget", "it is full")
    assert (turbo["replicas"]["ready"], turbo["replicas"]["reason"]) == (0, None)


def test_a_group_that_waits_and_the_events_are_told() -> None:
    shown = told()
    assert shown["awaiting"] == [{"tier": "turbo", "ranks": 4}]
    assert shown["events"][0]["reason"] == "more is asked"


def test_the_age_of_a_picture_is_that_of_the_look_and_of_the_word() -> None:
    assert told()["control"] == {"heard_age_s": 1.5, "picture_age_s": 2.0, "version": 4}


@pytest.mark.parametrize("said", [None, standing(None)])
def test_without_a_picture_the_cells_are_those_of_the_file_and_nothing_is_invented(said: Standing | None) -> None:
    shown = snapshot(known(said))
    assert shown["cells"] == [{"name": "here", "gpus": 8, "nodes": []}]
    assert shown["control"]["picture_age_s"] is None
    assert (shown["events"], shown["budget"]["gpus"]) == ([], None)


def test_a_family_without_video_shows_none() -> None:
    assert snapshot(known(None, family=family(Path("/nowhere"))))["video"] is None


@given(
    st.lists(st.tuples(st.sampled_from(["mini", "turbo", "video"]), st.sampled_from(["n1", "n2"]), st.integers(1, 8)))
)
def test_gpus_by_owner_are_those_of_the_nodes(held: list[tuple[str, str, int]]) -> None:
    holdings = tuple(
        Holding(owner=owner, replica=str(number), node=node, gpus=gpus)
        for number, (owner, node, gpus) in enumerate(held)
    )
    shown = told(picture(holdings=holdings))
    on_nodes = [one for cell in shown["cells"] for node in cell["nodes"] for one in node["holdings"]]
    assert sum(shown["budget"]["held"].values()) == sum(one["gpus"] for one in on_nodes)
    assert len(on_nodes) == len(held)


@given(
    st.dictionaries(
        st.tuples(
            st.sampled_from(["moray_arrivals_total", "moray_ttft_seconds_bucket", "moray_promises_total"]),
            st.sampled_from(["mini", "turbo"]),
            st.sampled_from(["", "kept", "missed"]),
        ).filter(lambda key: "bucket" not in key[0]),
        st.floats(0, 1e9),
    ),
    st.floats(1, 3600),
)
def test_it_is_json_without_infinities(now: dict[tuple[str, str, str], float], window_s: float) -> None:
    shown = told(figures={key: figures(now, {}, key, window_s) for key in SPEC.tiers})
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown


@given(st.lists(st.integers(0, 20), min_size=2, max_size=8), st.floats(0.01, 1))
def test_a_percentile_lies_in_the_bucket_that_reaches_it(counts: list[int], share: float) -> None:
    bounds = [*(float(2**n) for n in range(len(counts) - 1)), float("inf")]
    grown = {bound: float(sum(counts[: index + 1])) for index, bound in enumerate(bounds)}
    found = percentile(share, grown)
    if not sum(counts):
        assert found is None
        return
    assert found is not None
    reached = next(bound for bound in bounds if grown[bound] >= share * sum(counts))
    assert 0 <= found <= min(reached, bounds[-2])


def test_rates_and_shares_are_of_the_window_alone() -> None:
    before = {("moray_arrivals_total", "mini", ""): 100.0, ("moray_promises_total", "mini", "missed"): 50.0}
    now = {
        ("moray_arrivals_total", "mini", ""): 130.0,
        ("moray_promises_total", "mini", "missed"): 51.0,
        ("moray_promises_total", "mini", "kept"): 9.0,
    }
    found = figures(now, before, "mini", 60.0)
    assert (found.arrivals_rps, found.ended, found.kept_ratio) == (0.5, 10, 0.9)
    assert (found.ttft_p50_s, found.tpot_p95_s) == (None, None)
