"""Tools and schemas in requests: what is taken over, and what is refused with its place."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionMessageFunctionToolCall

from cluster.errors import InvalidRequest
from cluster.request import Chat, Message, Tool, ToolCall
from deployments.gateway.body import MOST_STRUCTURE_BYTES
from deployments.gateway.schemas import ANY_OBJECT, MOST_CHARS, MOST_DEPTH, SCHEMA_PATH, bounded
from deployments.gateway.tools import MOST_TOOLS
from deployments.gateway.wire import parse_chat

HELLO = {"role": "user", "content": "hello"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": '{"what":"x"}'}}
ASSISTANT = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "42"}


def tool(name: str = "look_up", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    functions = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": functions}}


def parse(**fields: Any) -> Chat:
    body = json.dumps({"model": "m", "messages": [HELLO]} | fields).encode()
    return parse_chat(body, request_id="r", created_s=0, seed=0)


def refused(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    assert caught.value.param is not None
    assert caught.value.message.startswith(caught.value.param)
    assert caught.value.message.count("; ") >= 2, "where: given; allowed; mend"
    return caught.value


def schema(value: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": value, **more}}


def test_a_tool_may_leave_out_all_but_its_name() -> None:
    assert parse(tools=[tool()]).tools == (Tool(name="look_up"),)
    assert json.loads(parse(tools=[tool()]).tools[0].parameters) == {"type": "object", "properties": {}}


@pytest.mark.parametrize(("choice", "offered"), [(None, 1), ("auto", 1), ("none", 0)])
def test_the_choice_none_leaves_the_tools_out(choice: str | None, offered: int) -> None:
    assert len(parse(tools=[tool()], tool_choice=choice).tools) == offered


@pytest.mark.parametrize(
    ("fields", "names", "calls", "forced"),
    [
        ({}, "ab", (0, None), None),
        ({"tool_choice": "auto", "parallel_tool_calls": True}, "ab", (0, None), None),
        ({"tool_choice": "required"}, "ab", (1, None), "tool_choice"),
        ({"tool_choice": "required", "parallel_tool_calls": False}, "ab", (1, 1), "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "b"}}}, "b", (1, 1), "tool_choice"),
        ({"parallel_tool_calls": False}, "ab", (0, 1), "parallel_tool_calls"),
        ({"tools": [tool("a", strict=True), tool("b")]}, "ab", (0, None), "tools"),
        ({"tools": [tool("a", strict=True)], "tool_choice": "none"}, "", (0, None), None),
        ({"tools": None, "parallel_tool_calls": False}, "", (0, None), None),
    ],
)
def test_the_choice_says_which_tools_are_called_how_often_and_what_holds_calls_to_a_form(
    fields: dict[str, Any], names: str, calls: tuple[int, int | None], forced: str | None
) -> None:
    asked = parse(**({"tools": [tool("a"), tool("b")]} | fields))
    assert "".join(one.name for one in asked.tools) == names
    assert (asked.sampling.least_calls, asked.sampling.most_calls, asked.forced) == (*calls, forced)


def test_calls_and_their_results_come_back_as_messages() -> None:
    call = ToolCall(id="call_1", name="look_up", arguments='{"what":"x"}')
    chat = parse(messages=[HELLO, ASSISTANT, RESULT, HELLO])
    assert chat.messages[1] == Message(role="assistant", content="", tool_calls=(call,))
    assert chat.messages[2] == Message(role="tool", content="42", tool_call_id="call_1")
    assert ChatCompletionMessageFunctionToolCall.model_validate(CALL, strict=True).id == call.id


def test_a_chat_that_offers_or_has_called_tools_needs_a_tier_that_knows_them() -> None:
    assert parse(tools=[tool()]).calls
    assert parse(messages=[HELLO, ASSISTANT, RESULT]).calls
    assert not parse(tools=[tool()], tool_choice="none").calls


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"tools": [tool("no spaces")]}, "tools[0].function.name", "pattern"),
        ({"tools": [tool("x" * 65)]}, "tools[0].function.name", "pattern"),
        ({"tools": [tool(), tool()]}, "tools[1].function.name", "look_up' again"),
        ({"tools": [tool(str(n)) for n in range(MOST_TOOLS + 1)]}, "tools", "at most 128 items"),
        ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters", "should be an object"),
        ({"tools": [tool(parameters={"$ref": "#"})]}, "tools[0].function.parameters", "back to itself"),
        ({"tool_choice": "auto"}, "tool_choice", "without tools"),
        ({"tools": [tool()], "tool_choice": tool("other")}, "tool_choice", "'other' is none of the tools"),
        (
            {"tools": [tool()], "tool_choice": allowed("auto", "look_up", "b")},
            "tool_choice",
            "'b' is none of the tools",
        ),
        ({"messages": [HELLO, RESULT]}, "messages[1].tool_call_id", "no call of an earlier message"),
        ({"messages": [RESULT, ASSISTANT]}, "messages[0].tool_call_id", "no call of an earlier message"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "not given"),
        ({"messages": [HELLO | {"tool_call_id": "x"}]}, "messages[0].tool_call_id", "role user"),
        ({"messages": [ASSISTANT | {"role": "user"}]}, "messages[0].tool_calls", "assistants alone"),
        ({"messages": [{"role": "assistant", "tool_calls": []}]}, "messages[0].content", "not given"),
        ({"response_format": schema({}) | {"type": "json_object"}}, "response_format.json_schema", "given beside"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "not given beside"),
        ({"response_format": schema({}, name="a b")}, "response_format.json_schema.name", "pattern"),
        ({"response_format": {"type": "grammar"}}, "response_format.type", "'json_schema'"),
    ],
)
def test_a_wrong_value_is_refused_with_its_place(fields: dict[str, Any], param: str, words: str) -> None:
    error = refused(**fields)
    assert (error.code, error.param) == ("invalid_value", param)
    assert words in error.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [tool()], "tool_choice": {"type": "allowed_tools", "mode": "auto"}}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": allowed("none", "look_up")}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": allowed("auto")}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": allowed("auto", "look_up") | {"x": 1}}, "tool_choice"),
        (
            {"tools": [tool()], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": [], "tools": [[]]}}},
            "tool_choice",
        ),
        ({"tools": [tool()], "tool_choice": "any"}, "tool_choice"),
    ],
)
def test_what_is_not_served_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    error = refused(**fields)
    assert (error.code, error.param) == ("unsupported_parameter", param)


def test_a_choice_among_allowed_tools_offers_no_other_and_may_demand_one() -> None:
    tools = [tool(name) for name in "abc"]
    for mode, least in (("auto", 0), ("required", 1)):
        asked = parse(tools=tools, tool_choice=allowed(mode, "c", "a"))
        assert [one.name for one in asked.tools] == ["a", "c"]
        assert (asked.sampling.least_calls, asked.sampling.most_calls) == (least, None)


def test_a_schema_may_stand_beside_tools_but_where_a_call_is_demanded_there_is_no_text_to_hold() -> None:
    asked = {"tools": [tool()], "response_format": {"type": "json_object"}}
    free = parse(**asked)
    assert (free.sampling.json_schema, free.forced) == (ANY_OBJECT, "response_format")
    held = parse(**asked, tool_choice="required")
    assert (held.sampling.json_schema, held.forced) == (None, "tool_choice")
    assert parse(**asked, tool_choice="none").forced is None


def called(arguments: str) -> dict[str, Any]:
    function = {"name": "look_up", "arguments": arguments}
    return ASSISTANT | {"tool_calls": [CALL | {"function": function}]}


@pytest.mark.parametrize("arguments", ["not JSON", "[" * 100, json.dumps({"text": "[" * 100_000})])
def test_arguments_of_earlier_calls_may_be_any_text(arguments: str) -> None:
    assert parse(messages=[HELLO, called(arguments)]).messages[1].tool_calls[0].arguments == arguments


@pytest.mark.parametrize("levels", [MOST_DEPTH + 1, 600, 30_000])
def test_arguments_that_would_exhaust_a_template_are_refused(levels: int) -> None:
    error = refused(messages=[HELLO, called("[" * levels + "1" + "]" * levels)])
    assert error.param == "messages[1].tool_calls[0].function.arguments"
    assert f"more than {MOST_DEPTH} levels deep" in error.message


def test_the_structure_of_all_arguments_together_is_bounded_as_that_of_the_body() -> None:
    half = called("[" + "1," * (MOST_STRUCTURE_BYTES // 4) + "1]")
    assert parse(messages=[HELLO, half])
    with pytest.raises(InvalidRequest, match=r"tool_calls: .* bytes, too many of them outside strings") as caught:
        parse(messages=[HELLO, half, half])
    assert caught.value.code == "body_too_complex"


def test_an_answer_is_held_to_a_schema_strict_or_not_and_keys_keep_their_order() -> None:
    given = {"type": "object", "properties": {"zeta": {"type": "string"}, "é": {"$ref": "#"}}}
    for strict in (None, False, True):
        assert parse(response_format=schema(given, strict=strict)).sampling.json_schema == (
            '{"type":"object","properties":{"zeta":{"type":"string"},"é":{"$ref":"#"}}}'
        )
    assert parse(response_format={"type": "json_object"}).sampling.json_schema == ANY_OBJECT
    assert parse(response_format=schema(None)).sampling.json_schema == ANY_OBJECT
    assert parse(response_format={"type": "text"}).sampling.json_schema is None


def nested(levels: int) -> dict[str, Any]:
    return {"not": nested(levels - 1)} if levels else {}


def ring(length: int) -> dict[str, Any]:
    defs = {f"d{n}": {"anyOf": [{"type": "null"}, {"$ref": f"#/$defs/d{(n + 1) % length}"}]} for n in range(length)}
    return {"$defs": defs, "$ref": "#/$defs/d0"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"description": "x" * MOST_CHARS}, f"at most {MOST_CHARS} are allowed"),
        (nested(MOST_DEPTH + 1), f"more than {MOST_DEPTH} levels deep"),
        ({"minimum": float("nan")}, "finite numbers"),
        ({"items": {"minItems": 2000}, "anyOf": [{"maxItems": 2097.0}]}, "lower them, or leave maxItems out"),
        ({"maxItems": 10**400}, "lower them"),
        ({"$ref": "#"}, "leads back to itself"),
        (ring(1), "leads back to itself"),
        (ring(400), "leads back to itself"),
        ({"$ref": "https://example.org/schema.json"}, "leads nowhere"),
        ({"$ref": "#/$defs/missing"}, "leads nowhere"),
        ({"items": {"$ref": "#anchor"}}, "leads nowhere"),
        ({"$ref": "#" + "/a" * (MOST_CHARS // 3)}, "leads nowhere"),
    ],
)
def test_a_schema_that_could_cost_an_engine_too_much_is_refused(given: dict[str, Any], words: str) -> None:
    error = refused(response_format=schema(given))
    assert (error.code, error.param) == ("invalid_value", SCHEMA_PATH)
    assert words in error.message


@pytest.mark.parametrize(
    "given",
    [
        nested(MOST_DEPTH),
        {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}},
        {"$defs": {"a/b~": {"type": "array", "items": {"$ref": "#/$defs/a~1b~0"}}}, "$ref": "#/$defs/a~1b~0"},
        {"const": {"$ref": "#/no/schema"}},
        {"properties": {"$ref": {"type": "string"}}, "additionalProperties": False, "not": False},
    ],
)
def test_a_schema_may_hold_itself_behind_a_step_into_the_value(given: dict[str, Any]) -> None:
    assert json.loads(bounded(given, "x")) == given


keywords = st.sampled_from(["$ref", "anyOf", "not", "items", "properties", "$defs", "a", "const"])
refs = st.sampled_from(["#", "#/$defs/a", "#/a", "#/a/0", "x"])
schemas = st.dictionaries(
    keywords,
    st.recursive(
        refs | st.booleans() | st.floats(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keywords, inner, max_size=3),
        max_leaves=12,
    ),
)


@settings(deadline=None, max_examples=200)
@given(schemas)
def test_any_schema_is_taken_over_or_refused(given: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidRequest):
        assert json.loads(bounded(given, "x")) == given
