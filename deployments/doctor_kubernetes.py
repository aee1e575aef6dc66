"""Looks at a Kubernetes API: nodes, the RayServices of a namespace, and whether what they refer to is there.

Of secrets only the metadata is asked for: their values never come here.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import httpx

from cluster.doctor_kubernetes import KubeNode, Kubernetes, Service, WorkerGroup
from cluster.finding import Finding
from cluster.placement import CELL_LABEL, CPU_RESOURCE
from deployments.doctor_access import PATIENCE_S, Access
from deployments.doctor_gateway import first_line

RAY, MONITORING = "ray.io/v1", "monitoring.coreos.com/v1"
GPU = "nvidia.com/gpu"
METADATA = "application/json;as={};g=meta.k8s.io;v=v1"
WAITS = ("Pending", "Unknown", "Failed")
T = TypeVar("T")
Object = Mapping[str, Any]
PLURALS = {"Secret": "secrets", "ConfigMap": "configmaps", "PersistentVolumeClaim": "persistentvolumeclaims"}


class Unreachable(Exception):
    """Nothing can be asked. `finding` says why."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding


class _Refused(Exception):
    """This one thing cannot be asked."""


@dataclass(frozen=True, slots=True)
class Looked:
    kubernetes: Kubernetes | None
    troubles: tuple[Finding, ...]


def look(access: Access, namespace: str, ray_version: str) -> Looked:
    """The namespace and the nodes. What may not be asked is a trouble, and the rest is looked at."""
    with access.client:
        try:
            return _looked(_Api(access), namespace, ray_version)
        except Unreachable as error:
            return Looked(None, (error.finding,))


@dataclass(slots=True)
class _Api:
    access: Access
    troubles: list[Finding] = field(default_factory=list)

    def get(self, path: str, *, metadata: str = "") -> Any:
        """None where it is not there. `metadata`: the kind of an answer without anything else.

        Raises Unreachable; _Refused, having noted it.
        """
        answer = self._answer(path, {"Accept": METADATA.format(metadata)} if metadata else {})
        match answer.status_code:
            case 404:
                return None
            case 401:
                raise Unreachable(self._trouble("401: it does not know who asks", "renew the token of --kubeconfig"))
            case 403:
                self.troubles.append(self._trouble(f"403: {path} may not be read", _allow(path)))
                raise _Refused
            case code if code != 200:
                self.troubles.append(self._trouble(f"{path} answers {code}", "ask again later"))
                raise _Refused
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise Unreachable(self._trouble("answers no JSON object", "mend server of --kubeconfig"))
        return found

    def _answer(self, path: str, headers: Mapping[str, str]) -> httpx.Response:
        """Raises Unreachable."""
        try:
            return self.access.client.get(path, headers=headers)
        except httpx.TimeoutException as error:
            found, mend = f"no answer within {PATIENCE_S:g} s", "look whether the network lets you there"
            raise Unreachable(self._trouble(found, mend)) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            mend = "mend server and certificate-authority of --kubeconfig, or start the cluster"
            raise Unreachable(self._trouble(first_line(error), mend)) from error

    def _trouble(self, found: str, mend: str) -> Finding:
        where = f"Kubernetes {self.access.server}"
        return Finding(where=where, found=found, expected="an API that may be read", mend=mend)

    def items(self, path: str, *, metadata: bool = False) -> list[Any]:
        """None of what is not installed."""
        listed = self.get(path, metadata="PartialObjectMetadataList" if metadata else "")
        return [] if listed is None else listed.get("items") or []

    def there(self, path: str) -> bool:
        return self.get(path, metadata="PartialObjectMetadata") is not None

    def asked(self, question: Callable[[], T], otherwise: T) -> T:
        try:
            return question()
        except _Refused:
            return otherwise


def _allow(path: str) -> str:
    """`/apis/GROUP/VERSION/namespaces/NS/PLURAL/NAME`, shorter for the core and for what has no namespace."""
    parts = path.strip("/").split("/")[2 if path.startswith("/api/") else 3 :]
    plural = parts[2] if len(parts) > 2 and parts[0] == "namespaces" else parts[0]
    return f"let the user read it: kubectl create clusterrole moray-doctor --verb=get,list --resource={plural}"


def _looked(api: _Api, namespace: str, ray_version: str) -> Looked:
    here = f"namespaces/{namespace}"
    absent = tuple(each for each in (RAY, MONITORING) if not api.asked(partial(api.there, f"/apis/{each}"), True))
    raw = api.asked(lambda: api.items(f"/apis/{RAY}/{here}/rayservices"), None)
    seen = Kubernetes(
        namespace=namespace,
        ray_version=ray_version,
        nodes=api.asked(lambda: tuple(map(_node, api.items("/api/v1/nodes"))), None),
        services=None if raw is None else tuple(map(_service, raw)),
        elsewhere=() if raw is None or raw else api.asked(lambda: _elsewhere(api), ()),
        absent=absent,
        missing=tuple(_missing(api, namespace, raw or [])),
        monitors=api.asked(lambda: len(api.items(f"/apis/{MONITORING}/{here}/podmonitors", metadata=True)), None),
        rules=api.asked(lambda: len(api.items(f"/apis/{MONITORING}/{here}/prometheusrules", metadata=True)), None),
        stuck=api.asked(lambda: dict(_stuck(api.items(f"/api/v1/{here}/pods"))), {}),
    )
    return Looked(seen, tuple(api.troubles))


