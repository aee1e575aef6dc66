"""The lines of a batch: what a client sends, what is wrong with it, and what is told of each. Pure."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from cluster.errors import InvalidRequest, MorayError
from deployments.gateway.body import Strict, bound_structure, refusal
from deployments.gateway.wire import error_body

MOST_LINES = 50_000  # as in the API
MOST_FAULTS = 100  # that are told
ENDPOINTS = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]


class _Line(Strict):
    custom_id: Annotated[str, Field(min_length=1, max_length=512)]
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Where it is in the file, in bytes, and what its batch must know of it."""

    number: int
    start: int
    length: int
    custom_id: str
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    code: str
    message: str
    line: int | None = None
    param: str | None = None


def lines_of(file: Iterable[bytes], endpoint: str, most_bytes: int) -> tuple[list[Line], list[Fault]]:
    """All lines but empty ones, or what is wrong with some."""
    lines: list[Line] = []
    faults: list[Fault] = []
    seen: set[str] = set()
    start = 0
    for number, text in enumerate(file, start=1):
        try:
            if text.strip():
                line = _line(text, number, start, endpoint, most_bytes)
                _once(line, seen, len(lines))
                lines.append(line)
        except InvalidRequest as error:
            faults.append(Fault(code=error.code, message=error.message, line=number, param=error.param))
        if len(faults) == MOST_FAULTS or len(lines) > MOST_LINES:
            break
        start += len(text)
    if not lines and not faults:
        faults.append(Fault(code="empty_file", message="input_file_id: no line is in it; send a file with some"))
    return lines, faults


def _line(text: bytes, number: int, start: int, endpoint: str, most_bytes: int) -> Line:
    if len(text) > most_bytes:
        raise InvalidRequest(
            f"body: {len(text)} bytes; at most {most_bytes} are allowed in a line; shorten it", code="body_too_large"
        )
    bound_structure(text)
    try:
        asked = _Line.model_validate_json(text)
    except ValidationError as error:
        raise refusal(error, _Line.model_fields, _Line.model_fields.keys()) from None
    if asked.url != endpoint:
        raise InvalidRequest(
            f"url: given {asked.url[:64]!r}; {endpoint}, as the batch says, is allowed; change one of the two",
            param="url",
            code="mismatched_endpoint",
        )
    model = asked.body.get("model")
    if asked.body.get("stream") or asked.body.get("background"):
        raise InvalidRequest("body.stream: a line is answered whole; leave stream and background out", param="body")
    return Line(
        number=number, start=start, length=len(text), custom_id=asked.custom_id, model=str(model) if model else ""
    )


def _once(line: Line, seen: set[str], before: int) -> None:
    if line.custom_id in seen:
        raise InvalidRequest(
            "custom_id: a line before has the same; each line needs its own; rename one",
            param="custom_id",
            code="duplicate_custom_id",
        )
    seen.add(line.custom_id)
    if before >= MOST_LINES:
        raise InvalidRequest(
            f"input_file_id: more than {MOST_LINES} lines; so many are allowed; make two batches", code="too_many_lines"
        )


def body_of(text: bytes) -> bytes:
    """What a line asks its endpoint. Keys given twice are refused there: the text within the line is kept."""
    asked = json.loads(text, object_pairs_hook=_pairs)
    return json.dumps(asked["body"]).encode()


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise InvalidRequest("body: a key is given twice; each is allowed once; drop one of the two")
    return found


def answered(line_id: str, custom_id: str, request_id: str, body: Any) -> str:
    response = {"status_code": 200, "request_id": request_id, "body": body}
    return json.dumps({"id": line_id, "custom_id": custom_id, "response": response, "error": None})


def refused(line_id: str, custom_id: str, request_id: str, error: MorayError) -> str:
    response = {"status_code": error.status, "request_id": request_id, "body": json.loads(error_body(error))}
    return json.dumps({"id": line_id, "custom_id": custom_id, "response": response, "error": None})


def unasked(line_id: str, custom_id: str, code: str) -> str:
    """Of a line whose turn did not come."""
    why = {"batch_expired": "the batch expired before its turn came", "batch_cancelled": "the batch was cancelled"}
    told = {"code": code, "message": f"{why[code]}; send it again"}
    return json.dumps({"id": line_id, "custom_id": custom_id, "response": None, "error": told})


def spent(usages: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The usage of all answers together, of either endpoint."""
    told = {"input_tokens": 0, "output_tokens": 0}
    cached = 0
    for usage in usages:
        told["input_tokens"] += usage.get("input_tokens", usage.get("prompt_tokens", 0))
        told["output_tokens"] += usage.get("output_tokens", usage.get("completion_tokens", 0))
        details = usage.get("input_tokens_details") or usage.get("prompt_tokens_details") or {}
        cached += details.get("cached_tokens", 0)
    return {
        **told,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": told["input_tokens"] + told["output_tokens"],
    }
