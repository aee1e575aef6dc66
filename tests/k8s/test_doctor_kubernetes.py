"""The doctor's look at a Kubernetes API, at the stand-in: what it sees, what it may not see, and whom it asks how."""

import base64
import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from integration.server import free_port
from k8s.api_stand_in import ApiStandIn, api_stand_in
from k8s.manifests import FAMILY_OF, overlay, service_of

from cluster.doctor import Observed, findings
from cluster.errors import ConfigurationError
from cluster.family import load
from cluster.placement import CELL_LABEL
from deployments import doctor_access
from deployments.cli import main
from deployments.doctor_access import access
from deployments.doctor_kubernetes import Looked, look

FAMILY = load("h200", serving=False)
RAY = "2.60.0"
Object = dict[str, Any]


def thing(version: str, kind: str, name: str, namespace: str = "serving", **rest: Any) -> Object:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": namespace}} | rest


def node(name: str, labels: dict[str, str]) -> Object:
    metadata = {"name": name, "labels": labels}
    status = {"allocatable": {"nvidia.com/gpu": "8"}, "conditions": [{"type": "Ready", "status": "True"}]}
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "status": status}


def service(namespace: str = "serving", ready: str = "True") -> Object:
    """With references to secrets, a claim and a configuration, as a RayService has them."""
    pod = {
        "containers": [{"env": [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "k"}}}]}],
        "imagePullSecrets": [{"name": "registry"}],
        "volumes": [
            {"name": "family", "configMap": {"name": "family"}},
            {"name": "models", "persistentVolumeClaim": {"claimName": "models"}},
            {"name": "extra", "secret": {"secretName": "extra", "optional": True}},
        ],
    }
    group = {
        "groupName": "h200",
        "maxReplicas": 2,
        "labels": {CELL_LABEL: "h200"},
        "resources": {"GPU": "8"},
        "template": {"spec": pod},
    }
    cluster = {"rayVersion": RAY, "authOptions": {"secretName": "ray"}, "workerGroupSpecs": [group]}
    condition = {"type": "Ready", "status": ready, "reason": "NoHead", "message": "the head is not up"}
    return thing(
        "ray.io/v1",
        "RayService",
        "moray",
        namespace,
        spec={"rayClusterConfig": cluster},
        status={"conditions": [condition]},
    )


def everything() -> list[Object]:
    return [
        node("a", {CELL_LABEL: "h200-0"}),
        node("b", {CELL_LABEL: "h200-1"}),
        service(),
        *(thing("v1", "Secret", name, data={"k": "aHVudGVyMg=="}) for name in ("keys", "registry", "ray")),
        thing("v1", "ConfigMap", "family"),
        thing("v1", "PersistentVolumeClaim", "models"),
        thing("monitoring.coreos.com/v1", "PodMonitor", "moray"),
        thing("monitoring.coreos.com/v1", "PrometheusRule", "moray"),
        thing("v1", "Pod", "worker", status={"phase": "Running", "containerStatuses": [{"state": {"running": {}}}]}),
    ]


@pytest.fixture
def api() -> Iterator[ApiStandIn]:
    with api_stand_in(token="of-the-test") as api:
        yield api


def looked(api: ApiStandIn, folder: Path, namespace: str = "serving") -> Looked:
    return look(access(str(api.kubeconfig(folder))), namespace, RAY)


def told(api: ApiStandIn, folder: Path, namespace: str = "serving") -> list[str]:
    seen = looked(api, folder, namespace)
    return [str(each) for each in findings(FAMILY, Observed(kubernetes=seen.kubernetes, troubles=seen.troubles))]


def test_a_cluster_that_is_as_the_family_says_has_no_findings(api: ApiStandIn, tmp_path: Path) -> None:
    api.put(*everything())
    assert told(api, tmp_path) == []


@pytest.mark.parametrize("name", ["h200", "spot", "single-node"])
def test_an_overlay_that_ships_lacks_what_its_user_brings_and_nothing_else(
    api: ApiStandIn, tmp_path: Path, name: str
) -> None:
    objects = overlay(name)
    service_of(objects)["status"] = {"conditions": [{"type": "Ready", "status": "True"}]}
    cluster = service_of(objects)["spec"]["rayClusterConfig"]
    selectors = [group["template"]["spec"].get("nodeSelector", {}) for group in cluster["workerGroupSpecs"]]
    pool = {key: value for selector in selectors for key, value in selector.items()}
    api.put(*objects, *(node(each, pool) for each in ("a", "b")))
    family = load(FAMILY_OF[name], serving=False)
    kubernetes = looked(api, tmp_path, "moray").kubernetes
    assert kubernetes is not None
    own = {("Secret", "moray-ray"), ("Secret", "moray-redis"), ("PersistentVolumeClaim", "moray-models")}
    assert set(kubernetes.missing) <= own
    assert len(findings(family, Observed(kubernetes=kubernetes))) == len(kubernetes.missing) >= 2


