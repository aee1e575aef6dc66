"""The request side of POST /v1/completions: text to go on with, without messages or a chat template.

Several prompts are answered together, each `n` times. What is asked becomes a Chat without messages, and is answered as
one. Every parameter of the public API is served, or refused by name.
"""

from typing import Annotated, Any

from pydantic import Field, ValidationError, WithJsonSchema

from cluster.errors import InvalidRequest
from cluster.request import Chat, Prompt
from deployments.gateway.body import UNSUPPORTED, bound_structure, only, refusal, shown
from deployments.gateway.sampled import MOST_CHOICES, Sampled, refuse_repeated_keys, sampling_of, told_of

MAX_TOKENS = 16  # where none are given, as in the API
_MOST_ID = 2**31 - 1
_ALLOWED = f"text, a list of token ids, or a list of up to {MOST_CHOICES} of them, none empty, is allowed; mend it"
_IDS: Any = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": _MOST_ID}}
_ONE: Any = {"anyOf": [{"type": "string"}, _IDS]}
_PROMPTS = WithJsonSchema({"anyOf": [*_ONE["anyOf"], {"type": "array", "items": _ONE, "maxItems": MOST_CHOICES}]})


class CompletionBody(Sampled):
    """The closed list of parameters. Null means absent, as in the API."""

    prompt: Annotated[Any, _PROMPTS]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None  # like n: all that are made are told
    suffix: Annotated[Any, only("")] = None


def parse_completion(body: bytes, request_id: str, created_s: int, seed: int) -> Chat:
    """`seed`: where the caller gives none. Raises InvalidRequest and nothing else."""
    bound_structure(body)
    try:
        asked = CompletionBody.model_validate_json(body)
    except ValidationError as error:
        # Not chained: a validation error prints its input, and prompts have no place in logs.
        raise refusal(error, CompletionBody.model_fields) from None
    refuse_repeated_keys(body)
    prompts = _prompts(asked.prompt)
    chat = Chat(
        **told_of(asked),
        request_id=request_id,
        messages=(),
        prompts=prompts,
        echo=bool(asked.echo),
        sampling=sampling_of(asked, seed, max_tokens=asked.max_tokens or MAX_TOKENS, top_logprobs=asked.logprobs),
        created_s=created_s,
    )
    _refuse_contradictions(asked, chat)
    return chat


def _prompts(given: object) -> tuple[Prompt, ...]:
    alone = _prompt(given)
    if alone is not None:
        return (alone,)
    if isinstance(given, list) and 0 < len(given) <= MOST_CHOICES:
        found = [_prompt(one) for one in given]
        whole = tuple(one for one in found if one is not None)
        if len(whole) == len(found):
            return whole
    count = f" of {len(given)}" if isinstance(given, list) else ""
    raise InvalidRequest(f"prompt: given {shown(given)}{count}; {_ALLOWED}", param="prompt")


def _prompt(given: object) -> Prompt | None:
    if isinstance(given, str) and given:
        return given
    if isinstance(given, list) and given and all(type(one) is int and 0 <= one <= _MOST_ID for one in given):
        return tuple(given)
    return None


def _refuse_contradictions(asked: CompletionBody, chat: Chat) -> None:
    if asked.best_of is not None and asked.best_of != chat.choices:
        raise InvalidRequest(
            f"best_of: given {asked.best_of} beside n {chat.choices}; as many as n are allowed, no answer is made to "
            "be left out; leave it out",
            param="best_of",
            code=UNSUPPORTED,
        )
    if chat.answers > MOST_CHOICES:
        raise InvalidRequest(
            f"n: {chat.choices} answers to each of {len(chat.prompts)} prompts; {MOST_CHOICES} answers together are "
            "allowed; send several requests",
            param="n",
        )
    if not chat.echo:
        return
    beside = "logprobs" if asked.logprobs is not None else None
    beside = beside or next(("token ids" for prompt in chat.prompts if not isinstance(prompt, str)), None)
    if beside is not None:
        raise InvalidRequest(
            f"echo: given true beside {beside}; it is served for prompts that are text, without logprobs; leave it out",
            param="echo",
            code=UNSUPPORTED,
        )
