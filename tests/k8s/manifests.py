"""What the tests of manifests share: overlays as kubectl renders them, and the schemas of custom resources."""

import functools
import gzip
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema_rs
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
SCHEMAS = ROOT.parent / "shared" / "schemas"
KUBERNETES = "1.32"
CRDS = {
    "RayService": "rayservices-1.7.0.yaml.gz",
    "PodMonitor": "podmonitors.yaml.gz",
    "PrometheusRule": "prometheusrules.yaml.gz",
}
FAMILY_OF = {"single-node": "laptop", "h200": "h200", "spot": "h200"}
MOST = 2**31 - 1

Object = dict[str, Any]


def kubectl() -> str:
    found = shutil.which("kubectl")
    if found is None:
        pytest.skip("kubectl is missing: install kubernetes-client of Debian, or kubectl")
    return found


@functools.cache
def kustomized(folder: Path) -> str:
    done = subprocess.run([kubectl(), "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def overlay(name: str) -> list[Object]:
    """Its objects, fresh: tests break them."""
    return list(yaml.safe_load_all(kustomized(K8S / "overlays" / name)))


def service_of(objects: list[Object]) -> Object:
    return next(each for each in objects if each["kind"] == "RayService")


@functools.cache
def crd(kind: str) -> Object:
    """The openAPIV3Schema of the stored version."""
    file = SCHEMAS / CRDS[kind]
    if not file.is_file():
        pytest.skip(f"{file} is missing: the CustomResourceDefinition of {kind}, from its project's release")
    raw = yaml.load(gzip.decompress(file.read_bytes()), Loader=yaml.CSafeLoader)
    stored = next(version for version in raw["spec"]["versions"] if version["storage"])
    schema: Object = stored["schema"]["openAPIV3Schema"]
    return schema


@functools.cache
def validator(kind: str) -> Any:
    schema = strict(crd(kind))
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema_rs.validator_for(schema)


def strict(schema: Any) -> Any:
    """A structural schema as JSON Schema that refuses what the API server would prune."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made: Object = {key: _below(key, value) for key, value in schema.items() if not key.startswith("x-")}
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if _closed(schema):
        made["additionalProperties"] = False
    if schema.get("nullable") and "type" in made:
        made["type"] = [made["type"], "null"]
    return made


def _below(key: str, value: Any) -> Any:
    if key == "properties":
        return {name: strict(each) for name, each in value.items()}
    return strict(value) if key in ("items", "additionalProperties", "not") else value


def _closed(schema: Object) -> bool:
    listed = "properties" in schema and "additionalProperties" not in schema
    return schema.get("type") == "object" and listed and not schema.get("x-kubernetes-preserve-unknown-fields")


def structural(given: Object) -> list[str]:
    """What a strict API server would refuse: of a custom resource by its schema, of others by Kubernetes' own."""
    if given["kind"] not in CRDS:
        try:
            kubernetes_validate.validate(given, KUBERNETES, strict=True)
        except (kubernetes_validate.ValidationError, kubernetes_validate.utils.SchemaNotFoundError) as error:
            return [f"{given['kind']}: {error}"]
        return []
    return [
        f"{'/'.join(map(str, fault.instance_path))}: {fault.message}"
        for fault in validator(given["kind"]).iter_errors(_defaulted(given))
    ]


def _defaulted(given: Any) -> Any:
    """As the API server completes it before it looks: no nulls, and bounds of each group."""
    if isinstance(given, list):
        return [_defaulted(each) for each in given]
    if not isinstance(given, dict):
        return given
    made = {key: _defaulted(value) for key, value in given.items() if value is not None}
    for group in made.get("workerGroupSpecs", ()):
        group.setdefault("minReplicas", 0)
        group.setdefault("maxReplicas", MOST)
    return made
