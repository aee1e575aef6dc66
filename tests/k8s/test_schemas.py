"""Every object of every overlay against the schema of its kind."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import celpy
import pytest
import yaml
from celpy.adapter import json_to_cel
from k8s.manifests import FAMILY_OF, K8S, Object, crd, kustomized, overlay, service_of, structural

OVERLAYS = sorted(FAMILY_OF)


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_object_of_an_overlay_obeys_its_schema(name: str) -> None:
    objects = overlay(name)
    assert {"RayService", "PodMonitor", "PrometheusRule", "ConfigMap"} <= {each["kind"] for each in objects}
    assert [fault for each in objects for fault in structural(each)] == []


def test_the_base_obeys_its_schemas_alone() -> None:
    objects = list(yaml.safe_load_all(kustomized(K8S / "base")))
    assert [fault for each in objects for fault in structural(each)] == []


def test_no_overlay_is_left_out() -> None:
    assert sorted(folder.name for folder in (K8S / "overlays").iterdir()) == OVERLAYS


def group(service: Object) -> Any:
    return service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]


def pod(service: Object) -> Any:
    return group(service)["template"]["spec"]


BREAKS: dict[str, Callable[[Object], object]] = {
    "a misspelt bound": lambda service: group(service).update(maxReplica=3),
    "a number as a text": lambda service: group(service).update(maxReplicas="3"),
    "a resource as a number": lambda service: group(service)["resources"].update(GPU=8),
    "an autoscaler of tomorrow": lambda service: service["spec"]["rayClusterConfig"]["autoscalerOptions"].update(
        version="v3"
    ),
    "a misspelt field of a container": lambda service: pod(service)["containers"][0].update(imagePullPolice="Always"),
    "memory of no unit": lambda service: pod(service)["containers"][0]["resources"]["limits"].update(memory="16Gx"),
    "a float in the environment": lambda service: pod(service)["containers"][0]["env"].append(
        {"name": "X", "value": 1e9}
    ),
    "no cluster": lambda service: service["spec"].pop("rayClusterConfig"),
    "a step without an interval": lambda service: service["spec"].update(
        upgradeStrategy={"type": "NewClusterWithIncrementalUpgrade", "clusterUpgradeOptions": {"gatewayClassName": "x"}}
    ),
}


@pytest.mark.parametrize("what", BREAKS)
def test_the_schema_of_a_ray_service_catches(what: str) -> None:
    service = service_of(overlay("h200"))
    BREAKS[what](service)
    assert structural(service)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("NetworkPolicy", "podSelectr", {}),
        ("PodDisruptionBudget", "minAvailabl", 1),
        ("PersistentVolumeClaim", "accessModes", "ReadWriteOnce"),
        ("PodMonitor", "podMetricsEndpoint", []),
        ("PrometheusRule", "groups", {}),
    ],
)
def test_the_schemas_of_other_kinds_catch_a_wrong_field(kind: str, path: str, value: object) -> None:
    given = next(each for each in overlay("h200") if each["kind"] == kind)
    given["spec"][path] = value
    assert structural(given)


def said(rule: str, now: str, before: str) -> bool:
    """What CEL makes of a rule about one field."""
    environment = celpy.Environment()
    given = {"self": json_to_cel(now), "oldSelf": json_to_cel(before)}
    return bool(environment.program(environment.compile(rule)).evaluate(given))


def test_the_rules_of_the_resource_itself_hold_for_who_manages_it() -> None:
    rules = crd("RayService")["properties"]["spec"]["properties"]["managedBy"]["x-kubernetes-validations"]
    assert len(rules) == 2

    def holds(now: str, before: str) -> bool:
        return all(said(rule["rule"], now, before) for rule in rules)

    kuberay, kueue = "ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"
    assert holds(kuberay, kuberay)
    assert not holds(kueue, kuberay)
    assert not holds("me", "me")


@pytest.mark.parametrize("name", OVERLAYS)
def test_no_overlay_gives_a_field_that_such_a_rule_is_about(name: str) -> None:
    spec = service_of(overlay(name))["spec"]
    assert "managedBy" not in spec
    assert "managedBy" not in spec["rayClusterConfig"]
    assert "backend" not in spec["rayClusterConfig"]["gcsFaultToleranceOptions"]


def with_component(name: str, folder: Path) -> list[Object]:
    """Of the overlay h200."""
    text = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["k8s/overlays/h200"],
        "components": [f"k8s/components/{name}"],
    }
    shutil.copytree(K8S, folder / "k8s")
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(text), encoding="utf-8")
    return list(yaml.safe_load_all(kustomized(folder)))


def test_a_component_ends_tls_for_what_asks_for_a_key_alone(tmp_path: Path) -> None:
    objects = with_component("tls", tmp_path)
    assert [fault for each in objects for fault in structural(each)] == []
    (ingress,) = [each for each in objects if each["kind"] == "Ingress"]
    (rule,) = ingress["spec"]["rules"]
    assert ingress["spec"]["tls"] == [{"hosts": [rule["host"]], "secretName": "moray-tls"}]
    assert {each["path"] for each in rule["http"]["paths"]} == {"/v1", "/openapi.json"}


def test_a_component_asks_kueue_for_the_gpus(tmp_path: Path) -> None:
    service = service_of(with_component("kueue", tmp_path))
    assert service["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "moray"
    assert structural(service) == []
