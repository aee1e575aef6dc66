"""A family compared with itself has no findings; each fault is one finding that names it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.doctor import Finding, Observed, findings
from cluster.doctor_gateway import Gateway, Look, Seen
from cluster.doctor_kubernetes import KubeNode, Kubernetes, Service, WorkerGroup
from cluster.family import Family, load
from cluster.placement import CELL_LABEL, VIDEO

H200 = load("h200", serving=False)
LAPTOP = load("laptop", serving=False)


def part(replicas: int) -> Seen:
    return Seen(running=replicas, target=replicas, ready=replicas)


def look(family: Family, /, **changed: Any) -> Look:
    """Of a gateway that runs what the family says, at its initial replicas."""
    parts = {key: part(tier.replicas.initial) for key, tier in family.tiers.items()}
    if family.video is not None:
        parts[VIDEO] = replace(part(family.video.replicas.initial), running=0)
    whole = Look(
        family=family.name,
        tiers=tuple(family.tiers),
        parts=parts,
        ticked_s=1.0,
        gpus=family.gpu_budget_gpus,
        version="1.2.0",
        loop_version="1.2.0",
        heard_s=0.5,
        pictured_s=2.0,
        signals_s=dict.fromkeys(family.tiers, 1.0),
    )
    return replace(whole, **changed)


def parts(family: Family, key: str, **changed: Any) -> dict[str, Mapping[str, Seen]]:
    seen = dict(look(family).parts)
    return {"parts": seen | {key: replace(seen[key], **changed)}}


def of_looks(family: Family, later: Look, earlier: Look | None = None) -> tuple[Finding, ...]:
    gateway = Gateway(url="http://gateway", client="1.2.0", earlier=later if earlier is None else earlier, later=later)
    return findings(family, Observed(gateway=gateway))


def group(name: str, most: int = 2, gpus: int = 8, cell: str | None = "h200", **selector: str) -> WorkerGroup:
    return WorkerGroup(name=name, cell=cell, gpus=gpus, most=most, selector=selector)


def node(name: str, gpus: int = 8, ready: bool = True, **labels: str) -> KubeNode:
    named = {CELL_LABEL: labels.pop("cell")} if "cell" in labels else {}
    return KubeNode(name=name, gpus=gpus, labels=named | labels, ready=ready)


def kubernetes(**changed: Any) -> Kubernetes:
    """Of a namespace that runs h200."""
    service = Service(name="moray", unready="", ray_version="2.60.0", groups=(group("h200"),))
    nodes = (node("a", cell="h200-0"), node("b", cell="h200-1"))
    whole = Kubernetes(namespace="serving", ray_version="2.60.0", nodes=nodes, services=(service,), monitors=1, rules=1)
    return replace(whole, **changed)


def of_kubernetes(**changed: Any) -> tuple[Finding, ...]:
    return findings(H200, Observed(kubernetes=kubernetes(**changed)))


def served(**changed: Any) -> dict[str, tuple[Service, ...]]:
    (service,) = kubernetes().services or ()
    return {"services": (replace(service, **changed),)}


@pytest.mark.parametrize("family", [H200, LAPTOP], ids=["h200", "laptop"])
def test_a_family_compared_with_itself_has_no_findings(family: Family) -> None:
    assert of_looks(family, look(family)) == ()
    assert findings(family, Observed()) == ()


def test_a_cluster_that_is_as_the_family_says_has_no_findings() -> None:
    assert of_kubernetes() == ()


GATEWAY_FAULTS: dict[str, tuple[Look, str, str]] = {
    "another family": (look(LAPTOP, family="small"), "http://gateway", "'small'"),
    "a tier is missing": (look(LAPTOP, tiers=("ultra", "pro", "turbo")), "tiers.mini", "not served"),
    "a tier too many": (look(LAPTOP, tiers=(*LAPTOP.tiers, "minis")), "tiers.minis", "is mini meant"),
    "an older gateway": (look(LAPTOP, version="1.1.0", loop_version="1.1.0"), "http://gateway", "runs Moray 1.1.0"),
    "a gateway of no version": (look(LAPTOP, version=None), "http://gateway", "does not tell its version"),
    "an older control loop": (look(LAPTOP, loop_version="1.1.0"), "control loop", "1.2.0, as the gateway"),
    "a control loop unheard": (look(LAPTOP, heard_s=60.0, pictured_s=61.0), "http://gateway", "not heard"),
    "an old picture": (look(LAPTOP, pictured_s=40.0), "control loop", "picture of the cluster is 40 s old"),
    "old signals": (look(LAPTOP, signals_s={"mini": 6.0}), "mini: signals", "6 s old; expected at most 5 s"),
    "too few replicas": (look(LAPTOP, **parts(LAPTOP, "mini", ready=0, starting=1)), "tiers.mini", "at least 1"),
    "too many replicas": (look(LAPTOP, **parts(LAPTOP, "mini", ready=3)), "tiers.mini", "at most 2"),
    "replicas that cannot start": (look(LAPTOP, **parts(LAPTOP, "pro", target=1)), "tiers.pro", "no more start"),
    "an open breaker": (look(LAPTOP, **parts(LAPTOP, "mini", breakers_open=1)), "tiers.mini", "since they failed"),
    "held for nobody": (look(LAPTOP, **parts(LAPTOP, "pro", held_requests=4)), "tiers.pro", "4 requests wait"),
    "no control loop": (look(LAPTOP, ticked_s=None), "control loop", "does not answer"),
    "a silent control loop": (look(LAPTOP, ticked_s=99.0), "control loop", "not ticked for 99 s"),
    "GPUs above the budget": (look(LAPTOP, **parts(LAPTOP, "mini", gpus_held=10)), "gpu_budget_gpus", "10 GPUs"),
    "too few GPUs": (look(LAPTOP, gpus=8), "gpu_budget_gpus", "the cluster has 8"),
    "too many video replicas": (look(LAPTOP, **parts(LAPTOP, VIDEO, ready=2)), "video", "2 replicas"),
    "video jobs for nobody": (look(LAPTOP, queued_jobs=3), "video", "3 jobs wait"),
}


@pytest.mark.parametrize("fault", GATEWAY_FAULTS)
def test_a_fault_of_what_runs_is_one_finding_that_names_it(fault: str) -> None:
    seen, where, words = GATEWAY_FAULTS[fault]
    (found,) = of_looks(LAPTOP, seen)
    assert found.where == where
    assert words in str(found)
    assert found.mend


def test_what_is_counted_is_told_where_it_grows() -> None:
    counted = {"faults": {("mini", "stale"): 7.0}, "errors": {"look": 2.0}}
    before, after = look(LAPTOP, **counted), look(LAPTOP, faults={("mini", "stale"): 8.0}, errors={"look": 3.0})
    assert of_looks(LAPTOP, before, before) == ()
    assert of_looks(LAPTOP, after, look(LAPTOP, ticked_s=None)) == ()  # nothing was counted then
    assert [found.where for found in of_looks(LAPTOP, after, before)] == ["control loop: look", "mini: signals"]
    assert [found.found for found in of_looks(LAPTOP, after, before)] == ["failed 1 times while looked at", "stale"]


def test_signals_that_were_old_once_are_no_finding() -> None:
    old = look(LAPTOP, signals_s={"mini": 60.0})
    assert of_looks(LAPTOP, old, look(LAPTOP)) == of_looks(LAPTOP, look(LAPTOP), old) == ()


@pytest.mark.parametrize("change", [{"target": 1}, {"held_requests": 2}])
def test_what_passes_by_itself_is_no_finding(change: dict[str, int]) -> None:
    wrong = look(LAPTOP, **parts(LAPTOP, "pro", **change))
    assert of_looks(LAPTOP, wrong, look(LAPTOP)) == ()
    assert of_looks(LAPTOP, look(LAPTOP), wrong) == ()


def test_a_control_loop_that_answers_once_is_there() -> None:
    assert of_looks(LAPTOP, look(LAPTOP), look(LAPTOP, ticked_s=None)) == ()
    assert of_looks(LAPTOP, look(LAPTOP, ticked_s=None), look(LAPTOP)) == ()


def test_of_another_family_only_that_is_told() -> None:
    assert len(of_looks(LAPTOP, look(H200))) == 1


def test_without_a_control_loop_replicas_are_those_that_the_gateway_sees() -> None:
    blind = {"target": None, "ready": 0}
    unseen = look(LAPTOP, ticked_s=None, gpus=None, **parts(LAPTOP, "mini", **blind))
    assert [found.where for found in of_looks(LAPTOP, unseen)] == ["control loop"]


@given(
    st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.sampled_from(sorted(LAPTOP.tiers)), st.integers(0, 3)
)
def test_the_count_of_a_tier_is_at_most_one_finding(
    ready: int, starting: int, target: int, key: str, running: int
) -> None:
    seen = look(LAPTOP, **parts(LAPTOP, key, ready=ready, starting=starting, target=target, running=running))
    found = of_looks(LAPTOP, seen)
    bounds = LAPTOP.tiers[key].replicas
    right = bounds.min <= ready and ready + starting <= bounds.max and target <= ready + starting
    assert [each.where for each in found] == ([] if right else [f"tiers.{key}"])


KUBERNETES_FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "no RayService": ({"services": ()}, "namespace serving", "here or elsewhere"),
    "a wrong namespace": ({"services": (), "elsewhere": ("moray",)}, "namespace serving", "give --namespace moray"),
    "a RayService that is not ready": (served(unready="is not ready: X"), "RayService moray", "is not ready: X"),
    "another Ray": (served(ray_version="2.50.0"), "RayService moray", "rayVersion 2.50.0"),
    "no operator": ({"services": (), "absent": ("ray.io/v1",)}, "cluster", "install the KubeRay operator"),
    "no prometheus-operator": (
        {"absent": ("monitoring.coreos.com/v1",), "monitors": 0, "rules": 0},
        "cluster",
        "install prometheus-operator",
    ),
    "a missing secret": ({"missing": (("Secret", "moray-ray"),)}, "namespace serving", "no Secret 'moray-ray'"),
    "a missing claim": ({"missing": (("PersistentVolumeClaim", "m"),)}, "namespace serving", "no Persistent"),
    "no PodMonitor": ({"monitors": 0}, "namespace serving", "no PodMonitor"),
    "no PrometheusRule": ({"rules": 0}, "namespace serving", "no PrometheusRule"),
    "a stuck pod": ({"stuck": {"w-1": "Pending: Unschedulable"}}, "pod w-1", "Unschedulable"),
    "a misspelt cell": ({"nodes": (node("a", cell="h2000-0"), node("b", cell="h200-1"))}, "node a", "is h200-0 meant"),
    "a misspelt label": (
        {"nodes": (replace(node("a"), labels={"moray/cel": "h200-0"}), node("b"))},
        "node a",
        "moray/cel-",
    ),
    "a node that is not ready": ({"nodes": (node("a"), node("b", ready=False))}, "node b", "is not ready"),
    "too few nodes": ({"nodes": (node("a"),)}, "cells.h200", "nodes for 1 of them"),
    "too small a node": ({"nodes": (node("a"), node("b", gpus=4))}, "cells.h200", "expected 2 of 8 GPUs"),
    "a misspelt group": (served(groups=(group("g", cell="h20"),)), "RayService moray, worker group g", "is h200 meant"),
    "too small a group": (served(groups=(group("g", most=1),)), "RayService moray, cells.h200", "for 1 of them"),
    "a selector of no node": (
        {"nodes": (node("a", gpu="yes"), node("b", gpu="yes")), **served(groups=(group("g", gpu="yess"),))},
        "RayService moray, worker group g",
        "is gpu=yes meant",
    ),
}


@pytest.mark.parametrize("fault", KUBERNETES_FAULTS)
def test_a_fault_of_a_cluster_is_one_finding_that_names_it(fault: str) -> None:
    changed, where, words = KUBERNETES_FAULTS[fault]
    (found,) = of_kubernetes(**changed)
    assert found.where == where
    assert words in str(found)
    assert found.mend


@pytest.mark.parametrize(
    "nodes",
    [
        (node("a"), node("b")),
        (node("a", cell="h200"), node("b", cell="h200")),
        (node("a", cell="h200-0", gpus=4), node("b", cell="h200-0", gpus=4), node("c", cell="h200-1")),
        (node("a"), node("b", cell="h200-1"), node("head", gpus=0)),
    ],
    ids=["without labels", "of the kind", "two of one cell", "mixed"],
)
def test_nodes_may_say_their_cell_their_kind_or_nothing(nodes: tuple[KubeNode, ...]) -> None:
    assert of_kubernetes(nodes=nodes) == ()


def test_a_family_without_gpus_asks_nothing_of_nodes() -> None:
    assert findings(LAPTOP, Observed(kubernetes=kubernetes(services=None, nodes=(node("a", gpus=0),)))) == ()


def test_what_kept_somebody_from_looking_comes_first() -> None:
    trouble = Finding(where="gateway", found="refused", expected="an answer", mend="start it")
    found = findings(H200, Observed(kubernetes=kubernetes(rules=0), troubles=(trouble,)))
    assert found[0] == trouble
    assert str(trouble) == "gateway: refused; expected an answer; start it"
    assert len(found) == 2
