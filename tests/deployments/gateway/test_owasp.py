"""OWASP's API Security Top 10 (2023), as propositions about every route that GET /openapi.json names.

A new route is in these tests as soon as it is described; a new kind of object is once `objects` makes one.
"""

import asyncio
import gzip
import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image
from served_app import Served, served
from shell import VIDEO, Exchange
from starlette.types import Receive, Scope, Send
from virtual_time import run

from cluster.access import SCOPES
from cluster.errors import TooSlow
from deployments.gateway.asgi import FIRST_S, LONGEST_HEAD_BYTES, MOST_HEADERS, Envelope, read_body

CHAT = {"model": "mini", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
MOST_BODY = 65_536
PRIVATE = (
    "http://127.0.0.1:1/a.png",
    "http://169.254.169.254/latest/meta-data",
    "http://[::1]/a",
    "file:///etc/passwd",
)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    limits = {"coalesce_ms": 0, "tokens": "streamed", "max_body_bytes": MOST_BODY, "max_file_bytes": MOST_BODY}
    parts = {"gateway": limits, "video": VIDEO | {"max_input_bytes": MOST_BODY}}
    with served(tmp_path_factory.mktemp("gateway"), parts) as here:
        yield here


@pytest.fixture(scope="module")
def client(here: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=here.url, headers=here.auth, trust_env=False, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def told(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


@pytest.fixture(scope="module")
def operations(told: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Method, path and description of what asks for a key."""
    return [
        (method.upper(), path, operation)
        for path, each in told["paths"].items()
        for method, operation in each.items()
        if operation["security"]
    ]


@pytest.fixture(scope="module")
def objects(client: httpx.Client) -> dict[str, str]:
    """Ids of one key's own things, by the name of the path's part."""

    def made(path: str, **asked: Any) -> str:
        answer = client.post(path, **asked)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": CHAT}
    sent = {"file": ("lines.jsonl", json.dumps(line).encode())}
    file = made("/v1/files", files=sent, data={"purpose": "batch"})
    window = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    talk = made("/v1/conversations", json={"items": [{"role": "user", "content": "hello"}]})
    return {
        "file_id": file,
        "batch_id": made("/v1/batches", json={"input_file_id": file, **window}),
        "conversation_id": talk,
        "item_id": client.get(f"/v1/conversations/{talk}/items").json()["data"][0]["id"],
        "response_id": made("/v1/responses", json={"model": "mini", "input": "hello", "max_output_tokens": 3}),
        "job_id": made("/v1/videos", json={"prompt": "a red ball", "seconds": 1}),
        "board_id": made("/v1/storyboards", json={"shots": [{"prompt": "a road", "seconds": 1}]}),
        "index": "0",
        "character_id": made("/v1/videos/characters", files={"video": ("a.png", picture())}, data={"name": "Anna"}),
    }


def picture() -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (64, 64)).save(sink, "PNG")
    return sink.getvalue()


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


# API1: broken object level authorization.


def test_every_object_is_unknown_to_every_other_key(
    here: Served, client: httpx.Client, operations: list[Any], objects: dict[str, str]
) -> None:
    stranger = {"Authorization": f"Bearer {here.another()}"}
    asked = 0
    for method, path, operation in operations:
        names = re.findall(r"\{(\w+)\}", path)
        if not names or operation["security"] == [{"key": ["admin"]}] or path == "/v1/models/{name}":
            continue
        body = None if "requestBody" not in operation else BODIES.get(path, {})
        answer = client.request(method, path.format(**objects), json=body, headers=stranger)
        assert answer.status_code == 404, (method, path, answer.text)
        assert code_of(answer)[1].endswith("_not_found")
        asked += 1
    assert asked >= 20


BODIES: dict[str, Any] = {
    "/v1/videos/{job_id}/remix": {"prompt": "a"},
    "/v1/conversations/{conversation_id}": {"metadata": {}},
    "/v1/conversations/{conversation_id}/items": {"items": []},
}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/batches", {"input_file_id": "{file_id}", "endpoint": "/v1/responses", "completion_window": "24h"}),
        ("/v1/responses", {"model": "mini", "input": "a", "previous_response_id": "{response_id}"}),
        ("/v1/responses", {"model": "mini", "input": "a", "conversation": "{conversation_id}"}),
        ("/v1/videos/edits", {"prompt": "a", "video": {"id": "{job_id}"}}),
        ("/v1/videos/extensions", {"prompt": "a", "seconds": 1, "video": {"id": "{job_id}"}}),
        ("/v1/videos", {"prompt": "a", "seconds": 1, "characters": [{"id": "{character_id}"}]}),
        ("/v1/videos", {"prompt": "a", "seconds": 1, "input_reference": {"file_id": "{file_id}"}}),
        ("/v1/storyboards", {"shots": [{"prompt": "a", "seconds": 1}],
                             "characters": [{"name": "A", "phrase": "a", "reference": "{character_id}"}]}),
    ],
)  # fmt: skip
def test_no_body_reaches_another_keys_object_by_naming_it(
    here: Served, client: httpx.Client, objects: dict[str, str], path: str, body: Any
) -> None:
    named = json.loads(re.sub(r"\{(\w+)\}", lambda found: objects[found[1]], json.dumps(body)))
    answer = client.post(path, json=named, headers={"Authorization": f"Bearer {here.another()}"})
    assert answer.status_code == 404, answer.text


# API2: broken authentication.


@pytest.mark.parametrize("given", [{}, {"Authorization": "Bearer sk-moray-none"}, {"Authorization": "Basic dTpw"}])
def test_no_route_answers_without_a_valid_key(here: Served, operations: list[Any], given: dict[str, str]) -> None:
    with httpx.Client(base_url=here.url, trust_env=False, timeout=60) as client:
        for method, path, _ in operations:
            answer = client.request(method, path.replace("{index}", "0"), headers=given)
            assert code_of(answer) == (401, "invalid_api_key"), (method, path)


def test_two_keys_in_one_request_are_refused_whichever_is_valid(here: Served, client: httpx.Client) -> None:
    for keys in ([here.key, "sk-moray-none"], [here.key, here.key]):
        given = [("Authorization", f"Bearer {key}") for key in keys]
        with httpx.Client(base_url=here.url, trust_env=False, timeout=60) as bare:
            assert code_of(bare.get("/v1/models", headers=given)) == (401, "invalid_api_key")


def test_a_key_is_taken_from_its_header_alone(here: Served) -> None:
    with httpx.Client(base_url=here.url, trust_env=False, timeout=60) as client:
        assert client.get("/v1/models", params={"api_key": here.key, "key": here.key}).status_code == 401
        assert client.get("/v1/models", headers={"x-api-key": here.key, "api-key": here.key}).status_code == 401


# API3: broken object property level authorization.


def test_no_body_has_room_for_what_is_not_the_callers_to_say(told: dict[str, Any]) -> None:
    bodies = {
        content["schema"]["$ref"].rpartition("/")[2]
        for each in told["paths"].values()
        for operation in each.values()
        for content in operation.get("requestBody", {"content": {}})["content"].values()
    }
    for name in bodies:
        schema = told["components"]["schemas"][name]
        assert schema["additionalProperties"] is False, name
        own = {"owner", "key", "org", "tenant", "id", "expires_s", "created_at"}
        assert not own & schema["properties"].keys(), name
    naming = {name for name in bodies if {"scopes", "plan"} & told["components"]["schemas"][name]["properties"].keys()}
    assert naming == {"NewKey"}, "an admin alone says what a key may do"


@pytest.mark.parametrize("field", ["organization_id", "plan", "scopes", "tenant", "priority_class", "__proto__"])
def test_a_chat_cannot_say_whose_it_is(client: httpx.Client, field: str) -> None:
    answer = client.post("/v1/chat/completions", json={**CHAT, field: "admin"})
    assert code_of(answer) == (400, "unknown_parameter")


# API4: unrestricted resource consumption.


def test_every_body_is_bounded(client: httpx.Client, operations: list[Any], objects: dict[str, str]) -> None:
    large = b'{"a": "' + b"x" * 10 * MOST_BODY + b'"}'
    for method, path, operation in operations:
        if "requestBody" in operation:
            with_ids = path.format(**objects, key_id="key_none")
            answer = client.request(method, with_ids, content=large, headers={"content-type": "application/json"})
            assert code_of(answer) == (413, "body_too_large"), path


def test_a_body_without_a_length_is_bounded_while_it_is_read(client: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 10_000

    assert code_of(client.post("/v1/chat/completions", content=endless())) == (413, "body_too_large")


@pytest.mark.parametrize("text", [b"[" * 50_000, b'{"a":' * 10_000 + b"1", b"[" * 3000 + b"]" * 3000])
def test_deep_json_is_refused_before_it_costs_anything(client: httpx.Client, text: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/responses", "/v1/conversations", "/v1/videos", "/v1/batches"):
        assert client.post(path, content=text).status_code == 400


def test_a_compressed_body_is_not_unpacked(client: httpx.Client) -> None:
    bomb = gzip.compress(b" " * 10_000_000)
    answer = client.post("/v1/chat/completions", content=bomb, headers={"content-encoding": "gzip"})
    assert code_of(answer) == (400, "invalid_json")


@pytest.mark.parametrize(
    "headers",
    [
        [(b"a%d" % index, b"b") for index in range(MOST_HEADERS + 1)],
        [(b"a", b"b" * LONGEST_HEAD_BYTES)],
    ],
)
async def test_headers_are_bounded_in_number_and_size(headers: list[tuple[bytes, bytes]]) -> None:
    async def never(scope: Scope, receive: Receive, send: Send) -> None:
        pytest.fail("it was asked")

    exchange = Exchange(Envelope(never), "/", headers={name.decode(): value.decode() for name, value in headers})
    answer = await exchange.finished()
    assert (answer.status, answer.json()["error"]["code"]) == (431, "headers_too_large")


def test_a_body_that_does_not_come_is_given_up() -> None:
    async def scenario() -> None:
        async def receive() -> dict[str, Any]:
            await asyncio.sleep(FIRST_S / 2)
            return {"type": "http.request", "body": b"x", "more_body": True}

        with pytest.raises(TooSlow, match="body: not there after 31 s"):
            await read_body({"headers": []}, receive, 65_536)

    run(scenario())


@pytest.mark.parametrize("length", ["9" * 5000, "-1", "1e9", "0x10"])
async def test_a_length_that_is_none_is_no_fault_of_ours(length: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(scope, receive, 10)
        raise TooSlow("body: read; all is well; nothing to mend")

    answer = await Exchange(Envelope(app), "/", b"x", headers={"content-length": length}).finished()
    assert answer.status in (408, 413)


# API5: broken function level authorization.


def test_every_route_is_refused_to_keys_without_its_scope_before_its_body_is_read(
    here: Served, client: httpx.Client, operations: list[Any]
) -> None:
    keys = {scope: here.another(scope) for scope in SCOPES}
    for method, path, operation in operations:
        ((needed,),) = [each["key"] or [None] for each in operation["security"]]
        for scope, key in keys.items():
            if needed is None or scope == needed:
                continue
            headers = {"Authorization": f"Bearer {key}"}
            answer = client.request(method, path.replace("{index}", "0"), content=b"{", headers=headers)
            assert code_of(answer) == (403, "insufficient_scope"), (method, path, scope)


def test_what_admins_may_is_not_in_the_scopes_of_a_key_that_names_none(here: Served) -> None:
    key, record = here.gateway._keys.create("plain", 0.0)
    assert "admin" not in record.scopes
    answer = httpx.get(
        f"{here.url}/v1/admin/keys", headers={"Authorization": f"Bearer {key}"}, trust_env=False, timeout=60
    )
    assert answer.status_code == 403


# API7: server side request forgery.


def url_fields(schema: Any, at: str = "") -> Iterator[str]:
    if isinstance(schema, dict):
        for name in schema.get("properties", {}):
            if "url" in name:
                yield name
        for inner in schema.values():
            yield from url_fields(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from url_fields(inner)


def test_every_parameter_that_takes_an_address_is_known_to_these_tests(told: dict[str, Any]) -> None:
    found = set(url_fields(told["components"]["schemas"]))
    assert found <= {"image_url", "audio_url", "video_url", "file_url", "url"}, "add the new one to the test below"


@pytest.mark.parametrize("url", PRIVATE)
@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/videos", "input_reference.image_url"),
        ("/v1/videos", "video_reference.video_url"),
        ("/v1/videos", "audio_reference.audio_url"),
        ("/v1/videos/edits", "video.video_url"),
        ("/v1/videos/characters", "video.video_url"),
    ],
)
def test_no_address_leads_to_where_the_gateway_is(client: httpx.Client, path: str, field: str, url: str) -> None:
    name, _, key = field.partition(".")
    body = {"name": "A"} if path.endswith("characters") else {"prompt": "a", "seconds": 1}
    if path.endswith("edits"):
        del body["seconds"]
    answer = client.post(path, json={**body, name: {key: url}})
    assert answer.status_code == 400, answer.text
    assert "root:" not in answer.text


@pytest.mark.parametrize("url", PRIVATE)
def test_no_address_in_a_chat_does(client: httpx.Client, url: str) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    chat = {"model": "mini", "messages": [{"role": "user", "content": [part]}]}
    asked = {"type": "message", "role": "user", "content": [{"type": "input_image", "image_url": url}]}
    file = {"type": "message", "role": "user", "content": [{"type": "input_file", "file_url": url}]}
    assert client.post("/v1/chat/completions", json=chat).status_code == 400
    for item in (asked, file):
        assert client.post("/v1/responses", json={"model": "mini", "input": [item]}).status_code == 400


# API8: security misconfiguration.


def test_no_origin_is_allowed_unasked(client: httpx.Client) -> None:
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for answer in (client.options("/v1/chat/completions", headers=asked), client.get("/v1/models", headers=asked)):
        assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert client.options("/v1/chat/completions", headers=asked).status_code == 405


def test_a_wrong_method_is_told_the_right_ones(client: httpx.Client) -> None:
    answer = client.request("TRACE", "/v1/files")
    assert code_of(answer) == (405, "method_not_allowed")
    assert set(answer.headers["allow"].split(", ")) <= {"GET", "POST", "HEAD"}


def test_errors_say_no_secret_back(here: Served, client: httpx.Client) -> None:
    secret = here.key
    answers = [
        client.get(f"/v1/{secret}"),
        client.delete(f"/v1/admin/keys/{secret}"),
        client.get(f"/v1/files/{secret}"),
        client.get(f"/v1/videos/{secret}"),
        client.post("/v1/chat/completions", json={**CHAT, "model": secret}),
        client.post("/v1/chat/completions", json={**CHAT, secret: 1}),
        client.post("/v1/chat/completions", json={**CHAT, "temperature": secret}),
        client.get("/v1/usage", params={"start_time": "0", secret: "1"}),
        client.get("/v1/models", headers={"x-request-id": secret, "moray-hint": secret}),
        client.post("/v1/chat/completions", json=CHAT, headers={"moray-hint": secret}),
    ]
    for answer in answers:
        assert secret not in answer.text
        assert secret not in str(answer.headers)


@pytest.mark.parametrize("name", ["x-request-id", "moray-hint", "moray-floor", "idempotency-key"])
async def test_a_line_break_in_a_header_makes_no_header_and_no_line_of_a_log(
    here: Served, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {"authorization": f"Bearer {here.key}", name: "a\r\nset-cookie: evil=1\r\nINFO forged"}
    path = "/v1/videos" if name == "idempotency-key" else "/v1/chat/completions"

    async def asked() -> Exchange:
        body = json.dumps({"prompt": "a"} if name == "idempotency-key" else CHAT).encode()
        return await Exchange(here.app, path, body, headers=headers).finished()

    answer = asyncio.run_coroutine_threadsafe(asked(), here.loop).result(60)
    assert b"evil" not in b"".join(value for _, value in answer.sent[0][1]["headers"])
    assert not [record for record in caplog.records if "\n" in record.getMessage()]


# Keys: hashes alone are kept and said.


def test_a_key_that_asked_every_route_is_in_no_log_no_answer_and_no_file(
    here: Served, client: httpx.Client, operations: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    key = here.another()
    headers = {"Authorization": f"Bearer {key}"}
    with caplog.at_level(logging.DEBUG):
        for method, path, operation in operations:
            body = b"{}" if "requestBody" in operation else b""
            answer = client.request(method, path.replace("{index}", "0"), content=body, headers=headers)
            assert key not in answer.text
        client.post("/v1/chat/completions", json=CHAT, headers=headers)
        client.post("/v1/chat/completions", json={**CHAT, "user": "u"}, headers={**headers, "x-request-id": key})
        client.get(f"/v1/files/{key}", headers=headers)
    random = key.removeprefix("sk-moray-")
    # But for the client's own, and the HTTP server's, which Serve runs without a log of requests.
    others = ("http", "uvicorn.access")
    said = [str(vars(record)) for record in caplog.records if not record.name.startswith(others)]
    assert len(said) > len(operations)
    assert not [line for line in said if random in line]
    assert not [file for file in here.folder.rglob("*") if file.is_file() and random.encode() in file.read_bytes()]
