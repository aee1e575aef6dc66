"""The response side of the OpenAI wire: chat completions, chunks, errors and models as bytes. Requests: `parse_chat`.

A chunk differs from its neighbours in one string, so all around it is rendered once per stream. Strings are escaped to
ASCII: some clients split server-sent events at U+2028 and its like. Times are Unix seconds, as the API has them.
"""

import json
import math
from collections.abc import Sequence
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from cluster.errors import MethodNotAllowed, MorayError, NotFound, Overloaded, QuotaExceeded, RateLimited, Unavailable
from cluster.family import Auto, Family, Tier, Video
from cluster.request import Chat, Piece, Served, TokenLogprob, ToolCall, Usage
from deployments.gateway.chat_request import parse_chat
from deployments.stores.key_rows import masked

__all__ = [
    "ChatRendering",
    "error_body",
    "error_event",
    "error_headers",
    "model_object",
    "models_list",
    "parse_chat",
    "served_name",
]

DONE = b"data: [DONE]\n\n"
_UNLIKELY = -9999.0  # the API's value for a log-probability too low to state
_LONGEST_RETRY_S = 86_400.0


def served_name(model: str, label: str) -> str:
    """The model a response names: as asked, and what it truly was where the engine only simulates one."""
    return f"{model} ({label})" if label else model


class ChatRendering:
    """One answer: the server-sent events of its stream, role, pieces, end, or its body where it comes whole.

    A stream that goes on behind given tokens has no role again: its client has it. Where the chat asks for continuous
    usage, pieces have theirs so far. `fingerprint` changes where equal seeds may not give equal answers any more.
    """

    def __init__(self, chat: Chat, label: str = "", fingerprint: str | None = None) -> None:
        self._chat = chat
        self._about = about(chat, label, fingerprint)
        self._head = f"data: {dumps({**self._about, 'object': 'chat.completion.chunk'})[:-1]},"
        self._content = f'{self._head}"choices":[{{"index":{chat.choice},"delta":{{"content":'
        self._usage = ',"usage":null' if chat.include_usage else ""
        self._tail = f'}},"logprobs":null,"finish_reason":null}}]{self._usage}}}\n\n'

    def role(self, usage: Usage | None = None) -> bytes:
        if self._chat.given:
            return b""
        return self._chunk('{"role":"assistant","content":"","refusal":null}', "null", usage=usage)

    def piece(self, piece: Piece) -> bytes:
        """Nothing where the piece adds neither text nor log-probabilities. Its finish reason belongs to `end`."""
        if not piece.text and not piece.logprobs:
            return b""
        if piece.logprobs or piece.usage is not None:
            logprobs = dumps(_logprobs(piece.logprobs)) if piece.logprobs else "null"
            return self._chunk(f'{{"content":{quoted(piece.text)}}}', "null", logprobs, piece.usage)
        return f"{self._content}{quoted(piece.text)}{self._tail}".encode("ascii")

    def end(self, last: Piece, usage: Usage) -> bytes:
        """The calls of the last piece, each whole in one delta, its finish reason, the usage, and [DONE]."""
        assert last.finish_reason is not None
        calls = [{"index": index} | _call(call) for index, call in enumerate(last.tool_calls)]
        events = [self._chunk(dumps({"tool_calls": [call]}), "null", usage=usage) for call in calls]
        events.append(self._chunk("{}", quoted(last.finish_reason), usage=usage))
        return b"".join([*events, usage_event(self._head, self._chat, usage), DONE])

    def whole(self, text: str, logprobs: Sequence[TokenLogprob], last: Piece, usage: Usage) -> bytes:
        """`last` has its calls and its finish reason."""
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if last.tool_calls:
            message |= {"content": text or None, "tool_calls": [_call(call) for call in last.tool_calls]}
        choice = {
            "index": self._chat.choice,
            "message": message,
            "logprobs": None if self._chat.sampling.top_logprobs is None else _logprobs(logprobs),
            "finish_reason": last.finish_reason,
        }
        told = {"object": "chat.completion", "choices": [choice], "usage": usage_told(usage, self._chat.served)}
        return dumps(self._about | told).encode("ascii")

    def _chunk(self, delta: str, finish_reason: str, logprobs: str = "null", usage: Usage | None = None) -> bytes:
        index = self._chat.choice
        choice = f'{{"index":{index},"delta":{delta},"logprobs":{logprobs},"finish_reason":{finish_reason}}}'
        told = f',"usage":{dumps(counts(usage))}' if usage and self._chat.continuous_usage else self._usage
        return f'{self._head}"choices":[{choice}]{told}}}\n\n'.encode("ascii")


def about(chat: Chat, label: str, fingerprint: str | None) -> dict[str, Any]:
    """What an answer and all its chunks begin with; the service class where one was asked for, that which was given."""
    said = {
        "id": chat.request_id,
        "object": "",
        "created": chat.created_s,
        "model": served_name(chat.model, label),
        "system_fingerprint": fingerprint,
    }
    return said if chat.service_class is None else said | {"service_tier": chat.service_class}


def usage_event(head: str, chat: Chat, usage: Usage) -> bytes:
    """The last but [DONE], where the chat asks for it."""
    if not chat.include_usage:
        return b""
    return f'{head}"choices":[],"usage":{dumps(usage_told(usage, chat.served))}}}\n\n'.encode("ascii")


