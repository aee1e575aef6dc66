"""A stand-in of the Kubernetes API, in memory, for kubectl and for clients of ours.

It has discovery, GET of one and of a list, POST, server-side apply, `dryRun`, Status errors, a token where one is
asked for, and answers with metadata alone where a client asks so. What it is not: an API server. Apply replaces the
object and keeps its status: nothing is merged, no fields have owners. Nothing is defaulted, converted or collected, no
admission, no RBAC, no CEL, no OpenAPI (so `kubectl --validate=false`), no watches, selectors, PUT or DELETE, no
subresources; a namespace needs not exist. That a manifest passes here does not say that a cluster takes it.
"""

import contextlib
import json
import ssl
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

Object = dict[str, Any]
Check = Callable[[Object], Sequence[str]]
APPLY = "application/apply-patch+yaml"
CREATED_AT = "2026-01-01T00:00:00Z"
UNKNOWN_QUERIES = {"watch", "labelSelector", "fieldSelector", "continue"}


@dataclass(frozen=True, slots=True)
class Kind:
    plural: str
    name: str
    namespaced: bool = True


KINDS: Mapping[str, Sequence[Kind]] = {
    "v1": (
        Kind("nodes", "Node", False),
        Kind("namespaces", "Namespace", False),
        Kind("pods", "Pod"),
        Kind("services", "Service"),
        Kind("secrets", "Secret"),
        Kind("configmaps", "ConfigMap"),
        Kind("serviceaccounts", "ServiceAccount"),
        Kind("persistentvolumeclaims", "PersistentVolumeClaim"),
    ),
    "apps/v1": (Kind("deployments", "Deployment"), Kind("statefulsets", "StatefulSet")),
    "policy/v1": (Kind("poddisruptionbudgets", "PodDisruptionBudget"),),
    "networking.k8s.io/v1": (Kind("networkpolicies", "NetworkPolicy"), Kind("ingresses", "Ingress")),
    "rbac.authorization.k8s.io/v1": (Kind("roles", "Role"), Kind("rolebindings", "RoleBinding")),
    "ray.io/v1": (Kind("rayservices", "RayService"), Kind("rayclusters", "RayCluster"), Kind("rayjobs", "RayJob")),
    "monitoring.coreos.com/v1": (
        Kind("podmonitors", "PodMonitor"),
        Kind("servicemonitors", "ServiceMonitor"),
        Kind("prometheusrules", "PrometheusRule"),
    ),
}


