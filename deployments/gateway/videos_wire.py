"""The wire of the OpenAI videos API: bodies -> VideoRequest, VideoJob -> the SDK's `Video`, list and deleted objects.

JSON and multipart form fields carry the same closed list: the API's own parameters and vLLM-Omni's names for seed,
steps, guidance and negative prompt. Sizes and seconds are those that the family lists; the first of each is the
default. Values of prompts never appear in an error. Times are Unix seconds.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from cluster.errors import InvalidRequest, NotFound
from cluster.family import Video
from deployments.gateway.body import UNSUPPORTED, bound_structure, distinct, refusal, shown
from deployments.video.jobs import VideoJob, VideoRequest

LONGEST_PROMPT_CHARS = 32_000
REFERENCE = "input_reference"
PRIVATE = ("prompt", "negative_prompt")
_Choice = TypeVar("_Choice", int, str)


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "a number is allowed")
    return value


Whole = Annotated[int, BeforeValidator(_no_bool)]
Real = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]


class VideoBody(BaseModel):
    """The closed list of parameters. Numbers may come as strings: form fields have nothing else. Null means absent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: Annotated[str, Field(min_length=1, max_length=LONGEST_PROMPT_CHARS)]
    model: str | None = None
    seconds: Whole | None = None
    size: str | None = None
    negative_prompt: Annotated[str, Field(max_length=LONGEST_PROMPT_CHARS)] | None = None
    seed: Annotated[Whole, Field(ge=0, le=2**63 - 1)] | None = None
    num_inference_steps: Annotated[Whole, Field(ge=1, le=200)] | None = None
    guidance_scale: Annotated[Real, Field(ge=0, le=50)] | None = None


class _Query(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    after: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    after: str | None
    limit: int
    order: Literal["asc", "desc"]


def parse_json(body: bytes, video: Video, seed: int) -> VideoRequest:
    """`seed` is taken where the caller gives none. Raises InvalidRequest, NotFound."""
    bound_structure(body)
    try:
        given = json.loads(body, object_pairs_hook=distinct)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise InvalidRequest("body: not a JSON object; one in UTF-8 is allowed; mend the JSON", code="invalid_json")
    return _parse(given, video, seed)


def parse_form(fields: Iterable[tuple[str, object]], video: Video, seed: int) -> VideoRequest:
    """Fields of a multipart form in their order; what is not a string is a file. Raises InvalidRequest, NotFound."""
    return _parse(distinct(fields), video, seed)


def parse_listing(query: Mapping[str, str]) -> Listing:
    try:
        asked = _Query.model_validate(dict(query))
    except ValidationError as error:
        raise refusal(error, _Query.model_fields) from None
    return Listing(after=asked.after, limit=asked.limit, order=asked.order)


def video_object(job: VideoJob) -> dict[str, Any]:
    failed = job.error_code is not None
    return {
        "id": job.id,
        "object": "video",
        "created_at": job.created_at_s,
        "completed_at": job.completed_at_s,
        "expires_at": job.expires_at_s,
        "status": job.status,
        "progress": job.progress,
        "model": job.model,
        "prompt": job.prompt,
        "seconds": str(job.seconds),
        "size": job.size,
        "remixed_from_video_id": None,
        "error": {"code": job.error_code, "message": job.error_message} if failed else None,
    }


def video_list(jobs: Sequence[VideoJob], has_more: bool) -> dict[str, Any]:
    return {
        "object": "list",
        "data": [video_object(job) for job in jobs],
        "first_id": jobs[0].id if jobs else None,
        "last_id": jobs[-1].id if jobs else None,
        "has_more": has_more,
    }


def video_deleted(job_id: str) -> dict[str, Any]:
    return {"id": job_id, "object": "video.deleted", "deleted": True}


def _parse(given: dict[str, Any], video: Video, seed: int) -> VideoRequest:
    for name, value in given.items():
        # The SDK sends the object form of a reference as fields such as input_reference[image_url].
        if name.partition("[")[0] == REFERENCE and value is not None:
            raise InvalidRequest(
                f"{REFERENCE}: not served here; text to video is allowed; leave it out",
                param=REFERENCE,
                code=UNSUPPORTED,
            )
    try:
        asked = VideoBody.model_validate({name: value for name, value in given.items() if name != REFERENCE})
    except ValidationError as error:
        # Not chained: a validation error prints its input, and prompts have no place in logs.
        raise refusal(error, VideoBody.model_fields, PRIVATE) from None
    return _choose(asked, video, seed)


def _choose(asked: VideoBody, video: Video, seed: int) -> VideoRequest:
    model = video.names[0] if asked.model is None else asked.model
    if model not in video.names:
        names = ", ".join(video.names)
        raise NotFound(f"model: given {shown(model)}; served are {names}; choose one of them", param="model")
    return VideoRequest(
        model=model,
        prompt=asked.prompt,
        negative_prompt=asked.negative_prompt or "",
        seconds=_listed("seconds", asked.seconds, video.seconds),
        size=_listed("size", asked.size, video.sizes),
        fps=video.fps,
        steps=video.steps if asked.num_inference_steps is None else asked.num_inference_steps,
        guidance=video.guidance if asked.guidance_scale is None else asked.guidance_scale,
        seed=seed if asked.seed is None else asked.seed,
    )


def _listed(name: str, given: _Choice | None, allowed: Sequence[_Choice]) -> _Choice:
    if given is None:
        return allowed[0]
    if given not in allowed:
        listed = ", ".join(map(str, allowed))
        raise InvalidRequest(f"{name}: given {shown(given)}; allowed are {listed}; choose one", param=name)
    return given