def test_nothing_is_written_and_no_secret_is_read(api: ApiStandIn, tmp_path: Path) -> None:
    api.put(*everything())
    assert "aHVudGVyMg" not in repr(looked(api, tmp_path))
    assert {request.split()[0] for request in api.requests} == {"GET"}
    assert not [request for request in api.requests if request.endswith("/secrets")]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("keys", "no Secret 'keys'"),
        ("registry", "no Secret 'registry'"),
        ("ray", "no Secret 'ray'"),
        ("family", "no ConfigMap 'family'"),
        ("models", "no PersistentVolumeClaim 'models'"),
    ],
)
def test_what_the_manifests_refer_to_and_is_missing_is_named(
    api: ApiStandIn, tmp_path: Path, name: str, words: str
) -> None:
    api.put(*(each for each in everything() if each["metadata"]["name"] != name))
    (found,) = told(api, tmp_path)
    assert words in found


def test_a_wrong_namespace_is_told_with_the_right_one(api: ApiStandIn, tmp_path: Path) -> None:
    api.put(*everything())
    (found,) = told(api, tmp_path, "default")
    assert "no RayService here, but in serving" in found


def test_a_service_that_is_not_ready_says_why(api: ApiStandIn, tmp_path: Path) -> None:
    api.put(*everything(), service(ready="False"))
    (found,) = told(api, tmp_path)
    assert "RayService moray: is not ready: NoHead: the head is not up" in found


def test_pods_that_do_not_run_say_why(api: ApiStandIn, tmp_path: Path) -> None:
    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes"}
    waiting = {"state": {"waiting": {"reason": "ImagePullBackOff"}}}
    api.put(
        *everything(),
        thing("v1", "Pod", "first", status={"phase": "Pending", "conditions": [unscheduled]}),
        thing("v1", "Pod", "second", status={"phase": "Running", "containerStatuses": [waiting]}),
    )
    first, second = told(api, tmp_path)
    assert "pod first: Pending: Unschedulable: 0/2 nodes" in first
    assert "pod second: Running: ImagePullBackOff" in second


def test_custom_resources_that_are_not_installed_are_named(tmp_path: Path) -> None:
    with api_stand_in() as bare:
        bare.without("ray.io/v1")
        bare.without("monitoring.coreos.com/v1")
        bare.put(node("a", {CELL_LABEL: "h200-0"}), node("b", {CELL_LABEL: "h200-1"}))
        first, second = told(bare, tmp_path)
    assert "ray.io/v1 is not installed" in first
    assert "monitoring.coreos.com/v1 is not installed" in second


def test_what_may_not_be_read_is_a_line_with_the_right_and_the_rest_is_looked_at(
    api: ApiStandIn, tmp_path: Path
) -> None:
    api.put(*everything(), service(ready="False"))
    api.refuses = {"/api/v1/nodes": 403, "/api/v1/namespaces/serving/secrets/keys": 403}
    nodes, secret, unready = told(api, tmp_path)
    assert "403: /api/v1/nodes may not be read" in nodes
    assert nodes.endswith("--verb=get,list --resource=nodes")
    assert secret.endswith("--verb=get,list --resource=secrets")
    assert "is not ready" in unready


@pytest.mark.parametrize(("code", "words"), [(401, "401: it does not know who asks"), (500, "answers 500")])
def test_an_api_that_refuses_all_is_told_without_a_traceback(
    api: ApiStandIn, tmp_path: Path, code: int, words: str
) -> None:
    api.refuses = {"/": code}
    found = told(api, tmp_path)
    assert all(words in line and "\n" not in line for line in found)
    assert len(found) == 1 or code != 401


