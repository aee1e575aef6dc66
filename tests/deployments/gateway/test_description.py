"""GET /openapi.json describes the API as it is: every route, asked of what it says, does as it says."""

import copy
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from served_app import Served, served

from deployments.gateway.app import VERSION

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
TAGS = ("admin", "batches", "chat", "completions", "conversations", "embeddings", "files", "models", "operator",
        "organization", "responses", "storyboards", "usage", "videos")  # fmt: skip
# `--hypothesis-profile searching` asks more, and each time something else.
EXAMPLES = 50 if settings.get_current_profile_name() == "searching" else 8
TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("gateway")) as here:
        yield here


@pytest.fixture(scope="module")
def told(here: Served) -> dict[str, Any]:
    answer = httpx.get(f"{here.url}/openapi.json", trust_env=False, timeout=TIMEOUT_S)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    found: dict[str, Any] = answer.json()
    return found


@pytest.fixture(scope="module")
def objects(here: Served) -> dict[str, str]:
    """Ids of things that are there, by the name of the path's part."""
    with httpx.Client(base_url=here.url, headers=here.auth, trust_env=False, timeout=TIMEOUT_S) as client:

        def made(path: str, **asked: Any) -> str:
            answer = client.post(path, **asked)
            assert answer.status_code == 200, answer.text
            return str(answer.json()["id"])

        line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "mini"}}
        sent = {"file": ("lines.jsonl", json.dumps(line).encode())}
        file = made("/v1/files", files=sent, data={"purpose": "batch"})
        window = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
        talk = made("/v1/conversations", json={"items": [{"role": "user", "content": "hello"}]})
        item = client.get(f"/v1/conversations/{talk}/items").json()["data"][0]["id"]
        return {
            "file_id": file,
            "batch_id": made("/v1/batches", json={"input_file_id": file, **window}),
            "conversation_id": talk,
            "item_id": item,
            "response_id": made("/v1/responses", json={"model": "mini", "input": "hello", "max_output_tokens": 3}),
            "job_id": made("/v1/videos", json={"prompt": "a red ball", "seconds": 1}),
            "board_id": made("/v1/storyboards", json={"shots": [{"prompt": "a road", "seconds": 1}]}),
            "index": "0",
            "key_id": made("/v1/admin/keys", json={"name": "victim"}),
            "name": "mini",
        }


def narrowed(told: dict[str, Any]) -> dict[str, Any]:
    """With models that are there, so that more than their names is read."""
    told = copy.deepcopy(told)
    for name in ("ChatBody", "CompletionBody", "EmbeddingsBody", "ResponseBody"):
        told["components"]["schemas"][name]["properties"]["model"] = {"enum": ["mini", "turbo"]}
    told["components"]["schemas"]["VideoBody"]["properties"]["model"] = {"enum": ["sora-2"]}
    return told


def test_the_description_is_valid_and_names_the_program(told: dict[str, Any]) -> None:
    schemathesis.openapi.from_dict(told).validate()
    assert told["info"] == {"title": "Moray", "version": VERSION}


def test_every_reference_leads_to_something(told: dict[str, Any]) -> None:
    for ref in set(re.findall(r'"\$ref": "#/([^"]*)"', json.dumps(told))):
        found: Any = told
        for part in ref.split("/"):
            found = found[part]


def test_every_route_that_writes_says_what_it_reads(told: dict[str, Any]) -> None:
    without = {path for path, each in told["paths"].items() if "post" in each and "requestBody" not in each["post"]}
    assert without == {"/v1/batches/{batch_id}/cancel", "/v1/responses/{response_id}/cancel"}


def test_a_key_is_asked_for_by_all_that_is_not_open_and_its_scope_is_said(told: dict[str, Any]) -> None:
    asked = {path: operation["security"] for path, each in told["paths"].items() for operation in each.values()}
    assert {path for path, found in asked.items() if not found} == {"/health", "/metrics", "/metrics/targets",
                                                                     "/openapi.json"}  # fmt: skip
    assert asked["/v1/models"] == [{"key": []}]
    assert asked["/v1/admin/keys"] == [{"key": ["admin"]}]
    assert asked["/v1/files/{file_id}"] == [{"key": ["files"]}]


def test_parameters_that_are_not_served_pass_only_where_they_ask_for_nothing(told: dict[str, Any]) -> None:
    chat = told["components"]["schemas"]["ChatBody"]["properties"]
    assert chat["audio"]["enum"] == [None]
    assert set(told["components"]["schemas"]["ChatBody"]["required"]) == {"model", "messages"}


def test_all_tags_are_asked(told: dict[str, Any]) -> None:
    assert {tag for each in told["paths"].values() for one in each.values() for tag in one["tags"]} == set(TAGS)


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("tag", TAGS)
def test_every_route_answers_as_it_says_whatever_it_is_asked(
    tag: str,
    mode: GenerationMode,
    here: Served,
    told: dict[str, Any],
    objects: dict[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    schema = schemathesis.openapi.from_dict(narrowed(told)).include(tag=tag)
    for found in schema.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and not (operation.body or list(operation.iter_parameters())):
            continue  # nothing of it can be wrong
        names = re.findall(r"\{(\w+)\}", operation.path)
        real = operation.as_strategy(mode, path_parameters={name: objects.get(name, "none") for name in names})
        free = operation.as_strategy(mode)

        @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
        @given(case=st.one_of(real, free) if names else free)
        def asked(case: schemathesis.Case[Any]) -> None:
            answer = case.call(base_url=here.url, headers=here.auth, timeout=TIMEOUT_S)
            if answer.text == "Invalid HTTP request received.":
                return  # the server says so, and asks nobody
            case.validate_response(answer, checks=CHECKS)
            assert "Traceback" not in answer.text

        asked()
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}),
        ("/v1/completions", {"prompt": "hello", "max_tokens": 3}),
        ("/v1/responses", {"input": "hello", "max_output_tokens": 3}),
    ],
)
def test_answers_come_as_described_whole_and_streamed(
    path: str, body: dict[str, Any], stream: bool, here: Served, told: dict[str, Any]
) -> None:
    operation = schemathesis.openapi.from_dict(told)[path]["POST"]
    case = operation.Case(body={"model": "mini", "stream": stream, **body}, media_type="application/json")
    answer = case.call_and_validate(base_url=here.url, headers=here.auth, checks=CHECKS, timeout=TIMEOUT_S)
    assert answer.status_code == 200
    assert ("text/event-stream" in answer.headers["content-type"][0]) == stream
