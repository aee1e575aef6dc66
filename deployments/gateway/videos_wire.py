"""The wire of the OpenAI videos API: fields -> what is asked, VideoJob -> the SDK's `Video`, list, deleted, character.

The API's own parameters and vLLM-Omni's names for what it lacks, one closed list for each route, in JSON and in forms
alike. Values of prompts and of references never appear in an error. Times are Unix seconds.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, TypeGuard, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError, WithJsonSchema
from pydantic_core import PydanticCustomError

from cluster.clip import Region
from cluster.delivery import sides
from deployments.gateway.body import bound_structure, refusal
from deployments.gateway.description import TEXT
from deployments.gateway.video_form import UploadFile
from deployments.video.jobs import Character, VideoJob

LONGEST_PROMPT_CHARS = 32_000
MOST_REFERENCES = 8
PRIVATE = frozenset(
    ("prompt", "negative_prompt", "input_reference", "last_frame_reference", "image_references", "video_reference",
     "audio_reference", "mask", "video", "name")
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointer:
    """A reference that is no file of the request: one of the two."""

    url: str | None = None
    id: str | None = None


Given = UploadFile | Pointer
_B = TypeVar("_B", bound=BaseModel)


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "a number is allowed")
    return value


def _unpacked(value: object) -> object:
    """An object that a form's field has as JSON."""
    return _all_unpacked([value])[0]


def _all_unpacked(values: Sequence[object]) -> list[object]:
    bound_structure(*(value.encode() for value in values if _packed(value)))  # a body does not count what is in strings
    return [_loaded(value) if _packed(value) else value for value in values]


