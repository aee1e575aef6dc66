"""The operator's own rules, and ours: each overlay keeps them, and each rule catches what breaks it."""

from collections.abc import Callable
from typing import Any

import pytest
from k8s.manifests import FAMILY_OF, Object, overlay, service_of

from cluster.family import load
from cluster.manifest_operator import LONGEST_NAME, SERVICE_RULES
from cluster.manifest_rules import faults

H200 = load("h200", serving=False)


@pytest.mark.parametrize(("name", "family"), FAMILY_OF.items())
def test_every_overlay_keeps_every_rule(name: str, family: str) -> None:
    assert faults(load(family, serving=False), overlay(name)) == []


def cluster(service: Object) -> Any:
    return service["spec"]["rayClusterConfig"]


def head(service: Object) -> Any:
    return cluster(service)["headGroupSpec"]


def worker(service: Object) -> Any:
    return cluster(service)["workerGroupSpecs"][0]


def incremental(**changes: Any) -> dict[str, Any]:
    options = {"gatewayClassName": "istio", "stepSizePercent": 10, "intervalSeconds": 60, "maxSurgePercent": 25}
    kind = "NewClusterWithIncrementalUpgrade"
    return {"upgradeStrategy": {"type": kind, "clusterUpgradeOptions": options | changes}}


def environment(group: Any, name: str) -> None:
    group["template"]["spec"]["containers"][0]["env"].append({"name": name, "value": "1"})


def without(service: Object, key: str) -> Object:
    del cluster(service)[key]
    return service


BREAKS: dict[str, tuple[str, Callable[[Object], object]]] = {
    "a name that is no label": ("name", lambda service: service["metadata"].update(name="Moray_1")),
    "a name too long": ("name", lambda service: service["metadata"].update(name="m" * (LONGEST_NAME + 1))),
    "a timeout that is none": (
        "timeout",
        lambda service: service["metadata"].update(annotations={"ray.io/initializing-timeout": "soon"}),
    ),
    "no time at all": (
        "timeout",
        lambda service: service["metadata"].update(annotations={"ray.io/initializing-timeout": "0s"}),
    ),
    "an upgrade of no kind": ("upgrade", lambda service: service["spec"].update(upgradeStrategy={"type": "Blue"})),
    "an upgrade of the cluster": ("upgrade", lambda service: cluster(service).update(upgradeStrategy={})),
    "a step above the surge": ("incremental", lambda service: service["spec"].update(incremental(stepSizePercent=30))),
    "a surge above all": ("incremental", lambda service: service["spec"].update(incremental(maxSurgePercent=101))),
    "no gateway": ("incremental", lambda service: service["spec"].update(incremental(gatewayClassName=""))),
    "a negative interval": ("incremental", lambda service: service["spec"].update(incremental(intervalSeconds=-1))),
    "an increment without an autoscaler": (
        "incremental",
        lambda service: (
            service["spec"].update(incremental()),
            cluster(service).update(enableInTreeAutoscaling=False),
        ),
    ),
    "pods of nothing": ("pods", lambda service: worker(service)["template"]["spec"].update(containers=[])),
    "a resource given twice": (
        "resources_once",
        lambda service: worker(service)["rayStartParams"].update({"num-gpus": "8"}),
    ),
    "another resource among parameters": (
        "resources_once",
        lambda service: head(service)["rayStartParams"].update({"memory": "1"}),
    ),
    "a label too long": ("labels", lambda service: worker(service)["labels"].update({"moray/cell": "c" * 64})),
    "a label of no name": ("labels", lambda service: worker(service)["labels"].update({"Moray/cell": "c"})),
    "labels among parameters": (
        "resources_once",
        lambda service: worker(service)["rayStartParams"].update(labels="a=b"),
    ),
    "Redis given by an annotation": (
        "storage_once",
        lambda service: service["metadata"].update(annotations={"ray.io/ft-enabled": "true"}),
    ),
    "Redis given by the environment": (
        "storage_once",
        lambda service: environment(head(service), "RAY_REDIS_ADDRESS"),
    ),
    "Redis' password among parameters": (
        "storage_once",
        lambda service: head(service)["rayStartParams"].update({"redis-password": "x"}),
    ),
    "one storage for two clusters": (
        "storage_once",
        lambda service: cluster(service)["gcsFaultToleranceOptions"].update(externalStorageNamespace="moray"),
    ),
    "a password in clear": (
        "storage_once",
        lambda service: cluster(service)["gcsFaultToleranceOptions"].update(redisPassword={"value": "x"}),
    ),
    "a storage behind a gate": (
        "storage_once",
        lambda service: cluster(service)["gcsFaultToleranceOptions"].update(backend="rocksdb"),
    ),
    "a disk for Redis": (
        "storage_once",
        lambda service: cluster(service)["gcsFaultToleranceOptions"].update(storage={"size": "1Gi"}),
    ),
    "Redis without its options": (
        "storage_said",
        lambda service: environment(head(without(service, "gcsFaultToleranceOptions")), "RAY_REDIS_ADDRESS"),
    ),
    "a user of Redis": ("storage_said", lambda service: environment(head(service), "REDIS_USERNAME")),
    "pods restarted beside the autoscaler": (
        "autoscaler",
        lambda service: worker(service)["template"]["spec"].update(restartPolicy="Always"),
    ),
    "an autoscaler chosen twice": (
        "autoscaler",
        lambda service: environment(head(service), "RAY_enable_autoscaler_v2"),
    ),
    "an autoscaler chosen and not there": (
        "autoscaler",
        lambda service: environment(head(without(service, "enableInTreeAutoscaling")), "RAY_enable_autoscaler_v2"),
    ),
    "the operator's command": (
        "autoscaler",
        lambda service: cluster(service)["autoscalerOptions"].update(
            env=[{"name": "KUBERAY_GEN_AUTOSCALER_START_CMD", "value": "x"}]
        ),
    ),
    "times of the first autoscaler": ("second", lambda service: cluster(service)["autoscalerOptions"].pop("version")),
    "a priority before its time": (
        "second",
        lambda service: (cluster(service).update(rayVersion="2.55.1"), worker(service).update(priority=3)),
    ),
    "idle for less than nothing": ("idle", lambda service: worker(service).update(idleTimeoutSeconds=-1)),
    "a suspended group": ("bounds", lambda service: worker(service).update(suspend=True)),
    "fewer than none": ("bounds", lambda service: worker(service).update(minReplicas=-1)),
    "more at least than at most": ("bounds", lambda service: worker(service).update(minReplicas=3)),
    "no token": ("token", lambda service: cluster(service).pop("authOptions")),
    "a token of no Secret": ("token", lambda service: cluster(service)["authOptions"].pop("secretName")),
    "a token of Kubernetes": ("token", lambda service: cluster(service)["authOptions"].update(enableK8sTokenAuth=True)),
    "a Ray before tokens": ("token", lambda service: cluster(service).update(rayVersion="2.51.1")),
    "a name for the head's service": (
        "head_service",
        lambda service: head(service).update(headService={"metadata": {"name": "mine"}}),
    ),
    "policies behind a gate": ("gated", lambda service: cluster(service).update(networkPolicy={"mode": "DenyAll"})),
    "a history behind a gate": ("gated", lambda service: cluster(service).update(historyServerOptions={})),
    "certificates behind a gate": ("gated", lambda service: cluster(service).update(tlsOptions={"enabled": True})),
}


