"""What an answer with tools is held to, as a structural tag of xgrammar: calls as the parser `hermes` reads them.

vLLM's own server demands calls by such tags too. Pure values, without vllm.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from cluster.errors import InvalidRequest
from cluster.request import Generation, Tool
from deployments.engines.calls import CLOSE, OPEN

MOST_CALLS = 8  # of one answer: a small model may write them without end
Holds = Callable[[dict[str, Any]], bool]  # whether xgrammar holds an answer to all that a schema says


def structural_tag(generation: Generation, holds: Holds) -> str:
    """Of a generation with tools that is held. JSON text. Raises InvalidRequest."""
    s = generation.sampling
    tags = [_tag(tool, holds) for tool in generation.tools]
    if s.json_schema is not None:
        schema = json.loads(s.json_schema)
        if not holds(schema):
            raise _refusal("response_format", "the schema")
        other = _json(schema)
        return _told({"type": "or", "elements": [_calls(tags, s.most_calls), other]})
    if s.least_calls:
        return _told(_calls(tags, s.most_calls))
    first = {"type": "triggered_tags", "triggers": [OPEN], "tags": tags, "stop_after_first": True}
    return _told({"type": "sequence", "elements": [first, *_more(tags, s.most_calls)]})


def _calls(tags: Sequence[Any], most: int | None) -> Any:
    return {"type": "sequence", "elements": [_call(tags), *_more(tags, most)]}


def _more(tags: Sequence[Any], most: int | None) -> list[Any]:
    """Calls behind the first."""
    if most == 1:
        return []
    one = {"type": "sequence", "elements": [{"type": "const_string", "value": "\n"}, _call(tags)]}
    return [{"type": "repeat", "min": 0, "max": MOST_CALLS - 1, "content": one}]


def _call(tags: Sequence[Any]) -> Any:
    return {"type": "or", "elements": [*tags]} if len(tags) > 1 else tags[0]


def _tag(tool: Tool, holds: Holds) -> Any:
    """Arguments of tools that are not strict meet their schema, too, where they can be held to it."""
    schema = json.loads(tool.parameters)
    if not holds(schema):
        if tool.strict:
            raise _refusal("tools", f"the parameters of {tool.name!r}")
        schema = {"type": "object"}
    begin = f'{OPEN}\n{{"name": "{tool.name}", "arguments": '
    return {"type": "tag", "begin": begin, "content": _json(schema), "end": f"}}\n{CLOSE}"}


def _json(schema: dict[str, Any]) -> Any:
    """Small models may write white space without end."""
    return {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": 1}


def _told(form: Any) -> str:
    return json.dumps({"type": "structural_tag", "format": form})


def _refusal(param: str, what: str) -> InvalidRequest:
    return InvalidRequest(
        f"{param}: the engine cannot hold an answer to all that {what} say; mend the schema, or name another tier",
        param=param,
    )
