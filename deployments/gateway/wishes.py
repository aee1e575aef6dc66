"""What a request may use and asks for: its key's plan, its headers, and the tiers that follow from both."""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import get_args

from starlette.types import Scope

from cluster.errors import ContextTooLong, InvalidRequest, NotInPlan
from cluster.family import Family, Plan, Specialist, Tier
from cluster.inputs import tokens_of
from cluster.request import Chat, Prompt
from cluster.tiering import Range, Wish, tiers_for
from deployments.gateway.asgi import header
from deployments.stores.keys import KeyRecord

FLOOR, HINT, CEILING = b"moray-floor", b"moray-hint", b"moray-ceiling-usd-per-mtok"
WISHES: Mapping[str, Mapping[str, object]] = {  # as the API's description tells them
    HINT.decode(): {"enum": list(get_args(Specialist))},
    FLOOR.decode(): {"type": "string"},
    CEILING.decode(): {"type": "number", "minimum": 0},
}
TOKENS_PER_CHAR = 0.25
FIRST_CHARS = 1000.0  # that the first guess weighs
FADING = 0.99  # of what earlier answers weigh, per answer


def plan_of(record: KeyRecord, family: Family) -> Plan | None:
    """None: every tier. Raises NotInPlan where the family has the key's plan no more."""
    if record.plan is None:
        return None
    plan = family.plans.get(record.plan)
    if plan is None:
        known = ", ".join(family.plans) or "none"
        raise NotInPlan(
            f"authorization: the key's plan {record.plan!r} is not offered any more; plans are {known}; "
            "ask the operator for a new key"
        )
    return plan


def wish_of(scope: Scope, chat: Chat, prompt_tokens: int) -> Wish:
    """Raises InvalidRequest where a header cannot be understood. A floor is judged with the tiers."""
    return Wish(
        model=chat.model,
        prompt_tokens=prompt_tokens,
        tools=chat.calls,
        structured=chat.structured,
        forced=chat.forced,
        hint=hint_of(scope),
        effort=chat.effort,
        ceiling_usd_per_mtok=_ceiling(header(scope, CEILING).decode("latin-1")),
        floor=header(scope, FLOOR).decode("latin-1")[:64] or None,
        inputs=chat.inputs,
    )


def hint_of(scope: Scope) -> Specialist | None:
    """Raises InvalidRequest where the header names no specialist."""
    hint = header(scope, HINT).decode("latin-1")
    known: dict[str, Specialist] = {specialist: specialist for specialist in get_args(Specialist)}
    if hint and hint not in known:
        raise InvalidRequest(
            f"{HINT.decode()}: {hint[:64]!r}; {', '.join(known)} are allowed; choose one, or leave it out", param="hint"
        )
    return known.get(hint)


def _ceiling(given: str) -> float | None:
    if not given:
        return None
    try:
        ceiling = float(given)
    except ValueError:
        ceiling = math.nan
    if not (math.isfinite(ceiling) and ceiling >= 0):
        raise InvalidRequest(
            f"{CEILING.decode()}: {given[:64]!r}; a number of USD per million output tokens is allowed; mend it",
            param="ceiling_usd_per_mtok",
        )
    return ceiling


def range_of(wish: Wish, plan: Plan | None, family: Family) -> Range:
    """The tiers that may serve, as cluster.tiering says. Nobody permitted a key without a plan to be spilled.

    The prompt's length is a guess: where only that does not fit, the engine counts, of the tier that holds most.
    """
    try:
        allowed = tiers_for(wish, plan, family)
    except ContextTooLong:
        allowed = _roomiest(wish, plan, family)
        return Range(allowed.tiers[:1], allowed.reason, allowed.auto)
    return allowed if plan is not None else Range(allowed.tiers[:1], allowed.reason, allowed.auto)


def embedding(range_: Range, model: str, family: Family) -> Range:
    """The tier that makes the vectors: the one named, and no other, for those of two models cannot be compared.

    Raises InvalidRequest.
    """
    if not range_.auto and family.tiers[range_.tiers[0]].embeds:
        return Range(range_.tiers[:1], range_.reason, False)
    able = ", ".join(tier.names[0] for tier in family.tiers.values() if tier.embeds)
    why = "leaves the tier to us, and vectors of two tiers cannot be compared" if range_.auto else "makes no vectors"
    mend = f"{able} make some; name one of them" if able else "no model here does; ask the operator"
    raise InvalidRequest(f"model: {model!r} {why}; {mend}", param="model", code="unsupported_parameter")


def _roomiest(wish: Wish, plan: Plan | None, family: Family) -> Range:
    """As if the prompt were as long as any tier that may serve it holds."""
    *longer, least = sorted({tier.context_tokens for tier in family.tiers.values()}, reverse=True)
    for tokens in longer:
        with contextlib.suppress(ContextTooLong):
            return tiers_for(replace(wish, prompt_tokens=tokens - 1), plan, family)
    return tiers_for(replace(wish, prompt_tokens=least - 1), plan, family)


def beside_text(chat: Chat, tier: Tier) -> int:
    """Tokens of what its messages have beside text, as the tier's model is said to count them."""
    counts, takes = tier.input_tokens, tier.inputs
    return sum(tokens_of(media, counts, takes) for message in chat.messages for media in message.media)


class Estimates:
    """Tokens per character of prompts, by tier, learnt from what engines counted; long prompts weigh more."""

    def __init__(self) -> None:
        self._learnt: dict[str, tuple[float, float]] = {}  # tokens and characters

    def prompt_tokens(self, tier: str | None, chat: Chat) -> int:
        """`tier`: whose tokenizer; None where it is not chosen yet."""
        tokens, chars = self._learnt.get(tier or "", _FIRST)
        return max(1, math.ceil(_chars(chat) * tokens / chars) + _ids(chat))

    def prompts(self, tier: str | None, chat: Chat) -> tuple[int, ...]:
        """Of each prompt. Ids are tokens already."""
        tokens, chars = self._learnt.get(tier or "", _FIRST)
        texts = (len(one) * tokens / chars if isinstance(one, str) else len(one) for one in chat.prompts)
        return tuple(max(1, math.ceil(found)) for found in texts) or (self.prompt_tokens(tier, chat),)

    def learn(self, tier: str, chat: Chat, prompt_tokens: int) -> None:
        if _ids(chat) or any(message.media for message in chat.messages):
            return
        tokens, chars = self._learnt.get(tier, _FIRST)
        self._learnt[tier] = FADING * tokens + prompt_tokens, FADING * chars + _chars(chat)


_FIRST = (TOKENS_PER_CHAR * FIRST_CHARS, FIRST_CHARS)


def _chars(chat: Chat) -> int:
    said = sum(len(message.content) for message in chat.messages)
    called = sum(len(call.name) + len(call.arguments) for message in chat.messages for call in message.tool_calls)
    offered = sum(len(tool.name) + len(tool.description) + len(tool.parameters) for tool in chat.tools)
    return said + called + offered + sum(len(prompt) for prompt in _plain(chat) if isinstance(prompt, str))


def _ids(chat: Chat) -> int:
    """Tokens that are given as such."""
    return sum(len(prompt) for prompt in _plain(chat) if not isinstance(prompt, str))


def _plain(chat: Chat) -> tuple[Prompt, ...]:
    return chat.prompts + (chat.embeds.inputs if chat.embeds else ())
