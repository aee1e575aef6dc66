"""JSON schemas that callers send: bounded and walked here, before an engine compiles them.

Their keywords are the engine's to judge: it refuses what it cannot hold an answer to. What is refused here could cost
it much, or never end: text without bound, deep nesting, patterns that count in counts, long lists counted out, and a
`$ref` that leads back to itself without a step into the value. A schema that holds itself in a property or an item is
fine. The order of keys is kept: answers follow it.
"""

import json
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Any, Literal

from pydantic import Field

from cluster.errors import InvalidRequest
from deployments.gateway.body import Name, Strict, shown
from deployments.gateway.patterns import expanded

MOST_CHARS = 32_768
MOST_PATTERN = 1000  # characters of all patterns, repetitions written out: a third of a second of an engine's time
MOST_ITEMS = 4096  # of all lists that count theirs: engines write each item out
MOST_DEPTH = 48  # of the JSON: some 16 objects in each other
ANY_OBJECT = '{"type":"object"}'
SCHEMA_PATH = "response_format.json_schema.schema"
_IN_PLACE = ("anyOf", "oneOf", "allOf", "not", "if", "then", "else")  # schemas of the same value
_DATA = ("const", "enum", "default", "examples")  # values, no schemas


class _Named(Strict):
    name: Name
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class Format(Strict):
    """`response_format`. Every schema is held to, strict or not."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: _Named | None = None


def json_schema(asked: Format | None) -> str | None:
    """The JSON text of what an answer must meet, None where text is asked for. Raises InvalidRequest."""
    if asked is None:
        return None
    if (asked.type == "json_schema") != (asked.json_schema is not None):
        raise InvalidRequest(
            f"response_format.json_schema: {'not ' * (asked.json_schema is None)}given beside type {asked.type}; it "
            "belongs to type json_schema alone; mend one of the two",
            param="response_format.json_schema",
        )
    if asked.type == "text":
        return None
    if asked.json_schema is None or asked.json_schema.schema_ is None:
        return ANY_OBJECT
    return bounded(asked.json_schema.schema_, SCHEMA_PATH)


def bounded(schema: dict[str, Any], param: str) -> str:
    """Its JSON text. Raises InvalidRequest, which names `param`, where it is too large, too deep, or circular."""
    try:
        text = json.dumps(schema, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise _refusal(param, "a number that JSON has not", "finite numbers are allowed; mend it") from error
    if len(text) > MOST_CHARS:
        raise _refusal(param, f"{len(text)} characters", f"at most {MOST_CHARS} are allowed; shorten the schema")
    if depth(schema) > MOST_DEPTH:
        raise _refusal(param, f"more than {MOST_DEPTH} levels deep", f"{MOST_DEPTH} are allowed; flatten the schema")
    _walk(schema, param)
    written = sum(map(expanded, _patterns(schema)))
    if written > MOST_PATTERN:
        given = f"patterns of {written} characters, counted repetitions written out"
        raise _refusal(param, given, f"at most {MOST_PATTERN} are allowed; shorten their counts, or use maxLength")
    if sum(map(_counted, _nodes(schema))) > MOST_ITEMS:
        given = f"minItems and maxItems of more than {MOST_ITEMS} together"
        raise _refusal(param, given, f"{MOST_ITEMS} are allowed; lower them, or leave maxItems out")
    return text


def _counted(node: dict[str, Any]) -> float:
    counts = (node.get("minItems"), node.get("maxItems"))
    return max((count for count in counts if isinstance(count, int | float)), default=0)


def _patterns(schema: dict[str, Any]) -> Iterator[str]:
    for node in _nodes(schema):
        named = node.get("patternProperties")
        yield from named if isinstance(named, dict) else ()
        if isinstance(node.get("pattern"), str):
            yield node["pattern"]


def _refusal(param: str, given: str, mend: str) -> InvalidRequest:
    return InvalidRequest(f"{param}: {given}; {mend}", param=param)


def depth(value: object) -> int:
    """Levels of JSON. Raises RecursionError beyond some hundreds."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(depth, inner)) if inner else 0


def _walk(schema: dict[str, Any], param: str) -> None:
    """Follows every reference once. Objects are told apart by identity: equal ones may stand in many places."""
    graph = {id(node): [id(one) for one in _in_place(node, schema, param)] for node in _nodes(schema)}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError:
        raise _refusal(
            param,
            "a $ref leads back to itself",
            "a schema may hold itself only inside its properties or items; mend the $ref",
        ) from None


def _nodes(value: object) -> Iterator[dict[str, Any]]:
    if isinstance(value, list):
        for item in value:
            yield from _nodes(item)
    elif isinstance(value, dict):
        yield value
        for key, item in value.items():
            if key not in _DATA:
                yield from _nodes(item)


def _in_place(node: dict[str, Any], root: dict[str, Any], param: str) -> Iterator[object]:
    """The schemas that the same value must meet."""
    if isinstance(node.get("$ref"), str):
        yield _target(node["$ref"], root, param)
    for key in _IN_PLACE:
        inner = node.get(key)
        yield from inner if isinstance(inner, list) else () if inner is None else (inner,)


def _target(ref: str, root: dict[str, Any], param: str) -> object:
    """What a JSON pointer (RFC 6901) leads to."""
    if ref == "#":
        return root
    if ref.startswith("#/") and ref.count("/") <= MOST_DEPTH:
        value: object = root
        for part in ref[2:].split("/"):
            value = value.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(value, dict) else None
        if isinstance(value, dict):
            return value
    raise _refusal(
        param,
        f"$ref {shown(ref)} leads nowhere",
        "pointers to objects of this schema, as #/$defs/a, are allowed; mend it",
    )
