"""The content of a chat's messages: text, and what stands beside it, as the wire has it.

Parts beside text are references and base64 text here. Whoever reads the request decodes them: see inputs.py.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from cluster.errors import InvalidRequest
from cluster.inputs import MOST_SENT, Detail, Sent
from deployments.gateway.body import UNSUPPORTED, Strict, only, shown

MOST_PARTS = 2048  # of a message: as in the API
LONGEST_NAME = 255
_STRING, _PARTS = "<string>", "<parts>"
Url = Annotated[str, Field(min_length=1)]
Base64 = Annotated[str, Field(min_length=1)]


class _Image(Strict):
    url: Url
    detail: Detail | None = None


class _Audio(Strict):
    data: Base64
    format: Literal["wav", "mp3"]


class _File(Strict):
    file_data: Base64 | None = None
    file_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    filename: str | None = None


class _Video(Strict):
    url: Url


class Part(Strict):
    """Has the field that its type names. `video_url` is none of the public API's: it is as vLLM's servers take it."""

    type: Annotated[str, only("text", "image_url", "input_audio", "file", "video_url")]
    text: str | None = None
    image_url: _Image | None = None
    input_audio: _Audio | None = None
    file: _File | None = None
    video_url: _Video | None = None
    prompt_cache_breakpoint: Annotated[Any, only()] = None


def _kind(content: object) -> str | None:
    return _STRING if isinstance(content, str) else _PARTS if isinstance(content, list) else None


Content = Annotated[
    Annotated[str, Tag(_STRING)]
    | Annotated[list[Part], Field(min_length=1, max_length=MOST_PARTS, fail_fast=True), Tag(_PARTS)],
    Discriminator(
        _kind,
        custom_error_type="content_type",
        custom_error_message='a string or a list of {"type": "text"} parts, and of others of users, is allowed',
    ),
]


def text_of(content: str | Sequence[Part] | None, role: str, message: int) -> tuple[str, list[Sent]]:
    """The text of message number `message`, a line per part, and what stands in it. Raises InvalidRequest."""
    if content is None or isinstance(content, str):
        return content or "", []
    texts: list[str] = []
    sent: list[Sent] = []
    at = 0
    for index, part in enumerate(content):
        where = f"messages[{message}].content[{index}]"
        _check(part, role, where)
        if part.type == "text":
            texts.append(part.text or "")
        else:
            texts.append("")
            sent.append(_sent(part, message, at, where))
        at += len(texts[-1]) + 1  # the line's end
    return "\n".join(texts), sent


def bounded(sent: Sequence[Sent]) -> tuple[Sent, ...]:
    """Raises InvalidRequest where they are too many."""
    if len(sent) > MOST_SENT:
        where = sent[MOST_SENT].where
        raise InvalidRequest(
            f"{where}: {len(sent)} parts of the request are no text; at most {MOST_SENT} are allowed; leave some out",
            param=where,
        )
    return tuple(sent)


def _check(part: Part, role: str, where: str) -> None:
    given = {name for name in type(part).model_fields if getattr(part, name) is not None} - {"type"}
    if part.type not in given:
        param = f"{where}.{part.type}"
        raise InvalidRequest(
            f"{param}: not given; it is required of a part of this type; add it", param=param, code="missing_parameter"
        )
    if beside := sorted(given - {part.type, "prompt_cache_breakpoint"}):
        param = f"{where}.{beside[0]}"
        raise InvalidRequest(
            f"{param}: given in a part of type {part.type}; {part.type} is allowed there; leave it out", param=param
        )
    if part.type != "text" and role != "user":
        param = f"{where}.type"
        raise InvalidRequest(
            f"{param}: given {shown(part.type)} in a message of role {role}; text is allowed there; send it in a "
            "message of role user",
            param=param,
            code=UNSUPPORTED,
        )


def _sent(part: Part, message: int, at: int, where: str) -> Sent:
    if part.image_url is not None:
        image, param = part.image_url, f"{where}.image_url.url"
        return Sent(kind="image", message=message, at=at, where=param, url=image.url, detail=image.detail or "auto")
    if part.input_audio is not None:
        audio, param = part.input_audio, f"{where}.input_audio.data"
        return Sent(kind="audio", message=message, at=at, where=param, data=audio.data, form=audio.format)
    if part.video_url is not None:
        return Sent(kind="video", message=message, at=at, where=f"{where}.video_url.url", url=part.video_url.url)
    assert part.file is not None
    return _file(part.file, message, at, where)


def _file(file: _File, message: int, at: int, where: str) -> Sent:
    if (file.file_data is None) == (file.file_id is None):
        given = "neither" if file.file_data is None else "both"
        raise InvalidRequest(
            f"{where}.file: given {given} of file_data and file_id; one of them is needed; give one",
            param=f"{where}.file",
        )
    name = "".join(c for c in (file.filename or "file")[:LONGEST_NAME] if c.isprintable()) or "file"
    if file.file_id is not None:
        return Sent(kind="file", message=message, at=at, where=f"{where}.file.file_id", file_id=file.file_id, name=name)
    data, param = file.file_data, f"{where}.file.file_data"
    assert data is not None
    if data[:5].lower() == "data:":
        return Sent(kind="file", message=message, at=at, where=param, url=data, name=name)
    return Sent(kind="file", message=message, at=at, where=param, data=data, name=name)