def _packed(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and value[:1] in ("{", "[")


def _loaded(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _listed(value: object) -> object:
    """One is a list of one; of a form an item may be JSON, the whole list too."""
    if value is None:
        return None
    unpacked = _all_unpacked(value if isinstance(value, list) else [value])
    return [each for item in unpacked for each in (item if isinstance(item, list) else [item])]


def _pointing(**keys: Literal["url", "id"]) -> PlainValidator:
    """A file; an object of one of these keys; or a string, which is the first of them."""
    names = " or ".join(keys)

    def check(value: object) -> object:
        if value is None or isinstance(value, UploadFile):
            return value
        unpacked = _unpacked(value)
        given = {next(iter(keys)): unpacked} if isinstance(unpacked, str) else unpacked
        if isinstance(given, dict):
            told = [(name, target) for name, target in given.items() if target is not None]
            match told:
                case [(str(name), str(target))] if name in keys and target:
                    return Pointer(**{keys[name]: target})
        raise PydanticCustomError("reference", "a file, or an object with {names}, is allowed", {"names": names})

    by_key = [{"type": "object", "required": [key], "properties": {key: TEXT}} for key in keys]
    told = WithJsonSchema({"anyOf": [*by_key, TEXT, {"type": "null"}]})
    return PlainValidator(check, json_schema_input_type=Annotated[Any, told])


Whole = Annotated[int, BeforeValidator(_number)]
Real = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Image = Annotated[Any, _pointing(image_url="url", file_id="id")]
Sound = Annotated[Any, _pointing(audio_url="url")]
Footage = Annotated[Any, _pointing(video_url="url")]
Clip = Annotated[Any, _pointing(id="id", video_url="url")]


_T = TypeVar("_T")
Several = Annotated[Annotated[list[_T], Field(max_length=MOST_REFERENCES)] | None, BeforeValidator(_listed)]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TimeRange(_Closed):
    start_seconds: Annotated[Real, Field(ge=0)] = 0.0
    end_seconds: Annotated[Real, Field(gt=0)] | None = None


class Rectangle(_Closed):
    x: Annotated[Whole, Field(ge=0)]
    y: Annotated[Whole, Field(ge=0)]
    width: Annotated[Whole, Field(ge=1)]
    height: Annotated[Whole, Field(ge=1)]


class CharacterReference(_Closed):
    id: Annotated[str, Field(min_length=1, max_length=64)]


class Body(_Closed):
    """What every route takes. Numbers may come as strings: form fields have nothing else. Null means absent."""

    prompt: Annotated[str, Field(min_length=1, max_length=LONGEST_PROMPT_CHARS)]
    negative_prompt: Annotated[str, Field(max_length=LONGEST_PROMPT_CHARS)] | None = None
    seed: Annotated[Whole, Field(ge=0, le=2**63 - 1)] | None = None
    num_inference_steps: Annotated[Whole, Field(ge=1, le=200)] | None = None
    guidance_scale: Annotated[Real, Field(ge=0, le=50)] | None = None
    style: str | None = None
    priority: Annotated[Whole, Field(ge=0, le=2**31 - 1)] | None = None
    audio_reference: Sound = None


class VideoBody(Body):
    model: str | None = None
    seconds: Whole | None = None
    size: str | None = None
    width: Annotated[Whole, Field(ge=1, le=65_536)] | None = None
    height: Annotated[Whole, Field(ge=1, le=65_536)] | None = None
    num_frames: Whole | None = None
    fps: Whole | None = None
    strength: Annotated[Real, Field(gt=0, le=1)] | None = None
    input_reference: Image = None
    last_frame_reference: Image = None
    image_references: Several[Image] = None
    characters: Several[CharacterReference] = None
    video_reference: Footage = None
    mask: Image = None


class RemixBody(Body):
    strength: Annotated[Real, Field(gt=0, le=1)] | None = None


class _OfClip(Body):
    """`model` and `size` are for a video that is sent along; a clip of ours has its own."""

    video: Clip
    model: str | None = None
    size: str | None = None


class EditBody(_OfClip):
    time_range: Annotated[TimeRange | None, BeforeValidator(_unpacked)] = None
    region: Annotated[Rectangle | None, BeforeValidator(_unpacked)] = None
    mask: Image = None
    edit_mode: Literal["exact", "fast"] | None = None
    image_references: Several[Image] = None


class ExtendBody(_OfClip):
    seconds: Annotated[Whole, Field(ge=1)]


class CharacterBody(_Closed):
    name: Annotated[str, Field(min_length=1, max_length=128)]
    video: Footage


class Query(_Closed):
    after: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    after: str | None
    limit: int
    order: Literal["asc", "desc"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """Of a queued job its place, 1 for the next; when it begins and ends by the cost model. None: nobody can say."""

    queue_position: int | None = None
    estimated_start_at: int | None = None
    estimated_completed_at: int | None = None


def body_of(kind: type[_B], fields: Mapping[str, Any]) -> _B:
    """Raises InvalidRequest."""
    try:
        return kind.model_validate(dict(fields))
    except ValidationError as error:
        # Not chained: a validation error prints its input, and prompts have no place in logs.
        raise refusal(error, kind.model_fields, PRIVATE) from None


def parse_listing(query: Mapping[str, str]) -> Listing:
    """Raises InvalidRequest."""
    asked = body_of(Query, query)
    return Listing(after=asked.after, limit=asked.limit, order=asked.order)


def video_object(job: VideoJob, *, outlook: Outlook | None = None, children: Sequence[str] = ()) -> dict[str, Any]:
    """As in the API, and beside it what the API has no field for."""
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
        "size": job.delivered_size,
        "remixed_from_video_id": job.parent_id if job.task == "remix" else None,
        "error": {"code": job.error_code, "message": job.error_message} if failed else None,
        "moray": asdict(outlook or Outlook()) | _beside(job, children),
    }


def video_list(
    jobs: Sequence[VideoJob],
    has_more: bool,
    *,
    outlooks: Mapping[str, Outlook] | None = None,
    children: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """`outlooks` and `children` by job; those without any may be left out."""
    known, after = outlooks or {}, children or {}
    return {
        "object": "list",
        "data": [video_object(job, outlook=known.get(job.id), children=after.get(job.id, ())) for job in jobs],
        "first_id": jobs[0].id if jobs else None,
        "last_id": jobs[-1].id if jobs else None,
        "has_more": has_more,
    }


def video_deleted(job_id: str) -> dict[str, Any]:
    return {"id": job_id, "object": "video.deleted", "deleted": True}


def character_object(character: Character) -> dict[str, Any]:
    return {"id": character.id, "created_at": character.created_at_s, "name": character.name}


def _beside(job: VideoJob, children: Sequence[str]) -> dict[str, Any]:
    return {
        "stage": None if job.status == "completed" else job.stage,
        "task": job.task,
        "parent": job.parent_id,
        "children": list(children),
        "edit": _edit(job),
        "style": job.style,
        "seed": job.seed,
        "steps": job.steps,
        "frames": job.frames or job.seconds * job.fps,
        "fps": job.fps,
        "rendered_size": job.size,
        "delivered_fps": job.delivered_fps,
        "priority": job.priority,
        "audio": "muxed" if job.inputs.audio else None,
        "signed": job.signed,
        "way": job.way,
    }


def _edit(job: VideoJob) -> dict[str, Any] | None:
    """Regions are told in pixels of what is delivered, as they were asked for."""
    if job.edit is None:
        return None
    span, region = job.edit.span, job.edit.region
    return {
        "time_range": {"start_seconds": span.start_s, "end_seconds": span.end_s} if span else None,
        "region": _delivered(region, job) if region else None,
        "mask": job.inputs.mask is not None,
        "mode": job.edit.mode,
    }


def _delivered(region: Region, job: VideoJob) -> dict[str, int]:
    scale = sides(job.delivered_size)[0] / sides(job.size)[0]
    told = {"x": region.x, "y": region.y, "width": region.width, "height": region.height}
    return {name: round(value * scale) for name, value in told.items()}
