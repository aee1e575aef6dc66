"""POST /v1/embeddings in OpenAI's shape: bytes -> a Chat that asks for vectors; vectors -> bytes."""

import base64
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError, WithJsonSchema

from cluster.errors import InvalidRequest
from cluster.request import Chat, Embeds, Prompt, Sampling, Usage
from deployments.gateway.body import Strict, bound_structure, refusal, shown
from deployments.gateway.sampled import refuse_repeated_keys
from deployments.gateway.wire import usage_told

MOST_INPUTS = 2048  # as in the API
MOST_TOKEN = 2**31 - 1
WHAT = "hidden states of a chat model, not trained for retrieval"
_TEXT: Any = {"type": "string", "minLength": 1}
_IDS: Any = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_SEVERAL: Any = {"type": "array", "minItems": 1, "maxItems": MOST_INPUTS}
_INPUT = {"anyOf": [_TEXT, _IDS, {**_SEVERAL, "items": _TEXT}, {**_SEVERAL, "items": _IDS}]}


class EmbeddingsBody(Strict):
    """Null means absent, but for what is asked of."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    input: Annotated[Any, WithJsonSchema(_INPUT)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=MOST_TOKEN)] | None = None
    user: str | None = None


def parse_embeddings(body: bytes, request_id: str, created_s: int, seed: int) -> Chat:
    """`seed`: vectors need none. Raises InvalidRequest and nothing else."""
    bound_structure(body)
    try:
        asked = EmbeddingsBody.model_validate_json(body)
    except ValidationError as error:
        # Not chained: it prints its input.
        raise refusal(error, EmbeddingsBody.model_fields) from None
    refuse_repeated_keys(body)
    return Chat(
        request_id=request_id,
        model=asked.model,
        messages=(),
        sampling=Sampling(max_tokens=1, seed=seed),  # as a prompt is read: its end is the step of a first token
        created_s=created_s,
        embeds=Embeds(
            inputs=_inputs(asked.input), dimensions=asked.dimensions, base64=asked.encoding_format == "base64"
        ),
    )


def _inputs(given: object) -> tuple[Prompt, ...]:
    if isinstance(given, str) or (isinstance(given, list) and given and type(given[0]) is int):
        return (_input(given, "input"),)
    if not isinstance(given, list) or not given:
        raise _wrong("input", given, "text, the ids of its tokens, or a list of either is allowed")
    if len(given) > MOST_INPUTS:
        raise InvalidRequest(
            f"input: {len(given)} inputs; at most {MOST_INPUTS} are allowed; send several requests", param="input"
        )
    inputs = tuple(_input(one, f"input[{index}]") for index, one in enumerate(given))
    if len({type(one) for one in inputs}) > 1:
        raise _wrong("input", given, "either all texts or all lists of ids are allowed")
    return inputs


def _input(given: object, where: str) -> Prompt:
    if isinstance(given, str):
        if not given:
            raise _wrong(where, given, "text of at least one character is allowed")
        return given
    if isinstance(given, list) and given and all(type(one) is int and 0 <= one <= MOST_TOKEN for one in given):
        return tuple(given)
    raise _wrong(where, given, "text, or a list of token ids from 0 on, is allowed")


def _wrong(where: str, given: object, allowed: str) -> InvalidRequest:
    return InvalidRequest(f"{where}: given {shown(given)}; {allowed}; change the value", param=where)


def embeddings(chat: Chat, embeds: Embeds, vectors: Sequence[Sequence[float]], usage: Usage) -> bytes:
    """`vectors`: of length 1, one of each input. What is cut to fewer dimensions is brought back to length 1."""
    told = usage_told(usage, chat.served)
    counts = {name: told[name] for name in ("prompt_tokens", "total_tokens", "moray") if name in told}
    body = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _told(vector, embeds)}
            for index, vector in enumerate(vectors)
        ],
        "model": chat.model,
        "usage": counts,
        "moray": {"vectors": WHAT},
    }
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode("ascii")


def _told(vector: Sequence[float], embeds: Embeds) -> str | list[float]:
    cut = np.array(vector[: embeds.dimensions])
    length = np.linalg.norm(cut)
    cut = (cut / length if length else cut).astype("<f4")
    return base64.b64encode(cut.tobytes()).decode() if embeds.base64 else cut.astype(float).tolist()
