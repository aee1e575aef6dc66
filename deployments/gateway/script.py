"""A script, or an idea, turned into shots by a language tier, whose answer is held to a JSON schema.

Asked as any caller asks, with the caller's own key: plans, promises and accounts hold for it as for any chat.
"""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Scope

from cluster.errors import EngineFailed, InvalidRequest
from cluster.family import Family, Tier
from cluster.storyboard import MOST_CHARACTERS, WORDS_PER_S, Character, Model
from deployments.gateway.asgi import header
from deployments.gateway.body import UNSUPPORTED
from deployments.gateway.storyboards_wire import Script, parsed
from deployments.gateway.wishes import plan_of
from deployments.stores.keys import KeyRecord

MOST_TOKENS = 8192


def writer(family: Family, record: KeyRecord, named: str | None) -> str:
    """The model that writes: the one named, else the best that can. Raises InvalidRequest."""
    plan = plan_of(record, family)
    tiers = {key: tier for key, tier in family.tiers.items() if plan is None or key in plan.tiers}
    able: list[Tier] = [tier for tier in tiers.values() if tier.structured]
    if named is not None:
        able = [tier for tier in able if named in tier.names]
    if not able:
        what = "no tier" if named is None else "script_model is of no tier"
        raise InvalidRequest(
            f"script: {what} that this key may use and that can hold an answer to a JSON schema; one with engine vllm "
            "is allowed; send shots instead, or add such a tier to the family file",
            param="script" if named is None else "script_model",
            code=UNSUPPORTED,
        )
    return named or max(able, key=lambda tier: tier.quality or 0).names[0]


async def written(
    script: str, model: str, cast: Sequence[Character], video: Model, chat: ASGIApp, scope: Scope
) -> Script:
    """Raises what the chat raises; EngineFailed where the answer is none of the schema's."""
    asked = {
        "model": model,
        "messages": [
            {"role": "system", "content": _task(cast, video)},
            {"role": "user", "content": script},
        ],
        "max_tokens": MOST_TOKENS,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "shots", "schema": _schema(cast), "strict": True},
        },
    }
    answer = await _answer(chat, scope, json.dumps(asked).encode())
    (choice,) = answer["choices"]
    try:
        return parsed(Script, json.loads(choice["message"]["content"]))
    except (ValueError, TypeError, InvalidRequest):
        why = "was cut at its length" if choice["finish_reason"] == "length" else "is no list of shots"
        raise EngineFailed(
            f"script: the answer of {model} {why}; a shorter script is allowed; shorten it, or send shots"
        ) from None


def _task(cast: Sequence[Character], video: Model) -> str:
    who = "; ".join(f"{one.name}: {one.phrase}" for one in cast) or "none are named yet: name nobody"
    lengths = ", ".join(map(str, video.seconds))
    return (
        "Turn what the user gives into the shots of a short film. Each shot has a prompt that says what is seen, in "
        f"one place and one movement, its seconds (one of {lengths}), its camera, what is said, and who is in it. "
        f"At most {MOST_CHARACTERS} characters in a shot, at most {WORDS_PER_S:g} words a second. Characters: {who}."
    )


def _schema(cast: Sequence[Character]) -> dict[str, Any]:
    """Nobody can be in a shot who is not in the cast."""
    text = {"type": "string"}
    who = (
        {"type": "array", "items": text | {"enum": [one.name for one in cast]}}
        if cast
        else {"type": "array", "maxItems": 0}
    )
    fields = {
        "prompt": text,
        "seconds": {"type": "number"},
        "camera": text,
        "dialogue": text,
        "characters": who,
    }
    shot = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
    shots = {"shots": {"type": "array", "items": shot}}
    return {"type": "object", "properties": shots, "required": ["shots"], "additionalProperties": False}


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
