"""Tools in the request side of the OpenAI wire: functions that the model may call, calls and their results in messages.

`none` leaves the tools out of the prompt, and a named function, which is called once, or a list of allowed ones the
others. Tools of another kind are refused by name.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from cluster.errors import InvalidRequest
from cluster.request import Message, Tool, ToolCall
from deployments.gateway.body import UNSUPPORTED, Name, Strict, bound_structure, only, shown
from deployments.gateway.schemas import MOST_DEPTH, bounded, depth

MOST_TOOLS = 128  # as in the API
Id = Annotated[str, Field(min_length=1, max_length=256)]


class _Function(Strict):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(Strict):
    type: Annotated[str, only("function")]
    function: _Function


class _Called(Strict):
    name: Name
    arguments: str


class CallBody(Strict):
    """A call of an earlier answer, as it comes back in a message."""

    id: Id
    type: Annotated[str, only("function")]
    function: _Called


Tools = Annotated[list[ToolBody], Field(max_length=MOST_TOOLS, fail_fast=True)]
Calls = Annotated[list[CallBody], Field(max_length=MOST_TOOLS, fail_fast=True)]


def offered(tools: Sequence[ToolBody], choice: object) -> tuple[Tool, ...]:
    """The tools that the model may call, by `tool_choice`. Raises InvalidRequest."""
    names = set[str]()
    for index, tool in enumerate(tools):
        if tool.function.name in names:
            param = f"tools[{index}].function.name"
            raise InvalidRequest(
                f"{param}: {tool.function.name!r} again; each tool needs its own name; rename one of the two",
                param=param,
            )
        names.add(tool.function.name)
    given = tuple(_tool(tool.function, f"tools[{index}].function.parameters") for index, tool in enumerate(tools))
    _check_choice(choice, names)
    if (some := _some(choice)) is not None:
        return tuple(tool for tool in given if tool.name in some)
    return () if choice == "none" else given


def counted(choice: object, parallel: bool | None) -> tuple[int, Literal[1] | None]:
    """The least and the most calls of an answer, by `tool_choice` and `parallel_tool_calls`."""
    named = _named(choice) is not None
    required = choice == "required" or _allowed(choice)[0] == "required"
    return int(named or required), 1 if named or parallel is False else None


def _named(choice: object) -> str | None:
    match choice:
        case {"type": "function", "function": {"name": str(name), **rest}, **beside} if not (rest or beside):
            return name
    return None


def _allowed(choice: object) -> tuple[str, list[str]]:
    """The mode and the names of a choice among allowed tools; "" and none where it is another choice."""
    match choice:
        case {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [_, *_] as tools, **rest}, **beside}:
            names = [name for tool in tools if (name := _named(tool)) is not None]
            if mode in ("auto", "required") and len(names) == len(tools) and not (rest or beside):
                return mode, names
    return "", []


def _some(choice: object) -> list[str] | None:
    """The tools that a choice names, None where it names none."""
    name = _named(choice)
    return _allowed(choice)[1] or None if name is None else [name]


def _tool(function: _Function, param: str) -> Tool:
    said = Tool(name=function.name, description=function.description or "", strict=bool(function.strict))
    return said if function.parameters is None else replace(said, parameters=bounded(function.parameters, param))


def _check_choice(choice: object, names: set[str]) -> None:
    code = None
    match choice:
        case None | "none":
            return
        case _ if not names:
            told = "given without tools; it is allowed beside tools; add tools, or leave it out"
        case "auto" | "required":
            return
        case _ if (some := _some(choice)) is not None:
            if (other := next((name for name in some if name not in names), None)) is None:
                return
            told = f"{shown(other)} is none of the tools; {', '.join(sorted(names))} are allowed; choose some of them"
        case _:
            told = (
                f"given {shown(choice)}; not served here; none, auto, required, one function, or allowed_tools of mode "
                "auto or required with some functions is allowed; mend it"
            )
            code = UNSUPPORTED
    raise InvalidRequest(f"tool_choice: {told}", param="tool_choice", code=code)


def calls_of(calls: Sequence[CallBody]) -> tuple[ToolCall, ...]:
    return tuple(ToolCall(id=one.id, name=one.function.name, arguments=one.function.arguments) for one in calls)


def _check_arguments(call: ToolCall, param: str) -> None:
    """They may be any text. Of JSON, which templates walk, the depth is bounded."""
    try:
        deep = depth(json.loads(call.arguments)) > MOST_DEPTH
    except ValueError:
        return
    except RecursionError:
        deep = True
    if deep:
        raise InvalidRequest(
            f"{param}: more than {MOST_DEPTH} levels deep; {MOST_DEPTH} are allowed; flatten the arguments", param=param
        )


def check_calls(messages: Sequence[Message]) -> None:
    """Calls are an assistant's; each result answers one of an earlier message. Raises InvalidRequest.

    Arguments are JSON in a string of the body: they are bounded as the body is.
    """
    arguments = (call.arguments.encode() for message in messages for call in message.tool_calls)
    bound_structure(*arguments, where="tool_calls")
    open_ids = set[str]()
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        for number, call in enumerate(message.tool_calls):
            _check_arguments(call, f"{where}.tool_calls[{number}].function.arguments")
        if message.tool_calls and message.role != "assistant":
            param = f"{where}.tool_calls"
            raise InvalidRequest(
                f"{param}: given in a message of role {message.role}; assistants alone call tools; leave it out",
                param=param,
            )
        if (message.tool_call_id is not None) != (message.role == "tool"):
            param = f"{where}.tool_call_id"
            given = "not given" if message.tool_call_id is None else "given"
            raise InvalidRequest(
                f"{param}: {given} in a message of role {message.role}; messages of role tool alone have one, which "
                "names a call; mend the message",
                param=param,
            )
        if message.tool_call_id is not None and message.tool_call_id not in open_ids:
            param = f"{where}.tool_call_id"
            raise InvalidRequest(
                f"{param}: {shown(message.tool_call_id)} is no call of an earlier message; ids of tool_calls are "
                "allowed; send the assistant's message with its tool_calls before its results",
                param=param,
            )
        open_ids |= {call.id for call in message.tool_calls}
