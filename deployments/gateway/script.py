"""A script, or an idea, turned into shots by a language tier, whose answer is held to a JSON schema.

Asked as any caller asks, with the caller's own key: plans, promises and accounts hold for it as for any chat.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Scope

from cluster.errors import EngineFailed, InvalidRequest
from cluster.family import Family, Tier
from cluster.storyboard import MOST_CHARACTERS, WORDS_PER_S, Character, Model
from deployments.gateway.asgi import header
from deployments.gateway.body import UNSUPPORTED, parsed
from deployments.gateway.storyboards_wire import MOST_SHOTS, Script
from deployments.gateway.wishes import plan_of
from deployments.stores.keys import KeyRecord

MOST_TOKENS = 8192
SHOT_TOKENS = 320  # that a shot takes at most, where a token is more than one character
LONGEST_CHARS = {"prompt": 240, "camera": 60, "dialogue": 120}


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """`tokens`: as many as an answer of the model may have. `chat`: the endpoint that it is asked at."""

    model: str
    tokens: int
    chat: ASGIApp


def writer(family: Family, record: KeyRecord, named: str | None, chat: ASGIApp) -> Writer:
    """The one named, else the best that can. Raises InvalidRequest."""
    plan = plan_of(record, family)
    tiers = {key: tier for key, tier in family.tiers.items() if plan is None or key in plan.tiers}
    able: list[Tier] = [tier for tier in tiers.values() if tier.structured]
    if named is not None:
        able = [tier for tier in able if named in tier.names]
    if not able:
        what = "no tier" if named is None else "script_model is of no tier"
        raise InvalidRequest(
            f"script: {what} that this key may use and that can hold an answer to a JSON schema; one with engine torch "
            "or vllm is allowed; send shots instead, or add such a tier to the family file",
            param="script" if named is None else "script_model",
            code=UNSUPPORTED,
        )
    best = max(able, key=lambda tier: tier.quality or 0)
    return Writer(model=named or best.names[0], tokens=min(MOST_TOKENS, best.context_tokens // 2), chat=chat)


async def written(script: str, by: Writer, cast: Sequence[Character], video: Model, scope: Scope) -> Script:
    """Raises what the chat raises; EngineFailed where the answer is none of the schema's."""
    shots = max(1, min(MOST_SHOTS, by.tokens // SHOT_TOKENS))
    asked = {
        "model": by.model,
        "messages": [
            {"role": "system", "content": _task(cast, video, shots)},
            {"role": "user", "content": script},
        ],
        "max_tokens": by.tokens,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "shots", "schema": _schema(cast, video, shots), "strict": True},
        },
    }
    answer = await _answer(by.chat, scope, json.dumps(asked).encode())
    (choice,) = answer["choices"]
    try:
        return parsed(Script, json.loads(choice["message"]["content"]))
    except (ValueError, TypeError, InvalidRequest):
        why = "was cut at its length" if choice["finish_reason"] == "length" else "is no list of shots"
        raise EngineFailed(
            f"script: the answer of {by.model} {why}; a shorter script is allowed; shorten it, or send shots"
        ) from None


def _task(cast: Sequence[Character], video: Model, shots: int) -> str:
    who = "; ".join(f"{one.name}: {one.phrase}" for one in cast) or "none are named yet: name nobody"
    lengths = ", ".join(map(str, video.seconds))
    return (
        f"Turn what the user gives into the shots of a short film, at most {shots}. Each shot has a prompt that says "
        f"what is seen, in one place and one movement, its seconds (one of {lengths}), its camera, what is said, and "
        "who is in it. "
        f"At most {MOST_CHARACTERS} characters in a shot, at most {WORDS_PER_S:g} words a second. Characters: {who}."
    )


def _schema(cast: Sequence[Character], video: Model, shots: int) -> dict[str, Any]:
    """Nobody can be in a shot who is not in the cast, and nothing goes on until the tokens are used up."""
    names = [one.name for one in cast]
    fields: dict[str, Any] = {
        "prompt": _text("prompt") | {"minLength": 1},
        "seconds": {"enum": list(video.seconds)},
        "camera": _text("camera"),
        "dialogue": _text("dialogue"),
        "characters": {"type": "array", "maxItems": min(MOST_CHARACTERS, len(names))}
        | ({"items": {"enum": names}} if names else {}),
    }
    shot = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
    listed = {"shots": {"type": "array", "items": shot, "minItems": 1, "maxItems": shots}}
    return {"type": "object", "properties": listed, "required": ["shots"], "additionalProperties": False}


def _text(field: str) -> dict[str, Any]:
    return {"type": "string", "maxLength": LONGEST_CHARS[field]}


async def _answer(chat: ASGIApp, scope: Scope, body: bytes) -> dict[str, Any]:
    key = header(scope, b"authorization")
    headers = [(b"authorization", key), (b"content-type", b"application/json")]
    given: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    told: list[bytes] = []

    async def receive() -> Message:
        if given:
            return given.pop()
        await asyncio.Event().wait()  # this caller stays; one who leaves ends this task
        raise AssertionError

    async def send(message: Message) -> None:
        told.append(message.get("body", b""))

    asked = {**scope, "path": "/v1/chat/completions", "headers": headers, "query_string": b""}
    await chat(asked, receive, send)
    answer: dict[str, Any] = json.loads(b"".join(told))
    return answer