def _elsewhere(api: _Api) -> tuple[str, ...]:
    """Namespaces that have a RayService."""
    everywhere = api.items(f"/apis/{RAY}/rayservices", metadata=True)
    return tuple(dict.fromkeys(each["metadata"]["namespace"] for each in everywhere))


def _node(raw: Object) -> KubeNode:
    conditions = raw.get("status", {}).get("conditions", ())
    ready = all(each["status"] == "True" for each in conditions if each["type"] == "Ready")
    gpus = int(raw.get("status", {}).get("allocatable", {}).get(GPU, 0))
    labels = raw["metadata"].get("labels") or {}
    return KubeNode(name=raw["metadata"]["name"], gpus=gpus, labels=labels, ready=ready)


def _service(raw: Object) -> Service:
    cluster = raw.get("spec", {}).get("rayClusterConfig") or {}
    return Service(
        name=raw["metadata"]["name"],
        unready=_unready(raw.get("status", {}).get("conditions") or ()),
        ray_version=cluster.get("rayVersion", ""),
        groups=tuple(map(_group, cluster.get("workerGroupSpecs") or ())),
    )


def _unready(conditions: Iterable[Object]) -> str:
    ready = next((each for each in conditions if each["type"] == "Ready"), None)
    if ready is None:
        return "has no condition Ready yet: no operator has seen it"
    told = ": ".join(filter(None, (ready.get("reason"), ready.get("message"))))
    return "" if ready["status"] == "True" else f"is not ready: {told or 'no reason is told'}"


def _group(raw: Object) -> WorkerGroup:
    selector = raw.get("template", {}).get("spec", {}).get("nodeSelector") or {}
    resources = raw.get("resources") or {}
    gpus = resources.get("GPU") or resources.get(CPU_RESOURCE) or 0
    return WorkerGroup(
        name=raw.get("groupName", ""),
        cell=(raw.get("labels") or {}).get(CELL_LABEL, selector.get(CELL_LABEL)),
        gpus=int(gpus),
        most=raw.get("maxReplicas", 0) * raw.get("numOfHosts", 1),
        selector=selector,
    )


def _missing(api: _Api, namespace: str, services: Iterable[Object]) -> Iterator[tuple[str, str]]:
    needed = dict.fromkeys(need for service in services for need in _needs(service.get("spec", {})))
    for kind, name in needed:
        path = f"/api/v1/namespaces/{namespace}/{PLURALS[kind]}/{name}"
        if not api.asked(partial(api.there, path), True):
            yield kind, name


def _needs(spec: object) -> Iterator[tuple[str, str]]:
    """What a spec refers to by name, as (kind, name), wherever in it; not what it calls optional."""
    if isinstance(spec, list):
        for each in spec:
            yield from _needs(each)
    if not isinstance(spec, dict):
        return
    for key, value in spec.items():
        for one in value if key == "imagePullSecrets" else (value,):
            name = _named(key, one)
            if name is not None:
                yield name
        yield from _needs(value)


NAMES = {
    "secretKeyRef": ("Secret", "name"),
    "secretRef": ("Secret", "name"),
    "imagePullSecrets": ("Secret", "name"),
    "secret": ("Secret", "secretName"),
    "authOptions": ("Secret", "secretName"),
    "configMapKeyRef": ("ConfigMap", "name"),
    "configMapRef": ("ConfigMap", "name"),
    "configMap": ("ConfigMap", "name"),
    "persistentVolumeClaim": ("PersistentVolumeClaim", "claimName"),
}  # kind and field of the name, by the key of a reference


def _named(key: str, value: object) -> tuple[str, str] | None:
    if key not in NAMES or not isinstance(value, dict) or value.get("optional"):
        return None
    kind, where = NAMES[key]
    return (kind, value[where]) if isinstance(value.get(where), str) else None


def _stuck(pods: Iterable[Object]) -> Iterator[tuple[str, str]]:
    for pod in pods:
        status = pod.get("status", {})
        waiting = [told for each in status.get("containerStatuses") or () if (told := each["state"].get("waiting"))]
        unscheduled = [
            each
            for each in status.get("conditions") or ()
            if each["type"] == "PodScheduled" and each["status"] == "False"
        ]
        told = next(iter((*unscheduled, *waiting)), None)
        if told is not None or status.get("phase") in WAITS:
            words = ": ".join(filter(None, (told.get("reason"), told.get("message")))) if told else ""
            yield pod["metadata"]["name"], f"{status.get('phase', 'Pending')}: {words or 'no reason is told'}"
