"""Calls of tools, found by vLLM's own parser in tokens as they come."""

import json
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import pytest
from vllm_engine.tiers import MINI

from cluster.request import Tool, ToolCall
from deployments.engines.vllm_engine.calls import Calls

if find_spec("vllm") is None:
    pytest.skip("vllm is not installed: make test-vllm", allow_module_level=True)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of vLLM's own imports
]
Told = Callable[[str], tuple[list[str], tuple[ToolCall, ...]]]


@pytest.fixture(scope="module")
def told() -> Told:
    """What is shown of an answer, token by token and at its end; and its calls."""
    from transformers import AutoTokenizer
    from vllm.tool_parsers import ToolParserManager

    tokenizer = AutoTokenizer.from_pretrained(MINI)

    def told(written: str) -> tuple[list[str], tuple[ToolCall, ...]]:
        calls = Calls(partial(ToolParserManager.get_tool_parser("hermes"), tokenizer), (Tool(name="add"),))
        tokens = tokenizer.encode(written, add_special_tokens=False)
        shown = [calls.push(str(tokenizer.decode([token])), [token]) for token in tokens]
        rest, found = calls.end()
        return [*shown, rest], found

    return told


def test_text_before_a_call_is_shown_as_it_comes_and_the_call_is_none_of_it(told: Told) -> None:
    shown, (call,) = told('I add. <tool_call>\n{"name": "add", "arguments": {"a": 12, "b": 30}}\n</tool_call>')
    assert "".join(shown) == "I add. "
    assert sum(map(bool, shown)) > 2
    assert (call.name, json.loads(call.arguments)) == ("add", {"a": 12, "b": 30})
    assert call.id


@pytest.mark.parametrize("written", ["1 < 2, and 2 < 3", "it ends as if <tool", "no call at all"])
def test_text_that_only_looks_like_a_call_is_shown_whole(told: Told, written: str) -> None:
    shown, calls = told(written)
    assert ("".join(shown), calls) == (written, ())
