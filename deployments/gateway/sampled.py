"""What the bodies of chat completions and of text completions have in common: how answers are drawn, and told."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, TypedDict

from pydantic import BeforeValidator, Field

from cluster.errors import InvalidRequest
from cluster.request import Sampling, ServiceClass
from deployments.gateway.body import Strict, distinct, only

MOST_BIASES = 1024
MOST_CHOICES = 8  # answers of one request, each of which takes a place; the API has 128
SERVICE_CLASSES: Mapping[str | None, ServiceClass] = {
    "auto": "default",
    "default": "default",
    "flex": "flex",
    "priority": "priority",
    "fast": "priority",  # the API's other name
}


def _as_list(stop: object) -> object:
    return [stop] if isinstance(stop, str) else stop


Text = Annotated[str, Field(min_length=1)]
Tokens = Annotated[int, Field(ge=1, le=2**31 - 1)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Token = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")]  # one way to write each, so that none comes twice
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: Annotated[bool | None, only(False)] = None
    continuous_usage_stats: bool | None = None


class Sampled(Strict):
    """Null means absent, as in the API."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    max_tokens: Tokens | None = None
    stop: Annotated[list[Text], Field(max_length=4), BeforeValidator(_as_list)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[Token, Bias], Field(max_length=MOST_BIASES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    service_tier: Annotated[str | None, only("auto", "default", "flex", "priority", "fast")] = None
    user: str | None = None  # it changes no answer


class _Told(TypedDict):
    model: str
    service_class: ServiceClass | None
    stream: bool
    include_usage: bool
    continuous_usage: bool
    choices: int


def told_of(asked: Sampled) -> _Told:
    """What a Chat has of it beside its sampling. Raises InvalidRequest."""
    _refuse_contradictions(asked)
    options = asked.stream_options or StreamOptions()
    return {
        "model": asked.model,
        "service_class": SERVICE_CLASSES.get(asked.service_tier),
        "stream": bool(asked.stream),
        "include_usage": bool(options.include_usage),
        "continuous_usage": bool(options.continuous_usage_stats),
        "choices": asked.n or 1,
    }


def sampling_of(asked: Sampled, seed: int, **more: Any) -> Sampling:
    """`seed`: where the caller gives none. `more`: that only one of the two kinds of bodies has."""
    floats = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
    given: dict[str, Any] = {name: value for name in floats if (value := getattr(asked, name)) is not None}
    given |= {"max_tokens": asked.max_tokens, **more}
    return Sampling(
        stop=tuple(asked.stop or ()),
        logit_bias=tuple((int(token), bias) for token, bias in (asked.logit_bias or {}).items()),
        seed=seed if asked.seed is None else asked.seed,
        ignore_eos=bool(asked.ignore_eos),
        **given,
    )


def _refuse_contradictions(asked: Sampled) -> None:
    options = asked.stream_options
    if options is not None and not asked.stream:
        raise InvalidRequest(
            "stream_options: given without stream; it is allowed beside stream true; set stream to true",
            param="stream_options",
        )
    if options is not None and options.continuous_usage_stats and not options.include_usage:
        raise InvalidRequest(
            "stream_options.continuous_usage_stats: given true without include_usage; it is allowed beside "
            "include_usage true; set include_usage to true",
            param="stream_options.continuous_usage_stats",
        )


def refuse_repeated_keys(body: bytes) -> None:
    """Of a valid body. Raises InvalidRequest."""
    try:
        json.loads(body, object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:  # only where an earlier value of a repeated key hides such a thing
        raise InvalidRequest(
            "body: not readable JSON; a JSON object is allowed; mend it", code="invalid_json"
        ) from error
