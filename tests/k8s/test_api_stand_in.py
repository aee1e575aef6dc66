"""What the stand-in promises, seen by the real kubectl."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from k8s.api_stand_in import APPLY, ApiStandIn, api_stand_in

PATH = "/apis/ray.io/v1/namespaces/serving/rayservices"


def check(given: dict[str, Any]) -> list[str]:
    return ["spec/rayVersion: not a string"] if given.get("spec", {}).get("rayVersion") == 2 else []


@pytest.fixture
def api() -> Iterator[ApiStandIn]:
    with api_stand_in(check, token="of-the-test") as api:
        yield api


@pytest.fixture
def client(api: ApiStandIn) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=api.url, headers={"Authorization": "Bearer of-the-test"}) as client:
        yield client


def service(name: str = "moray", **spec: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "serving"}
    return {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": metadata, "spec": spec}


def applied(client: httpx.Client, given: dict[str, Any], **query: str) -> httpx.Response:
    path = f"{PATH}/{given['metadata']['name']}"
    return client.patch(path, params=query, content=yaml.safe_dump(given), headers={"Content-Type": APPLY})


def test_an_applied_object_is_kept_with_its_uid_and_its_status(api: ApiStandIn, client: httpx.Client) -> None:
    first = applied(client, service(a=1))
    api.put(first.json() | {"status": {"conditions": []}})
    second = applied(client, service(b=2))
    assert (first.status_code, second.status_code) == (201, 200)
    kept = client.get(f"{PATH}/moray").json()
    assert kept["spec"] == {"b": 2}
    assert kept["status"] == {"conditions": []}
    assert kept["metadata"]["uid"] == first.json()["metadata"]["uid"]


def test_a_dry_run_answers_and_keeps_nothing(api: ApiStandIn, client: httpx.Client) -> None:
    assert applied(client, service(), dryRun="All").status_code == 201
    assert client.post(PATH, json=service(), params={"dryRun": "All"}).status_code == 201
    assert api.objects("RayService") == []


def test_what_the_check_finds_is_an_invalid_status(api: ApiStandIn, client: httpx.Client) -> None:
    refused = applied(client, service(rayVersion=2))
    assert refused.status_code == 422
    assert refused.json()["reason"] == "Invalid"
    assert refused.json()["details"]["causes"] == [{"message": "spec/rayVersion: not a string"}]
    assert api.objects("RayService") == []


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", f"{PATH}/absent", 404),
        ("GET", "/apis/ray.io/v2/rayservices", 404),
        ("GET", f"{PATH}?watch=true", 400),
        ("DELETE", f"{PATH}/moray", 405),
        ("PATCH", f"{PATH}/moray", 415),
    ],
)
def test_what_it_cannot_do_it_refuses(client: httpx.Client, method: str, path: str, code: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == code
    assert answer.json()["kind"] == "Status"


def test_who_has_no_token_is_unauthorized(api: ApiStandIn) -> None:
    assert httpx.get(f"{api.url}/api/v1/nodes").status_code == 401


def test_a_second_creation_is_a_conflict_and_lists_are_of_a_namespace(client: httpx.Client) -> None:
    assert [client.post(PATH, json=service()).status_code for _ in range(2)] == [201, 409]
    assert [one["metadata"]["name"] for one in client.get(PATH).json()["items"]] == ["moray"]
    assert client.get(PATH.replace("serving", "other")).json()["items"] == []
    assert len(client.get("/apis/ray.io/v1/rayservices").json()["items"]) == 1


def test_metadata_alone_shows_no_data(api: ApiStandIn, client: httpx.Client) -> None:
    metadata = {"name": "keys", "namespace": "serving"}
    api.put({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": {"password": "aHVudGVyMg=="}})
    accept = {"Accept": "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"}
    shown = client.get("/api/v1/namespaces/serving/secrets/keys", headers=accept).json()
    assert shown["metadata"]["name"] == "keys"
    assert "data" not in shown


@pytest.fixture
def open_api() -> Iterator[ApiStandIn]:
    with api_stand_in(check) as api:
        yield api


def test_kubectl_applies_gets_and_is_told_what_is_invalid(open_api: ApiStandIn, tmp_path: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is missing: install it to run this test")
    config = open_api.kubeconfig(tmp_path)
    right, wrong = tmp_path / "right.yaml", tmp_path / "wrong.yaml"
    right.write_text(yaml.safe_dump(service(rayVersion="2.60.0")))
    wrong.write_text(yaml.safe_dump(service("broken", rayVersion=2)))

    def kubectl(*words: str) -> subprocess.CompletedProcess[str]:
        command = ["kubectl", "--kubeconfig", str(config), "--cache-dir", str(tmp_path / "cache"), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    apply = ("apply", "--server-side", "--validate=false", "-f")
    done = kubectl(*apply, str(right))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "rayservice.ray.io/moray serverside-applied\n"
    got = kubectl("get", "rayservice", "moray", "-n", "serving", "-o", "jsonpath={.spec.rayVersion}")
    assert got.stdout == "2.60.0", got.stderr
    refused = kubectl(*apply, str(wrong))
    assert refused.returncode == 1
    assert "spec/rayVersion: not a string" in refused.stderr
    dry = kubectl("create", "--dry-run=server", "--validate=false", "-n", "serving", "-f", str(right))
    assert "already exists" in dry.stderr