@pytest.mark.parametrize("what", BREAKS)
def test_one_rule_alone_catches(what: str) -> None:
    service = service_of(overlay("h200"))
    rule, breaks = BREAKS[what]
    breaks(service)
    assert {each.__name__ for each in SERVICE_RULES if list(each(service))} == {rule}


def test_every_rule_is_broken_by_a_test() -> None:
    assert {each.__name__ for each in SERVICE_RULES} == {rule for rule, _ in BREAKS.values()}


def test_an_incremental_upgrade_that_has_all_it_needs_is_allowed() -> None:
    objects = overlay("h200")
    service_of(objects)["spec"].update(incremental())
    assert faults(H200, objects) == []


def the(kind: str, objects: list[Object]) -> Object:
    return next(each for each in objects if each["kind"] == kind)


AGAINST_FAMILY: dict[str, tuple[str, Callable[[list[Object]], object]]] = {
    "a misspelt cell": (
        "moray/cell is 'h2000'; h200 are cells",
        lambda objects: worker(service_of(objects))["labels"].update({"moray/cell": "h2000"}),
    ),
    "no label": ("moray/cell is None", lambda objects: worker(service_of(objects)).pop("labels")),
    "no group": ("no group of workers", lambda objects: cluster(service_of(objects)).update(workerGroupSpecs=[])),
    "too few pods": ("2 are in the family; raise", lambda objects: worker(service_of(objects)).update(maxReplicas=1)),
    "too few GPUs": (
        "cells.h200 has 8; raise it",
        lambda objects: worker(service_of(objects))["resources"].update(GPU="4"),
    ),
    "a limit below what Ray is told": (
        "a limit of 4 for nvidia.com/gpu; 8 are",
        lambda objects: worker(service_of(objects))["template"]["spec"]["containers"][0]["resources"]["limits"].update(
            {"nvidia.com/gpu": "4"}
        ),
    ),
    "another namespace": (
        "default: RayService moray",
        lambda objects: service_of(objects)["metadata"].update(namespace="default"),
    ),
    "no family": ("which is not here", lambda objects: objects.remove(the("ConfigMap", objects))),
    "no account": ("ServiceAccount 'moray-head'", lambda objects: objects.remove(the("ServiceAccount", objects))),
    "no state": (
        "PersistentVolumeClaim 'moray-state'",
        lambda objects: objects.remove(the("PersistentVolumeClaim", objects)),
    ),
    "a secret among manifests": (
        "secrets are kept out",
        lambda objects: objects.append({"kind": "Secret", "metadata": {"name": "moray-ray", "namespace": "moray"}}),
    ),
    "no service": ("0 objects of kind RayService", lambda objects: objects.remove(service_of(objects))),
}


@pytest.mark.parametrize("what", AGAINST_FAMILY)
def test_manifests_are_held_against_the_family(what: str) -> None:
    objects = overlay("h200")
    told, breaks = AGAINST_FAMILY[what]
    breaks(objects)
    found = faults(H200, objects)
    assert any(told in fault for fault in found), found
    assert all(fault.count(";") >= 2 or "which is not here" in fault or "no group" in fault for fault in found)
