import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.request import FinishReason, Tool, ToolCall
from deployments.engines.calls import CallText, arguments_of

TOOLS = (Tool(name="look_up"), Tool(name="add"))
LOOK_UP = '<tool_call>\n{"name": "look_up", "arguments": {"what": "é"}}\n</tool_call>'
ADD = '<tool_call>{"name":"add","arguments":{"of":[1,2]}}</tool_call>'
Told = tuple[str, tuple[ToolCall, ...], FinishReason]


def told(*parts: str, tools: tuple[Tool, ...] = TOOLS, reason: FinishReason = "stop") -> Told:
    text = CallText(tools, "req")
    shown = "".join(map(text.push, parts))
    rest, calls, why = text.end(reason)
    return shown + rest, calls, why


def cut(text: str, at: list[int]) -> list[str]:
    return [text[a:b] for a, b in pairwise([0, *sorted(n % (len(text) + 1) for n in at), len(text)])]


def test_whole_calls_of_offered_tools_are_calls() -> None:
    said, calls, reason = told(f"Let me see.\n{LOOK_UP}\n{ADD}\n")
    assert (said, reason) == ("Let me see.\n", "tool_calls")
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [
        ("look_up", {"what": "é"}),
        ("add", {"of": [1, 2]}),
    ]
    assert len({call.id for call in calls}) == 2


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "<tool_",
        "<tool_call>",
        LOOK_UP[:-1],
        f"{LOOK_UP} and more",
        f"{LOOK_UP}<tool_call>nonsense</tool_call>",
        '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "add", "arguments": "x"}</tool_call>',
        '<tool_call>{"name": "add", "arguments": {"x": NaN}}</tool_call>',
        '<tool_call>{"name": "add", "arguments": {"x": 1e999}}</tool_call>',
        "<tool_call>" + "[" * 100_000 + "</tool_call>",
        "<tool_call>" * 100_000,  # read once, not once per mark
    ],
)
def test_what_is_not_wholly_calls_stays_the_text_it_is(text: str) -> None:
    assert told(text, reason="length") == (text, (), "length")


def test_without_tools_calls_are_text_that_is_not_held_back() -> None:
    text = CallText((), "req")
    assert text.push(LOOK_UP) == LOOK_UP
    assert text.end("stop") == ("", (), "stop")


texts = st.lists(st.sampled_from([LOOK_UP, ADD, "<tool_call>", "<tool", "said ", "\n", "<", "</tool_call>"])).map(
    "".join
)


@given(texts, st.lists(st.integers(0, 500)))
def test_how_the_text_is_cut_changes_nothing(text: str, at: list[int]) -> None:
    assert told(*cut(text, at)) == told(text)


@given(texts)
def test_nothing_is_lost_and_nothing_of_a_call_is_shown_before_the_end(text: str) -> None:
    splitter = CallText(TOOLS, "req")
    shown = "".join(splitter.push(character) for character in text)
    assert text.startswith(shown)
    assert "<tool_call>" not in shown
    rest, calls, _ = splitter.end("stop")
    assert calls or shown + rest == text


@pytest.mark.parametrize(("given", "seen"), [('{"a": 1}', {"a": 1}), ("[1]", "[1]"), ("not JSON", "not JSON")])
def test_templates_get_arguments_as_an_object_where_they_are_one(given: str, seen: object) -> None:
    assert arguments_of(ToolCall(id="x", name="add", arguments=given)) == seen
