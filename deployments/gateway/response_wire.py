"""The response side of /v1/responses: the object, and its stream of events.

A response is kept with the lengths of the pieces that its stream was told in, so whoever asks for the stream later
hears the same events under the same numbers, from any gateway. Pure.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter

from cluster.errors import MorayError, Overloaded, RequestError
from deployments.gateway.response_items import Item, call_item
from deployments.gateway.response_request import ResponseBody
from deployments.gateway.sampled import SERVICE_CLASSES

Event = dict[str, Any]
ENDED = ("completed", "incomplete", "failed", "cancelled")
TERMINAL = {"completed": "completed", "incomplete": "incomplete"}  # other ends are told as failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A response as its row has it. `input`: what this request added; `context` items came before it.

    `chat`: the body of the chat completion that answers it, and `origins` of its messages, until it has ended. `cuts`:
    characters and log-probabilities of each piece that its stream told. `headers`: what the caller wishes of tiers.
    """

    response: dict[str, Any]
    input: list[Item]
    chat: dict[str, Any] | None = None
    origins: list[str] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    cuts: list[tuple[int, int]] = field(default_factory=list)
    streamed: bool = False
    attempts: int = 0

    @property
    def ended(self) -> bool:
        return self.response["status"] in ENDED

    @property
    def text(self) -> str:
        """Of the answer, so far."""
        return "".join(item["content"][0]["text"] for item in self.response["output"] if item["type"] == "message")

    def dumped(self) -> str:
        return json.dumps(asdict(self))


KEPT: TypeAdapter[Kept] = TypeAdapter(Kept)


def begun(asked: ResponseBody, response_id: str, created_s: int) -> dict[str, Any]:
    """The object before anything has come."""
    text = asked.text.model_dump(by_alias=True, exclude_none=True) if asked.text else {}
    tools = [tool.model_dump(by_alias=True, exclude_none=True) for tool in asked.tools or ()]
    return {
        "id": response_id,
        "object": "response",
        "created_at": created_s,
        "status": "queued" if asked.background else "in_progress",
        "background": bool(asked.background),
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "max_tool_calls": None,
        "model": asked.model,
        "output": [],
        "parallel_tool_calls": True if asked.parallel_tool_calls is None else asked.parallel_tool_calls,
        "previous_response_id": asked.previous_response_id,
        "conversation": {"id": asked.conversation_id} if asked.conversation_id is not None else None,
        "prompt_cache_key": asked.prompt_cache_key,
        "reasoning": {"effort": asked.reasoning.effort if asked.reasoning else None, "summary": None},
        "safety_identifier": asked.safety_identifier,
        "service_tier": SERVICE_CLASSES.get(asked.service_tier) or "default",
        "store": asked.kept,
        "temperature": 1.0 if asked.temperature is None else asked.temperature,
        "text": {"format": {"type": "text"}, "verbosity": "medium"} | text,
        "tool_choice": "auto" if asked.tool_choice is None else asked.tool_choice,
        "tools": [{"parameters": None, "strict": False} | tool for tool in tools],
        "top_logprobs": asked.top_logprobs or 0,
        "top_p": 1.0 if asked.top_p is None else asked.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": asked.user,
        "metadata": asked.metadata or {},
    }


@dataclass(slots=True, kw_only=True)
class Answer:
    """What a chat answered, as it is put together. `finish_reason`: None before its end."""

    text: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    model: str | None = None
    service_tier: str | None = None
    cuts: list[tuple[int, int]] = field(default_factory=list)

    def hear(self, chunk: Mapping[str, Any]) -> None:
        """A chunk of a stream, or a whole completion."""
        self.model, self.service_tier = chunk["model"], chunk.get("service_tier")
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk["choices"]:
            said = choice["delta"] if "delta" in choice else choice["message"]
            text, logprobs = said.get("content") or "", (choice.get("logprobs") or {}).get("content") or []
            self.calls += said.get("tool_calls") or ()
            self.finish_reason = choice["finish_reason"] or self.finish_reason
            if text or logprobs:
                self.text += text
                self.logprobs += logprobs
                self.cuts.append((len(text), len(logprobs)))


def so_far(response: dict[str, Any], answer: Answer) -> dict[str, Any]:
    """While it goes on."""
    output = [_message(response["id"], answer, "in_progress")] if answer.cuts else []
    return response | {"status": "in_progress", "output": output}


def ended(response: dict[str, Any], answer: Answer, now_s: int) -> dict[str, Any]:
    """Complete, or cut at its length."""
    cut = answer.finish_reason == "length"
    status = "incomplete" if cut else "completed"
    output = [_message(response["id"], answer, status)] if answer.text or not answer.calls else []
    suffix = response["id"].removeprefix("resp_")
    for index, call in enumerate(answer.calls):
        function = call["function"]
        output.append(call_item(f"fc_{suffix}{index:04x}", call["id"], function["name"], function["arguments"]))
    return response | {
        "status": status,
        "completed_at": None if cut else now_s,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "model": answer.model or response["model"],
        "service_tier": answer.service_tier or response["service_tier"],
        "output": output,
        "usage": _usage(answer.usage) if answer.usage else None,
    }


