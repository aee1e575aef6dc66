"""The fields of a videos request, from JSON or from a multipart form, whose files wait on disk until it is answered.

A form says an object by names such as `video[id]` and a list by `image_references[]` or by the name again, as the
`openai` package writes them; or as JSON in a field. Its files count up to `max_input_bytes` together, its other fields,
and a JSON body, up to `max_body_bytes`, where data URLs are no inputs.
"""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Never

from fastapi import Request
from starlette.datastructures import UploadFile as UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from cluster.errors import BodyTooLarge, InvalidRequest, Unavailable
from deployments.gateway.asgi import InTime, read_body
from deployments.gateway.body import bound_structure, distinct

MOST_FILES = 16
MOST_FIELDS = 64
LISTS = frozenset(("image_references", "characters"))  # of which a form may repeat the name
_NAME = re.compile(r"(?P<root>\w{1,64})(?P<of_list>\[\])?(?:\[(?P<key>\w{1,64})\])?")
_FORM = "multipart/form-data"


@asynccontextmanager
async def fields(
    request: Request, *, max_body_bytes: int, max_input_bytes: int, data_urls: bool = False
) -> AsyncIterator[dict[str, Any]]:
    """Files are UploadFile, for the length of the block. With `data_urls` what is no file may be as large.

    Raises InvalidRequest, BodyTooLarge, TooSlow, Unavailable.
    """
    most = max_input_bytes + max_body_bytes
    if not request.headers.get("content-type", "").lower().startswith(_FORM):
        body = await read_body(request.scope, request.receive, most if data_urls else max_body_bytes)
        yield await asyncio.to_thread(json_fields, body) if data_urls else json_fields(body)
        return
    parser = _Form(request.headers, _bounded(request.stream(), most), max_files=MOST_FILES, max_fields=MOST_FIELDS)
    parser.most_fields_bytes = parser.max_part_size = most if data_urls else max_body_bytes
    try:
        async with InTime(most):
            form = await parser.parse()
    except MultiPartException as error:
        raise _no_form(error.message) from None
    except (ValueError, KeyError) as error:
        raise _no_form(type(error).__name__) from None
    except ClientDisconnect:
        raise InvalidRequest("body: the connection ended before the body did; send the whole of it") from None
    except OSError as error:
        raise no_room(error) from error
    try:
        yield nested(form.multi_items())
    finally:
        await form.close()


def no_room(error: OSError) -> Unavailable:
    """What was sent cannot be put down here."""
    return Unavailable(f"videos: {error.strerror or type(error).__name__}, of what was sent; try again later")


def json_fields(body: bytes) -> dict[str, Any]:
    """Raises InvalidRequest."""
    bound_structure(body)
    try:
        given = json.loads(body, object_pairs_hook=distinct)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise InvalidRequest("body: not a JSON object; one in UTF-8 is allowed; mend the JSON", code="invalid_json")
    return given


def nested(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Fields of a form in their order, put together. Raises InvalidRequest where a name comes twice."""
    given: dict[str, Any] = {}
    for name, value in pairs:
        found = _NAME.fullmatch(name)
        if found is None:
            given[name[:64]] = value  # for who knows the parameters to refuse
            continue
        root, key = found["root"], found["key"]
        item = value if key is None else {key: value}
        if found["of_list"] or root in LISTS:
            _append(given, root, item)
        elif key is not None and isinstance(given.get(root), dict) and key not in given[root]:
            given[root][key] = value
        elif root in given:
            _twice(name)
        else:
            given[root] = item
    return given


def _append(given: dict[str, Any], root: str, item: Any) -> None:
    found = given.setdefault(root, [])
    if not isinstance(found, list):
        _twice(root)
    found.append(item)


def _twice(name: str) -> Never:
    raise InvalidRequest(f"{name[:64]}: given twice; each key is allowed once; drop one of the two", param=name[:64])


async def _bounded(stream: AsyncIterator[bytes], most: int) -> AsyncGenerator[bytes, None]:
    size = 0
    async for chunk in stream:
        size += len(chunk)
        if size > most:
            raise BodyTooLarge(
                f"body: more than {most} bytes; so many are accepted with files; send a smaller file, or a URL of it"
            )
        yield chunk


class _Form(MultiPartParser):
    """Fields that are no files stay in memory, so all of them together are bounded."""

    spool_max_size = 64 * 1024
    most_fields_bytes = 0
    _fields_bytes = 0

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._current_part.file is None:
            self._fields_bytes += end - start
            if self._fields_bytes > self.most_fields_bytes:
                raise BodyTooLarge(
                    f"body: fields of more than {self.most_fields_bytes} bytes; so many are accepted beside files; "
                    "send a data URL as a file"
                )
        super().on_part_data(data, start, end)


def _no_form(fault: str) -> InvalidRequest:
    return InvalidRequest(f"body: {fault}; {_FORM} or JSON is allowed; mend the body")
