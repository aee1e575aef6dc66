"""What the bodies of all requests share: bounded structure, no key twice, faults told as one InvalidRequest.

JSON costs a parser by its structure, not its text: a megabyte of empty lists holds an event loop up for a third of a
second, a megabyte of prompt for a millisecond. So what stands outside strings is bounded before anything is parsed.
"""

import json
import re
import reprlib
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError
from pydantic_core.core_schema import no_info_after_validator_function

from cluster.errors import InvalidRequest

MOST_STRUCTURE_BYTES = 65_536  # some 2000 messages of a chat, or 20 ms of parsing
UNSUPPORTED = "unsupported_parameter"
_LONGEST_NAME = 64
_MOST_FAULTS = 100
_shown = reprlib.Repr()
_shown.maxstring = _shown.maxother = 60
_shown.maxlist = _shown.maxdict = _shown.maxlevel = 2
_B = TypeVar("_B", bound=BaseModel)
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]  # the API's for functions and formats


class Strict(BaseModel):
    """Closed, and without conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Only:
    """What of a field passes, and how the API's description tells it."""

    def __init__(self, *allowed: object) -> None:
        self._allowed = allowed

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": [*self._allowed, None]}

    def _check(self, value: object) -> object:
        if value is not None and value not in self._allowed:
            listed = " or ".join(map(json.dumps, self._allowed or (None,)))
            raise PydanticCustomError(UNSUPPORTED, "not served here, {allowed} is allowed", {"allowed": listed})
        return value


def only(*allowed: object) -> Only:
    """A parameter of the public API that is not served yet: only values that ask for nothing pass."""
    return Only(*allowed)


def shown(value: object) -> str:
    """A glimpse of what was given."""
    return _shown.repr(value)


def bound_structure(*texts: bytes, where: str = "body") -> None:
    """Raises InvalidRequest where too much of the JSON in all of them is brackets, commas, numbers and the like."""
    size = sum(map(len, texts))
    if size <= MOST_STRUCTURE_BYTES:
        return
    if sum(map(_structure_bytes, texts)) > MOST_STRUCTURE_BYTES:
        raise InvalidRequest(
            f"{where}: {size} bytes, too many of them outside strings; at most {MOST_STRUCTURE_BYTES} are allowed "
            "there; send fewer items",
            code="body_too_complex",
        )


def _structure_bytes(text: bytes) -> int:
    unescaped = text.replace(rb"\\", b"").replace(rb"\"", b"")
    # Every string needs a byte outside, so so many splits are enough to tell.
    outside = unescaped.split(b'"', 2 * MOST_STRUCTURE_BYTES)[::2]
    return len(b"".join(outside).translate(None, b" \t\r\n"))


def distinct(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs of a JSON object or a form. Raises InvalidRequest where a name comes twice."""
    given: dict[str, Any] = {}
    for key, value in pairs:
        if key in given:
            name = key[:_LONGEST_NAME]
            raise InvalidRequest(f"{name}: given twice; each key is allowed once; drop one of the two", param=name)
        given[key] = value
    return given


def refusal(error: ValidationError, known: Iterable[str], private: Collection[str] = ()) -> InvalidRequest:
    """The first fault, one that names an unserved parameter before others. Values of private fields are not shown.

    `known`: the parameters there are, of which the nearest is offered for a misspelt one.
    """
    if error.error_count() > _MOST_FAULTS:  # listing them would hold the gateway up for others
        text = f"body: {error.error_count()} faults; parameters of the OpenAI API are allowed; mend the request"
        return InvalidRequest(text)
    faults = error.errors(include_url=False)
    fault = next((fault for fault in faults if fault["type"] == UNSUPPORTED), faults[0])
    param = _param(fault["loc"])
    where = param or "body"
    match fault["type"]:
        case "json_invalid":
            text = f"{where}: {fault['msg']}; a JSON object in UTF-8 is allowed; mend the JSON"
            return InvalidRequest(text, code="invalid_json")
        case "extra_forbidden":
            text = f"{where}: not a parameter here; those of the OpenAI API are allowed; {_nearest(fault, known)}"
            return InvalidRequest(text, param=param, code="unknown_parameter")
        case "missing":
            return InvalidRequest(f"{where}: not given; it is required; add it", param=param, code="missing_parameter")
    code = UNSUPPORTED if fault["type"] == UNSUPPORTED else None
    mend = "leave it out" if code else "change the value"
    given = "this value" if param and re.split(r"[.\[]", param)[0] in private else f"given {shown(fault['input'])}"
    allowed = fault["msg"][:1].lower() + fault["msg"][1:]
    return InvalidRequest(f"{where}: {given}; {allowed}; {mend}", param=param, code=code)


def parsed(kind: type[_B], fields: Mapping[str, Any]) -> _B:
    """Raises InvalidRequest."""
    try:
        return kind.model_validate(dict(fields))
    except ValidationError as error:
        # Not chained: it prints its input.
        raise refusal(error, kind.model_fields, kind.model_fields.keys()) from None


def _param(loc: tuple[int | str, ...]) -> str | None:
    """OpenAI's way to name a field: messages[0].content. Tags of a union, as <parts>, are no field of the caller's."""
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith("<"):
            path += f".{part[:_LONGEST_NAME]}" if path else part[:_LONGEST_NAME]
    return path or None


def _nearest(fault: ErrorDetails, known: Iterable[str]) -> str:
    near = get_close_matches(str(fault["loc"][-1])[:_LONGEST_NAME], known, n=1)
    return f"did you mean {near[0]}?" if near else "leave it out"