class Refused(Exception):
    """Becomes a Status object."""

    def __init__(self, code: int, reason: str, message: str, causes: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.status = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "details": {"causes": [{"message": cause} for cause in causes]},
            "code": code,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a path names. `namespace` and `name` are empty where it has none."""

    version: str
    kind: Kind
    namespace: str
    name: str


class ApiStandIn:
    """`check`: the faults of an object that a client wants to write, none where it is right.

    `refuses`: codes by beginning of a path, such as {"/api/v1/nodes": 403}.
    """

    def __init__(
        self, check: Check = lambda _: (), token: str | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self.check = check
        self.token = token
        self.refuses: dict[str, int] = {}
        self.requests: list[str] = []  # "METHOD /path", in order
        self._kinds = dict(KINDS)
        self._objects: dict[tuple[str, str, str, str], Object] = {}
        self._written = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def without(self, version: str) -> None:
        """As a cluster where these custom resources are not installed."""
        del self._kinds[version]

    def put(self, *objects: Object) -> None:
        """As if somebody had written them, unchecked; a status is kept as given."""
        for given in objects:
            kind = next(kind for kind in self._kinds[given["apiVersion"]] if kind.name == given["kind"])
            self._store(self._target(given["apiVersion"], kind, given), given)

    def objects(self, kind: str) -> list[Object]:
        with self._lock:
            return [deepcopy(one) for one in self._objects.values() if one["kind"] == kind]

    def kubeconfig(self, folder: Path, namespace: str = "default") -> Path:
        """A file for `kubectl --kubeconfig`, with the token if there is one; on HTTP kubectl does not send it."""
        file = folder / "kubeconfig"
        user = {} if self.token is None else {"token": self.token}
        context = {"cluster": "stand-in", "user": "tester", "namespace": namespace}
        raw = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "stand-in",
            "contexts": [{"name": "stand-in", "context": context}],
            "clusters": [{"name": "stand-in", "cluster": {"server": self.url}}],
            "users": [{"name": "tester", "user": user}],
        }
        file.write_text(yaml.safe_dump(raw), encoding="utf-8")
        return file

    def answer(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Object]:
        path, query = urlsplit(url).path.rstrip("/"), parse_qs(urlsplit(url).query)
        self.requests.append(f"{method} {path}")
        self._admit(path, query, headers)
        if method == "GET" and (found := self._discovery(path)) is not None:
            return 200, found
        target = self._routed(path)
        if method == "GET":
            return 200, _shown(self._got(target), headers.get("Accept", ""))
        given = yaml.safe_load(body)  # JSON is YAML
        dry = "dryRun" in query
        if method == "POST" and not target.name:
            return 201, self._created(target, given, dry)
        if method == "PATCH" and target.name:
            if headers.get("Content-Type") != APPLY:
                raise Refused(415, "UnsupportedMediaType", f"only {APPLY} is understood here")
            return self._applied(target, given, dry)
        raise Refused(405, "MethodNotAllowed", f"{method} is not understood here")

    def _admit(self, path: str, query: Mapping[str, object], headers: Mapping[str, str]) -> None:
        if self.token is not None and headers.get("Authorization") != f"Bearer {self.token}":
            raise Refused(401, "Unauthorized", "Unauthorized")
        for beginning, code in self.refuses.items():
            if path.startswith(beginning):
                reason = {401: "Unauthorized", 403: "Forbidden"}.get(code, "InternalError")
                raise Refused(code, reason, f"{path}: the test refuses it")
        if unknown := UNKNOWN_QUERIES & query.keys():
            raise Refused(400, "BadRequest", f"{', '.join(sorted(unknown))}: not understood here")

    def _discovery(self, path: str) -> Object | None:
        if path == "/version":
            return {"major": "1", "minor": "32", "gitVersion": "v1.32.0-stand-in"}
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            groups = [_group(version) for version in self._kinds if "/" in version]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
        version = path.removeprefix("/apis/").removeprefix("/api/")
        if version not in self._kinds:
            return None
        resources = [
            {
                "name": kind.plural,
                "singularName": kind.name.lower(),
                "namespaced": kind.namespaced,
                "kind": kind.name,
                "verbs": ["create", "get", "list", "patch"],
            }
            for kind in self._kinds[version]
        ]
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}

    def _routed(self, path: str) -> Target:
        for version, kinds in self._kinds.items():
            root = f"/apis/{version}/" if "/" in version else f"/api/{version}/"
            if not path.startswith(root):
                continue
            parts = path.removeprefix(root).split("/")
            namespace = parts[1] if parts[0] == "namespaces" and len(parts) > 2 else ""
            plural, *name = parts[2:] if namespace else parts
            kind = next((kind for kind in kinds if kind.plural == plural), None)
            if kind is not None and len(name) < 2:
                return Target(version=version, kind=kind, namespace=namespace, name="".join(name))
        raise Refused(404, "NotFound", "the server could not find the requested resource")

    def _target(self, version: str, kind: Kind, given: Object) -> Target:
        metadata = given["metadata"]
        namespace = metadata.get("namespace", "default") if kind.namespaced else ""
        return Target(version=version, kind=kind, namespace=namespace, name=metadata["name"])

    def _got(self, target: Target) -> Object:
        with self._lock:
            if target.name:
                return deepcopy(self._known(target))
            items = [
                deepcopy(one)
                for (version, plural, namespace, _), one in sorted(self._objects.items())
                if (version, plural) == (target.version, target.kind.plural) and target.namespace in ("", namespace)
            ]
            listed = {"resourceVersion": str(self._written)}
        kind = f"{target.kind.name}List"
        return {"kind": kind, "apiVersion": target.version, "metadata": listed, "items": items}

    def _known(self, target: Target) -> Object:
        found = self._objects.get(_key(target))
        if found is None:
            raise Refused(404, "NotFound", f'{target.kind.plural} "{target.name}" not found')
        return found

    def _created(self, target: Target, given: object, dry: bool) -> Object:
        checked = self._checked(target, given)
        named = self._target(
            target.version,
            target.kind,
            {"metadata": {"namespace": target.namespace or "default"} | checked["metadata"]},
        )
        if _key(named) in self._objects:
            raise Refused(409, "AlreadyExists", f'{named.kind.plural} "{named.name}" already exists')
        checked.pop("status", None)
        return self._store(named, checked, dry)

    def _applied(self, target: Target, given: object, dry: bool) -> tuple[int, Object]:
        checked = self._checked(target, given)
        old = self._objects.get(_key(target))
        checked.pop("status", None)
        if old is not None and "status" in old:
            checked["status"] = old["status"]
        return 201 if old is None else 200, self._store(target, checked, dry)

    def _checked(self, target: Target, given: object) -> Object:
        """What any API server demands of an object under this path, then what `check` demands."""
        if not isinstance(given, dict) or not isinstance(given.get("metadata"), dict):
            raise Refused(400, "BadRequest", "an object with metadata is needed")
        metadata = given["metadata"]
        if (given.get("apiVersion"), given.get("kind")) != (target.version, target.kind.name):
            raise Refused(400, "BadRequest", f"this path takes {target.version} {target.kind.name}")
        if target.name and metadata.get("name") != target.name:
            raise Refused(400, "BadRequest", "the name of the object differs from the name in the path")
        if metadata.get("namespace", target.namespace) != target.namespace:
            raise Refused(400, "BadRequest", "the namespace of the object differs from the namespace in the path")
        faults = list(self.check(given))
        if not isinstance(metadata.get("name"), str) or not metadata["name"]:
            faults.append("metadata/name: required")
        if faults:
            what = f'{target.kind.name} "{metadata.get("name", "")}" is invalid'
            raise Refused(422, "Invalid", f"{what}: {'; '.join(faults)}", faults)
        return deepcopy(given)

    def _store(self, target: Target, given: Object, dry: bool = False) -> Object:
        with self._lock:
            old = self._objects.get(_key(target), {"metadata": {}})["metadata"]
            stamped = {
                "uid": old.get("uid", str(uuid.uuid4())),
                "creationTimestamp": old.get("creationTimestamp", CREATED_AT),
                "resourceVersion": str(self._written + 1),
            }
            if target.namespace:
                stamped["namespace"] = target.namespace
            stored = deepcopy(given) | {"metadata": given["metadata"] | stamped}
            if not dry:
                self._written += 1
                self._objects[_key(target)] = stored
            return deepcopy(stored)


@contextlib.contextmanager
def api_stand_in(
    check: Check = lambda _: (), token: str | None = None, tls: ssl.SSLContext | None = None
) -> Iterator[ApiStandIn]:
    api = ApiStandIn(check, token, tls)
    try:
        yield api
    finally:
        api.close()


def _key(target: Target) -> tuple[str, str, str, str]:
    return target.version, target.kind.plural, target.namespace, target.name


def _group(version: str) -> Object:
    each = {"groupVersion": version, "version": version.partition("/")[2]}
    return {"name": version.partition("/")[0], "versions": [each], "preferredVersion": each}


def _shown(found: Object, accept: str) -> Object:
    """Without spec, data and status where only metadata is asked for."""
    if "as=PartialObjectMetadata" not in accept:
        return found
    if "items" in found:
        items = [_shown(item, accept) for item in found["items"]]
        return found | {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "items": items}
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": found["metadata"]}


def _handler(api: ApiStandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 5  # an idle connection must not keep a thread

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            try:
                code, answer = api.answer(self.command, self.path, dict(self.headers), body)
            except Refused as refused:
                code, answer = refused.code, refused.status
            sent = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(sent)

        do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _serve

        def log_message(self, format: str, *args: object) -> None:
            """`requests` tells it."""

    return Handler
