"""`moray up` with a tier of engine vllm, driven by the public client; its engine core is lost, and it is stopped."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import openai
import psutil
import pytest
from integration.families import written
from integration.server import Server, eventually, free_port
from vllm_engine.tiers import SMALL

if find_spec("vllm") is None:
    pytest.skip("vllm is not installed: make test-vllm", allow_module_level=True)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
]
START_S = 400.0  # three processes import vLLM one after the other, on cores that others use
SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["sum"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    folder, port = Path(tempfile.mkdtemp(prefix="it-", dir="/tmp")), free_port()
    family = {
        "name": "vllm",
        "accelerator": "cpu",
        "gpu_budget_gpus": 1,
        "state_folder": str(folder / "state"),
        "gateway": {"host": "127.0.0.1", "port": port},
        "cells": [{"name": "here", "gpus": 1}],
        "tiers": {"mini": SMALL | {"names": ["mini"], "start_timeout_s": START_S, "patience_s": START_S}},
    }
    server = Server(written(folder, family), port, folder)
    try:
        eventually(lambda: "print(answer" in server.output or server.exit_code is not None, START_S, "ready")
        yield server.ready()
        server.stop()
    finally:
        server.destroy()
        shutil.rmtree(folder, ignore_errors=True)


def cores(server: Server) -> list[psutil.Process]:
    return [each for each in server.processes() if each.name().startswith("VLLM::EngineCor")]


def said(server: Server) -> str:
    answer = server.client().chat.completions.create(
        model="mini", messages=[{"role": "user", "content": "What is 12 + 30?"}], temperature=0, max_tokens=24
    )
    return answer.choices[0].message.content or ""


def test_a_stream_is_the_answer_in_pieces(server: Server) -> None:
    pieces = server.client().chat.completions.create(
        model="mini",
        messages=[{"role": "user", "content": "What is 12 + 30?"}],
        temperature=0,
        max_tokens=24,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(pieces)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == said(server) != ""
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens <= 24


def test_an_answer_obeys_the_schema_of_its_response_format(server: Server) -> None:
    answer = server.client().chat.completions.create(
        model="mini",
        messages=[{"role": "user", "content": "What is 12 + 30?"}],
        max_tokens=40,
        response_format={"type": "json_schema", "json_schema": {"name": "sum", "schema": SCHEMA, "strict": True}},
    )
    assert 0 <= json.loads(answer.choices[0].message.content or "")["sum"] <= 99


@pytest.mark.parametrize("ends", [psutil.Process.kill, psutil.Process.suspend])
def test_an_engine_core_that_is_lost_or_hangs_costs_its_replica_and_the_next_one_answers(
    server: Server, ends: Callable[[psutil.Process], None]
) -> None:
    before = said(server)
    (core,) = eventually(lambda: cores(server), START_S, "an engine core")
    workers = core.children()
    ends(core)

    def answered() -> str:
        try:
            return said(server)
        except openai.APIError:
            return ""

    assert eventually(answered, START_S, "the next replica answers") == before
    assert psutil.wait_procs([core, *workers], timeout=20)[1] == []
    (other,) = eventually(lambda: cores(server), START_S, "the next engine core")
    assert other.pid != core.pid