def error_body(error: Exception) -> bytes:
    """OpenAI's error object. Of an error that is not ours nothing leaks: it is for the log."""
    known = error if isinstance(error, MorayError) else MorayError("server: unexpected failure; try again later")
    fields = {
        "message": masked(known.message),
        "type": known.type,
        "param": known.param and masked(known.param),
        "code": known.code,
    }
    return dumps({"error": fields}).encode("ascii")


def error_event(error: Exception) -> bytes:
    """The last event of a stream that broke: no [DONE] follows, so that nobody takes the answer for whole."""
    return b"data: " + error_body(error) + b"\n\n"


def error_headers(error: Exception) -> dict[str, str]:
    """Retry-After in whole seconds, rounded up, at least 1; also where the estimate is infinite or not a number.

    Allow, which HTTP asks for where a method is wrong. x-should-retry, which OpenAI's clients heed, where it is of no
    use to send the same request again soon.
    """
    headers = {}
    if isinstance(error, RateLimited) and (error.retry_after_s is None or isinstance(error, QuotaExceeded)):
        headers["x-should-retry"] = "false"
    if isinstance(error, RateLimited) and error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(max(1.0, error.retry_after_s)))
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = error.allowed
    if isinstance(error, (Overloaded, Unavailable)):
        headers["Retry-After"] = str(math.ceil(min(_LONGEST_RETRY_S, max(1.0, error.retry_after_s))))
    return headers


def models_list(family: Family, created_s: int) -> dict[str, Any]:
    names = [name for owner in _owners(family) for name in owner[1].names]
    return {"object": "list", "data": [model_object(family, name, created_s) for name in names]}


def model_object(family: Family, name: str, created_s: int) -> dict[str, Any]:
    """A model as the API shows it, and what Moray knows beside that. Raises NotFound."""
    for key, owner in _owners(family):
        if name in owner.names:
            shared = {"id": name, "object": "model", "created": created_s, "owned_by": "moray"}
            return shared | _facts(family, key, owner)
    known = ", ".join(name for _, owner in _owners(family) for name in owner.names)
    raise NotFound(f"model: given {name[:64]!r}; served are {known}; choose one of them", param="model")


def _owners(family: Family) -> list[tuple[str, Tier | Video | Auto]]:
    parts = (("auto", family.auto), ("video", family.video))
    return [*family.tiers.items(), *((key, part) for key, part in parts if part)]


def _facts(family: Family, key: str, owner: Tier | Video | Auto) -> dict[str, Any]:
    match owner:
        case Tier():
            return _tier_facts(key, owner)
        case Video():
            return _video_facts(owner)
    price = owner.price or family.tiers[owner.default].price
    return {"tier": "auto", "default": owner.default, "price": price.model_dump()}


def _tier_facts(key: str, tier: Tier) -> dict[str, Any]:
    return {
        "tier": key,
        "engine": tier.engine,
        "context_tokens": tier.context_tokens,
        "specialists": list(tier.specialists),
        "inputs": ["text", *tier.inputs],
        "deferrable": tier.deferrable,
        "structured": tier.structured,
        "tools": tier.tools,
        "forced_tools": tier.forced_tools,
        "embeddings": tier.embeds,
        "slo": tier.slo.model_dump(),
        "price": tier.price.model_dump(),
    }


def _video_facts(video: Video) -> dict[str, Any]:
    """The limits of a request. `takes` is null where only a replica can tell, when a job begins."""
    return {
        "tier": "video",
        "engine": video.engine,
        "sizes": list(video.sizes),
        "largest_size": f"{video.output.max_width}x{video.output.max_height}",
        "seconds": list(video.seconds),
        "fps": video.fps,
        "delivered_fps": [video.fps, *video.output.fps],
        "max_frames": max(video.seconds) * video.fps,
        "steps": video.steps,
        "guidance": video.guidance,
        "styles": list(video.styles),
        "takes": video.takes.model_dump(mode="json") if video.takes else None,
        "audio": "muxed",
        "max_input_bytes": video.max_input_bytes,
        "max_characters": video.max_characters,
        "max_waiting": video.max_waiting,
        "price": video.price.model_dump(),
    }


def usage_told(usage: Usage, served: Served | None) -> dict[str, Any]:
    """As in the API, and beside it who served the answer. No engine here reasons apart from its answer."""
    told = counts(usage) | {
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    return told if served is None else told | {"moray": _served(served)}


def counts(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _served(served: Served) -> dict[str, Any]:
    told = {"tier": served.tier, "replica": served.replica, "queued_ms": round(served.queued_s * 1e3, 1)}
    if served.spilled is not None:
        told["spilled"] = served.spilled
    if served.resumed:
        told["resumed"] = served.resumed
    return told


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _logprobs(logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    content = [
        _logprob(one.token, one.token_bytes, one.logprob) | {"top_logprobs": [_logprob(*best) for best in one.top]}
        for one in logprobs
    ]
    return {"content": content, "refusal": None}


def _logprob(token: str, token_bytes: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob_told(logprob), "bytes": list(token_bytes)}


def logprob_told(logprob: float) -> float:
    """max in this order also turns "not a number" into the API's lowest value; JSON has no infinities."""
    return max(_UNLIKELY, logprob)


def dumps(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
