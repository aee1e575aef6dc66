"""kubectl itself takes the overlays to a stand-in of the API, which asks the schemas and the rules. No cluster does."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from k8s.api_stand_in import ApiStandIn, api_stand_in
from k8s.manifests import CRDS, FAMILY_OF, K8S, Object, kubectl, kustomized, overlay, service_of, structural, validator

from cluster.manifest_operator import SERVICE_RULES


@pytest.fixture(autouse=True)
def schemas() -> None:
    """Skips here where one is missing: the stand-in's threads could not."""
    for kind in CRDS:
        validator(kind)


def check(given: Object) -> list[str]:
    """Of a RayService that obeys its schema the operator's rules are asked, too."""
    rules = SERVICE_RULES if given["kind"] == "RayService" else ()
    return structural(given) or [fault for rule in rules for fault in rule(given)]


def kubectl_apply(api: ApiStandIn, folder: Path, text: str, *words: str) -> Any:
    file = folder / "objects.yaml"
    file.write_text(text, encoding="utf-8")
    command = [kubectl(), "--kubeconfig", str(api.kubeconfig(folder)), "apply", "--server-side", "--validate=false"]
    return subprocess.run([*command, *words, "-f", str(file)], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", FAMILY_OF)
def test_kubectl_applies_an_overlay_again_and_again(tmp_path: Path, name: str) -> None:
    text = kustomized(K8S / "overlays" / name)
    with api_stand_in(check) as api:
        for _ in range(2):
            done = kubectl_apply(api, tmp_path, text)
            assert done.returncode == 0, done.stderr
        assert api.objects("RayService")[0]["spec"] == service_of(overlay(name))["spec"]
        assert {each["metadata"]["namespace"] for each in api.objects("NetworkPolicy")} == {"moray"}


def test_a_dry_run_leaves_nothing(tmp_path: Path) -> None:
    with api_stand_in(check) as api:
        assert kubectl_apply(api, tmp_path, kustomized(K8S / "overlays" / "h200"), "--dry-run=server").returncode == 0
        assert api.objects("RayService") == []


def test_a_broken_service_is_refused_with_the_path_of_the_fault(tmp_path: Path) -> None:
    service = service_of(overlay("h200"))
    service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["maxReplicas"] = "two"
    with api_stand_in(check) as api:
        done = kubectl_apply(api, tmp_path, yaml.safe_dump(service))
        assert done.returncode == 1
        assert "workerGroupSpecs/0/maxReplicas" in done.stderr
        assert api.objects("RayService") == []


def test_a_cluster_without_the_operator_is_said(tmp_path: Path) -> None:
    with api_stand_in() as api:
        api.without("ray.io/v1")
        done = kubectl_apply(api, tmp_path, yaml.safe_dump(service_of(overlay("h200"))))
    assert done.returncode == 1
    assert "RayService" in done.stderr
