"""Items of responses and conversations: as clients send them, as they are kept, and as messages of a chat.

Kept items have every field of the API. Text, images, sound, files, functions' calls and their outputs are served;
whatever else the API has is refused by name.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from cluster.inputs import Detail
from deployments.gateway.body import UNSUPPORTED, Name, Strict, only
from deployments.gateway.chat_request import MOST_MESSAGES
from deployments.gateway.tools import Id

Item = dict[str, Any]
MOST_ITEMS = MOST_MESSAGES
Nothing = Annotated[Any, only()]


class _Text(Strict):
    type: Annotated[str, only("input_text", "output_text")]
    text: str
    annotations: Annotated[Any, only([])] = None
    logprobs: Any = None
    prompt_cache_breakpoint: Nothing = None


_SENT = {  # by what a part of that type sends
    "input_image": {"image_url"},
    "input_audio": {"input_audio"},
    "input_file": {"file_data", "file_id"},
}


class _Part(Strict):
    type: Annotated[str, only("input_text", "output_text", "input_image", "input_file", "input_audio")]
    text: str | None = None
    image_url: Annotated[str, Field(min_length=1)] | None = None
    detail: Detail | None = None
    file_data: Annotated[str, Field(min_length=1)] | None = None
    file_id: str | None = None
    filename: str | None = None
    input_audio: dict[str, str] | None = None
    file_url: Nothing = None
    annotations: Annotated[Any, only([])] = None
    logprobs: Any = None
    prompt_cache_breakpoint: Nothing = None

    @model_validator(mode="after")
    def whole(self) -> "_Part":
        sends = _SENT.get(self.type, {"text"})
        given = {name for name in {"text"}.union(*_SENT.values()) if getattr(self, name) is not None}
        if not given and self.type != "input_file":
            raise PydanticCustomError("incomplete", "{needed} is needed in a part of this type", {"needed": min(sends)})
        if beside := sorted(given - sends):  # it would be left out unsaid
            raise PydanticCustomError("beside", "no {beside} is allowed in a part of this type", {"beside": beside[0]})
        return self


def _form(content: object) -> str | None:
    return "<string>" if isinstance(content, str) else "<parts>" if isinstance(content, list) else None


_form_of = Discriminator(
    _form, custom_error_type="content_type", custom_error_message="a string or a list of parts is allowed"
)
_Texts = Annotated[list[_Text], Field(max_length=MOST_ITEMS, fail_fast=True)]
_Parts = Annotated[list[_Part], Field(max_length=MOST_ITEMS, fail_fast=True)]
_Told = Annotated[Annotated[str, Tag("<string>")] | Annotated[_Texts, Tag("<parts>")], _form_of]
_Content = Annotated[Annotated[str, Tag("<string>")] | Annotated[_Parts, Tag("<parts>")], _form_of]


class _Message(Strict):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: _Content
    id: Id | None = None
    status: Any = None
    phase: Any = None


class _Call(Strict):
    type: Literal["function_call"]
    call_id: Id
    name: Name
    arguments: str
    id: Id | None = None
    status: Any = None
    caller: Nothing = None
    namespace: Nothing = None
    created_by: Nothing = None


class _Output(Strict):
    type: Literal["function_call_output"]
    call_id: Id
    output: _Told
    id: Id | None = None
    status: Any = None
    caller: Nothing = None
    name: Name | None = None
    namespace: Nothing = None
    created_by: Nothing = None


def _kind(item: object) -> str | None:
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)
    return f"<{kind}>" if kind in ("message", "function_call", "function_call_output") else None


ItemBody = Annotated[
    Annotated[_Message, Tag("<message>")]
    | Annotated[_Call, Tag("<function_call>")]
    | Annotated[_Output, Tag("<function_call_output>")],
    Discriminator(
        _kind,
        custom_error_type=UNSUPPORTED,
        custom_error_message="not served here, items of type message, function_call or function_call_output are "
        "allowed",
    ),
]
Items = Annotated[list[ItemBody], Field(max_length=MOST_ITEMS, fail_fast=True)]
Input = Annotated[
    Annotated[str, Tag("<string>")] | Annotated[Items, Tag("<items>")],
    Discriminator(
        lambda given: "<string>" if isinstance(given, str) else "<items>",
        custom_error_type="input_type",
        custom_error_message="a string or a list of items is allowed",
    ),
]


def kept(given: str | Sequence[Any], suffix: str) -> list[Item]:
    """Items as the API shows them. `suffix`: makes their ids, and is given once."""
    if isinstance(given, str):
        given = [_Message(role="user", content=given)]
    return [_kept(item, f"{suffix}{index:04x}") for index, item in enumerate(given)]


def _kept(item: Any, suffix: str) -> Item:
    match item:
        case _Message():
            kind = "output_text" if item.role == "assistant" else "input_text"
            content = [_part(kind, part) for part in _parts(item.content)]
            head = {"id": f"msg_{suffix}", "type": "message", "role": item.role}
            return {**head, "status": "completed", "content": content}
        case _Call():
            return call_item(f"fc_{suffix}", item.call_id, item.name, item.arguments)
        case _Output():
            output = item.output
            told = output if isinstance(output, str) else [_text("input_text", text) for text in _texts(output)]
            head = {"id": f"fco_{suffix}", "type": "function_call_output", "call_id": item.call_id}
            return {**head, "output": told, "status": "completed"}
    raise AssertionError(item)


def call_item(item_id: str, call_id: str, name: str, arguments: str, status: str = "completed") -> Item:
    head = {"id": item_id, "type": "function_call", "call_id": call_id}
    return {**head, "name": name, "arguments": arguments, "status": status}


def _texts(content: str | Sequence[_Text]) -> list[str]:
    return [content] if isinstance(content, str) else [part.text for part in content]


def _parts(content: str | Sequence[_Part]) -> Sequence[_Part]:
    return [_Part(type="input_text", text=content)] if isinstance(content, str) else content


def _part(kind: str, part: _Part) -> Item:
    return part.model_dump(exclude_none=True) if part.text is None else _text(kind, part.text)


def _text(kind: str, text: str) -> Item:
    told: Item = {"type": kind, "text": text}
    return told | {"annotations": [], "logprobs": []} if kind == "output_text" else told


def messages_of(items: Iterable[tuple[Item, str]]) -> tuple[list[Item], list[str]]:
    """Messages of a chat, and where each comes from. Calls go with the assistant's words before them."""
    messages: list[Item] = []
    origins: list[str] = []
    for item, where in items:
        if item["type"] == "function_call":
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": None})
                origins.append(where)
            called = {"name": item["name"], "arguments": item["arguments"]}
            calls = messages[-1].setdefault("tool_calls", [])
            calls.append({"id": item["call_id"], "type": "function", "function": called})
            continue
        messages.append(_message(item))
        origins.append(where)
    return messages, origins


def _message(item: Item) -> Item:
    if item["type"] == "function_call_output":
        return {"role": "tool", "tool_call_id": item["call_id"], "content": _joined(item["output"])}
    content = item["content"]
    if isinstance(content, str) or all("text" in part for part in content):
        return {"role": item["role"], "content": _joined(content)}
    return {"role": item["role"], "content": [_chats(part) for part in content]}


def _chats(part: Item) -> Item:
    """A part as chats have it."""
    match part["type"]:
        case "input_image":
            return {"type": "image_url", "image_url": {"url": part["image_url"], "detail": part.get("detail")}}
        case "input_file":
            return {"type": "file", "file": {key: part.get(key) for key in ("file_data", "file_id", "filename")}}
        case "input_audio":
            return {"type": "input_audio", "input_audio": part["input_audio"]}
    return {"type": "text", "text": part["text"]}


def _joined(content: str | Sequence[Item]) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)
