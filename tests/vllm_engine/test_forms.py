"""Structural tags for tools, as vLLM's grammar compiler reads them."""

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
from vllm_engine.tiers import MINI

from cluster.errors import InvalidRequest
from cluster.request import Generation, Sampling, Tool
from deployments.engines.vllm_engine.forms import structural_tag

if find_spec("vllm") is None:
    pytest.skip("vllm is not installed: make test-vllm", allow_module_level=True)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of vLLM's own imports
]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
ADD, SUB = (Tool(name=name, parameters=json.dumps(SCHEMA)) for name in ("add", "sub"))
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "x"}}\n</tool_call>'
OTHER = CALL.replace("add", "sub")
BOTH = f"{CALL}\n{OTHER}"
Accepts = Callable[[Generation, str], bool]


@pytest.fixture(scope="module")
def accepts() -> Accepts:
    from transformers import AutoTokenizer

    xgrammar = pytest.importorskip("xgrammar")
    compiler = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo.from_huggingface(AutoTokenizer.from_pretrained(MINI)))

    def accepts(generation: Generation, text: str) -> bool:
        form = structural_tag(generation, lambda schema: True)
        matcher = xgrammar.GrammarMatcher(compiler.compile_structural_tag(form))
        return bool(matcher.accept_string(text) and matcher.is_completed())

    return accepts


def held(*tools: Tool, **sampling: Any) -> Generation:
    return Generation(request_id="a", prompt=(1,), sampling=Sampling(**sampling), tools=tools)


TABLE: list[tuple[dict[str, Any], dict[str, bool]]] = [
    ({"least_calls": 1}, {CALL: True, OTHER: True, BOTH: True, "no": False, "no " + CALL: False}),
    ({"least_calls": 1, "most_calls": 1}, {CALL: True, OTHER: True, BOTH: False, "no": False}),
    ({}, {CALL: True, BOTH: True, "no": True, "no " + CALL: True}),
    ({"most_calls": 1}, {CALL: True, BOTH: False, "no": True, "no " + CALL: True}),
    ({"json_schema": json.dumps(SCHEMA)}, {CALL: True, BOTH: True, "no": False, '{"a": 1, "b": "x"}': True}),
]


@pytest.mark.parametrize(("asked", "answers"), TABLE)
def test_answers_are_those_that_the_request_allows(
    accepts: Accepts, asked: dict[str, Any], answers: dict[str, bool]
) -> None:
    assert {text: accepts(held(ADD, SUB, **asked), text) for text in answers} == answers


def test_arguments_meet_their_parameters_and_calls_end(accepts: Accepts) -> None:
    demanded = held(ADD, least_calls=1)
    for wrong in (CALL.replace("1", '"1"'), CALL.replace('"x"', '"z"'), CALL.replace("add", "other")):
        assert not accepts(demanded, wrong)
    for held_to in (demanded, held(replace(ADD, strict=True))):
        assert accepts(held_to, "\n".join([CALL] * 8))
        assert not accepts(held_to, "\n".join([CALL] * 9))
        assert not accepts(held_to, f"{CALL} and more")


def test_what_cannot_be_held_to_is_refused_of_strict_tools_and_schemas_and_left_free_else(accepts: Accepts) -> None:
    strict = Tool(name="add", parameters=ADD.parameters, strict=True)
    for wrong in (held(strict), held(ADD, json_schema=json.dumps(SCHEMA))):
        with pytest.raises(InvalidRequest, match="cannot hold an answer to all that"):
            structural_tag(wrong, lambda schema: False)
    told = json.loads(structural_tag(held(ADD, least_calls=1, most_calls=1), lambda schema: False))
    assert told["format"]["elements"][0]["content"]["json_schema"] == {"type": "object"}