def failed(response: dict[str, Any], answer: Answer, error: MorayError) -> dict[str, Any]:
    """With what had come."""
    code = "server_error"
    if isinstance(error, Overloaded):
        code = "rate_limit_exceeded"
    elif isinstance(error, RequestError):
        code = "invalid_prompt"
    told = {"code": code, "message": error.message}
    output = [_message(response["id"], answer, "incomplete")] if answer.cuts else []
    return response | {"status": "failed", "output": output, "error": told}


def cancelled(response: dict[str, Any]) -> dict[str, Any]:
    output = [item | {"status": "incomplete"} for item in response["output"]]
    return response | {"status": "cancelled", "output": output}


def _message(response_id: str, answer: Answer, status: str) -> Item:
    content = {"type": "output_text", "text": answer.text, "annotations": [], "logprobs": answer.logprobs}
    message_id = f"msg_{response_id.removeprefix('resp_')}"
    return {"id": message_id, "type": "message", "role": "assistant", "status": status, "content": [content]}


def _usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    told = {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }
    return told | ({"moray": usage["moray"]} if "moray" in usage else {})


def rendered(event: Event) -> bytes:
    return f"event: {event['type']}\ndata: {json.dumps(event, separators=(',', ':'))}\n\n".encode("ascii")


class Narration:
    """The events of one response, in order and numbered from 0. Call `until` with each later state of it."""

    def __init__(self) -> None:
        self.number = 0  # of the next one
        self._stage = "new"  # then created, begun, ended
        self._chars = self._logprobs = self._cuts = 0
        self._open: Item | None = None  # the message whose text is being told

    def until(self, response: dict[str, Any], cuts: Sequence[tuple[int, int]]) -> list[Event]:
        """What had not been told before this state."""
        return [event | {"sequence_number": self._count()} for event in self._until(response, cuts)]

    def _count(self) -> int:
        self.number += 1
        return self.number - 1

    def _until(self, response: dict[str, Any], cuts: Sequence[tuple[int, int]]) -> Iterator[Event]:
        status = response["status"]
        if self._stage == "new":
            yield from self._created(response)
        if self._stage == "created" and status != "queued":
            self._stage = "begun"
            yield {"type": "response.in_progress", "response": _bare(response, "in_progress")}
        if self._stage == "begun":
            yield from self._told(response, cuts)
        if status in ENDED and self._stage == "begun":
            self._stage = "ended"
            yield from self._items(response)
            yield {"type": f"response.{TERMINAL.get(status, 'failed')}", "response": response}

    def _created(self, response: dict[str, Any]) -> Iterator[Event]:
        self._stage = "created"
        if not response["background"]:
            yield {"type": "response.created", "response": _bare(response, "in_progress")}
            return
        for kind in ("created", "queued"):
            yield {"type": f"response.{kind}", "response": _bare(response, "queued")}

    def _told(self, response: dict[str, Any], cuts: Sequence[tuple[int, int]]) -> Iterator[Event]:
        message = next((item for item in response["output"] if item["type"] == "message"), None)
        if message is None:
            return
        if self._open is None and (len(cuts) or response["status"] in ENDED):
            self._open = message
            yield {"type": "response.output_item.added", "output_index": 0, "item": _empty(message)}
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            yield {"type": "response.content_part.added", **self._place(), "part": part}
        content = message["content"][0]
        for chars, logprobs in cuts[self._cuts :]:
            delta = content["text"][self._chars : self._chars + chars]
            told = content["logprobs"][self._logprobs : self._logprobs + logprobs]
            self._chars, self._logprobs, self._cuts = self._chars + chars, self._logprobs + logprobs, self._cuts + 1
            yield {"type": "response.output_text.delta", **self._place(), "delta": delta, "logprobs": told}

    def _items(self, response: dict[str, Any]) -> Iterator[Event]:
        for index, item in enumerate(response["output"]):
            if item["type"] == "message":
                content = item["content"][0]
                done = {"text": content["text"], "logprobs": content["logprobs"]}
                yield {"type": "response.output_text.done", **self._place(), **done}
                yield {"type": "response.content_part.done", **self._place(), "part": content}
            else:
                place = {"item_id": item["id"], "output_index": index}
                kind, arguments = "response.function_call_arguments", item["arguments"]
                added = item | {"status": "in_progress", "arguments": ""}
                yield {"type": "response.output_item.added", "output_index": index, "item": added}
                yield {"type": f"{kind}.delta", **place, "delta": arguments}
                yield {"type": f"{kind}.done", **place, "name": item["name"], "arguments": arguments}
            yield {"type": "response.output_item.done", "output_index": index, "item": item}

    def _place(self) -> dict[str, Any]:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": 0, "content_index": 0}


def _bare(response: dict[str, Any], status: str) -> dict[str, Any]:
    """As it was when it began."""
    nothing: dict[str, Any] = {
        "output": [],
        "usage": None,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
    }
    return response | nothing | {"status": status}


def _empty(message: Item) -> Item:
    return message | {"status": "in_progress", "content": []}