def test_an_api_that_is_not_there_or_never_answers_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with api_stand_in() as gone:
        file = gone.kubeconfig(tmp_path)
    (refused,) = look(access(str(file)), "serving", RAY).troubles
    assert "refused" in refused.found
    monkeypatch.setattr(doctor_access, "PATIENCE_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        file.write_text(file.read_text().replace(gone.url, f"http://127.0.0.1:{deaf.getsockname()[1]}"))
        (silent,) = look(access(str(file)), "serving", RAY).troubles
    assert silent.found.startswith("no answer within")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that signs itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is missing: install the Debian package openssl")
    folder = tmp_path_factory.mktemp("authority")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=stand-in"
    command = ["openssl", *words.split(), "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-out", certificate, "-keyout", key], check=True, capture_output=True)
    return certificate, key


@pytest.mark.parametrize("inline", [True, False], ids=["data", "files"])
def test_certificates_of_the_kubeconfig_are_shown_and_asked_for(
    authority: tuple[Path, Path], tmp_path: Path, inline: bool
) -> None:
    certificate, key = authority
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    with api_stand_in(token="of-the-test", tls=context) as api:
        api.put(*everything())
        file = api.kubeconfig(tmp_path)
        raw = yaml.safe_load(file.read_text())
        (refused,) = look(access(str(file)), "serving", RAY).troubles
        assert "CERTIFICATE_VERIFY_FAILED" in refused.found
        named = {"certificate-authority": certificate, "client-certificate": certificate, "client-key": key}
        for name, path in named.items():
            entry = raw["users"][0]["user"] if name.startswith("client") else raw["clusters"][0]["cluster"]
            if inline:
                entry[f"{name}-data"] = base64.b64encode(path.read_bytes()).decode()
            else:
                entry[name] = str(path)
        file.write_text(yaml.safe_dump(raw))
        assert look(access(str(file)), "serving", RAY).troubles == ()


def test_inside_of_a_pod_its_service_account_asks(
    authority: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = authority
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    for name, text in {"token": "of-the-test", "namespace": "serving", "ca.crt": certificate.read_text()}.items():
        (tmp_path / name).write_text(text)
    with api_stand_in(token="of-the-test", tls=context) as api:
        monkeypatch.setattr(doctor_access, "ACCOUNT", tmp_path)
        monkeypatch.setattr(doctor_access, "SERVER", api.url)
        asked = access("in-cluster")
        assert asked.namespace == "serving"
        assert look(asked, asked.namespace, RAY).troubles == ()


def test_a_token_goes_over_tls_or_to_this_machine_alone(tmp_path: Path) -> None:
    with api_stand_in(token="of-the-test") as api:
        file = api.kubeconfig(tmp_path)
    here = access(str(file)).client
    file.write_text(file.read_text().replace("127.0.0.1", "cluster.invalid"))
    there = access(str(file)).client
    assert here.headers["Authorization"] == "Bearer of-the-test"
    assert "Authorization" not in there.headers
    here.close()
    there.close()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("current-context: stand-in", "current-context: other", "context 'other'; there are stand-in"),
        ("token: of-the-test", "exec: {command: login}", "through a program"),
        ("token: of-the-test", "client-key-data: '?'", "no base64"),
        ("server: ", "sever: ", "server: Field required"),
        ("apiVersion: v1", "apiVersion: [", "not YAML"),
    ],
)
def test_a_kubeconfig_that_is_wrong_says_what_and_never_its_secrets(
    api: ApiStandIn, tmp_path: Path, old: str, new: str, words: str
) -> None:
    file = api.kubeconfig(tmp_path)
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(ConfigurationError) as wrong:
        access(str(file))
    assert words in wrong.value.message
    assert "of-the-test" not in wrong.value.message


def test_a_kubeconfig_that_is_missing_is_an_error_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--kubeconfig", "/nowhere/config"]) == 1
    assert "moray: --kubeconfig: /nowhere/config: " in capsys.readouterr().err


def test_the_command_tells_of_the_cluster_and_of_the_gateway(
    api: ApiStandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.put(*(each for each in everything() if each["metadata"]["name"] not in ("keys", "b")))
    config = api.kubeconfig(tmp_path, namespace="serving")
    url = f"http://127.0.0.1:{free_port()}"
    assert main(["--family", "h200", "doctor", "--url", url, "--kubeconfig", str(config), "--json"]) == 1
    wheres = [each["where"] for each in json.loads(capsys.readouterr().out)]
    assert wheres == [f"gateway {url}", "cells.h200", "namespace serving"]
