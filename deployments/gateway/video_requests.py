"""What a videos request asks for: every choice made, checked against the family, its references still to be fetched.

A remix, an edit and an extension take from their clip what is not given anew: size, rate, steps, style. Each refusal
names its field. Pure.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from cluster.clip import Region, Span
from cluster.delivery import Delivery, Wish, delivery, sides
from cluster.errors import InvalidRequest, NotFound, NotInPlan
from cluster.family import Video
from cluster.video import Takes
from deployments.gateway.body import UNSUPPORTED, shown
from deployments.gateway.videos_wire import (
    Body,
    EditBody,
    ExtendBody,
    Given,
    Rectangle,
    RemixBody,
    TimeRange,
    VideoBody,
    body_of,
)
from deployments.video.jobs import VideoJob, VideoRequest
from deployments.video.spec import Edit, Inputs, Task

STRENGTH = 0.8  # diffusers' own of video to video


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """What of a request its body does not say. `priority`: of its plan; up to `highest` it may ask for."""

    seed: int
    priority: int = 0
    highest: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """Files of the request, or pointers to others. `characters`: ids."""

    first: Given | None = None
    last: Given | None = None
    images: tuple[Given, ...] = ()
    source: Given | None = None
    mask: Given | None = None
    audio: Given | None = None
    characters: tuple[str, ...] = ()

    def named(self) -> Iterator[str]:
        """The parameters that have something, but for sound."""
        given = {
            "input_reference": self.first,
            "last_frame_reference": self.last,
            "image_references": self.images or self.characters,
            "video_reference": self.source,
            "mask": self.mask,
        }
        return (name for name, reference in given.items() if reference)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """`request` without its inputs."""

    request: VideoRequest
    references: References

    @property
    def texts(self) -> tuple[str, str]:
        """What is said, to be judged."""
        return self.request.prompt, self.request.negative_prompt


def created(fields: Mapping[str, Any], video: Video, caller: Caller) -> Asked:
    """A clip of its own. With `video_reference` it is a remix of that video, with a mask an edit of it.

    Raises InvalidRequest, NotFound, NotInPlan.
    """
    body = body_of(VideoBody, fields)
    references = References(
        first=body.input_reference,
        last=body.last_frame_reference,
        images=tuple(body.image_references or ()),
        source=body.video_reference,
        mask=body.mask,
        audio=body.audio_reference,
        characters=tuple(each.id for each in body.characters or ()),
    )
    task = _task(body)
    _check(video.takes, task, references)
    wish = Wish(
        seconds=body.seconds, size=body.size, width=body.width, height=body.height, frames=body.num_frames, fps=body.fps
    )
    fresh = _fresh(body, _model(video, body.model), delivery(video, wish), video, caller)
    request = replace(
        fresh,
        task=task,
        strength=_strength(body.strength) if task == "remix" else 1.0,
        edit=Edit() if task == "edit" else None,
    )
    return Asked(request=request, references=references)


def remixed(fields: Mapping[str, Any], video: Video, caller: Caller, parent: VideoJob) -> Asked:
    """Raises InvalidRequest, NotFound, NotInPlan."""
    body = body_of(RemixBody, fields)
    references = References(audio=body.audio_reference)
    _check(video.takes, "remix", references)
    request = replace(_after(body, parent, video, caller), task="remix", strength=_strength(body.strength))
    return Asked(request=request, references=references)


def edited(body: EditBody, video: Video, caller: Caller, parent: VideoJob | None) -> Asked:
    """Without a parent, of the video that is sent along. Raises InvalidRequest, NotFound, NotInPlan."""
    references = References(
        images=tuple(body.image_references or ()),
        source=None if parent else cast("Given", body.video),
        mask=body.mask,
        audio=body.audio_reference,
    )
    _check(video.takes, "edit", references)
    mode = body.edit_mode or "exact"
    if mode == "fast" and video.takes is not None and not video.takes.fast:
        raise _unserved("edit_mode", "fast: this model computes all of the clip; exact is allowed; leave it out")
    request = _begun_from(body, video, caller, parent)
    edit = Edit(span=_span(body.time_range, request), region=_region(body.region, request), mode=mode)
    return Asked(request=replace(request, task="edit", edit=edit), references=references)


def extended(body: ExtendBody, video: Video, caller: Caller, parent: VideoJob | None) -> Asked:
    """`seconds` are those to be added; the job's are all of them. Raises InvalidRequest, NotFound, NotInPlan."""
    references = References(source=None if parent else cast("Given", body.video), audio=body.audio_reference)
    _check(video.takes, "extend", references)
    request = _begun_from(body, video, caller, parent)
    if parent is None:
        return Asked(request=replace(request, task="extend"), references=references)
    return Asked(request=longer(replace(request, task="extend"), body.seconds, video), references=references)


def longer(request: VideoRequest, seconds: int, video: Video) -> VideoRequest:
    """By so many seconds. Raises InvalidRequest where the model makes no clip of that length."""
    frames = (request.frames or request.seconds * request.fps) + seconds * request.fps
    most = max(video.seconds) * video.fps
    if frames > most:
        left = max(0, (most - frames) // request.fps + seconds)
        allowed = f"1 to {left} are allowed" if left else "none is allowed, it is as long as clips get"
        raise InvalidRequest(
            f"seconds: given {seconds}, after a clip of {request.seconds} s; {allowed}; ask for fewer, or begin a new "
            "clip with the last picture of this one",
            param="seconds",
        )
    return replace(request, frames=frames, seconds=-(-frames // request.fps))


def _task(body: VideoBody) -> Task:
    if body.mask is not None and body.video_reference is None:
        raise InvalidRequest(
            "mask: given without video_reference; with it a mask is allowed; add the video", param="mask"
        )
    if body.strength is not None and (body.video_reference is None or body.mask is not None):
        raise InvalidRequest(
            "strength: given without video_reference, or with a mask; of a remix it is allowed; leave it out",
            param="strength",
        )
    if body.video_reference is None:
        return "create"
    return "remix" if body.mask is None else "edit"


def _check(takes: Takes | None, task: Task, references: References) -> None:
    """Where nobody knows what the model takes, its replica says so when it begins."""
    if takes is None:
        return
    if task not in takes.tasks:
        raise _unserved("video", f"this model does not {task}; it can {', '.join(takes.tasks)}; create a new clip")
    given = list(references.named())
    taken = ", ".join(("a prompt", *takes.inputs, "audio_reference"))
    for name in given:
        of_clip = name == "video_reference" and task in ("edit", "extend")
        if name not in takes.inputs and not of_clip:
            raise _unserved(name, f"this model takes none; {taken} are allowed; leave it out")
    for name in takes.needs:
        if name not in given:
            raise InvalidRequest(
                f"{name}: not given; this model needs it; add it", param=name, code="missing_parameter"
            )


def _unserved(name: str, told: str) -> InvalidRequest:
    return InvalidRequest(f"{name}: {told}", param=name, code=UNSUPPORTED)


def _begun_from(body: EditBody | ExtendBody, video: Video, caller: Caller, parent: VideoJob | None) -> VideoRequest:
    if parent is None:
        # As long as clips get, until the video is read.
        wish = Wish(size=body.size, seconds=max(video.seconds))
        return _fresh(body, _model(video, body.model), delivery(video, wish), video, caller)
    for name in ("model", "size"):
        if getattr(body, name) not in (None, parent.model if name == "model" else parent.delivered_size):
            raise InvalidRequest(
                f"{name}: given {shown(getattr(body, name))}; a clip keeps its own; leave it out", param=name
            )
    return _after(body, parent, video, caller)


def _fresh(body: Body, model: str, clip: Delivery, video: Video, caller: Caller) -> VideoRequest:
    return VideoRequest(
        model=model,
        prompt=body.prompt,
        negative_prompt=body.negative_prompt or "",
        seconds=clip.seconds,
        size=clip.size,
        fps=video.fps,
        steps=body.num_inference_steps or video.steps,
        guidance=video.guidance if body.guidance_scale is None else body.guidance_scale,
        seed=caller.seed if body.seed is None else body.seed,
        style=body.style,
        style_phrase=_phrase(video, body.style),
        frames=clip.frames if clip.frames != clip.seconds * video.fps else 0,
        out_size=clip.out_size,
        out_fps=clip.out_fps,
        priority=_priority(body.priority, caller),
    )


def _after(body: Body, parent: VideoJob, video: Video, caller: Caller) -> VideoRequest:
    """Of the parent what the body does not say, but for its seed and its inputs; its sound stays."""
    _model(video, parent.model)
    given: dict[str, Any] = {
        "negative_prompt": body.negative_prompt,
        "steps": body.num_inference_steps,
        "guidance": body.guidance_scale,
    }
    if body.style is not None:
        given |= {"style": body.style, "style_phrase": _phrase(video, body.style)}
    return replace(
        parent.asked,
        **{name: value for name, value in given.items() if value is not None},
        prompt=body.prompt,
        seed=caller.seed if body.seed is None else body.seed,
        priority=_priority(body.priority, caller),
        parent_id=parent.id,
        edit=None,
        inputs=Inputs(audio=parent.inputs.audio),
        strength=1.0,
    )


def _model(video: Video, given: str | None) -> str:
    model = video.names[0] if given is None else given
    if model not in video.names:
        names = ", ".join(video.names)
        raise NotFound(f"model: given {shown(model)}; served are {names}; choose one of them", param="model")
    return model


def _phrase(video: Video, style: str | None) -> str:
    if style is None:
        return ""
    if style not in video.styles:
        known = ", ".join(video.styles) or "none"
        raise InvalidRequest(f"style: given {shown(style)}; there are {known}; choose one, or none", param="style")
    return video.styles[style]


def _strength(given: float | None) -> float:
    return STRENGTH if given is None else given


def _priority(given: int | None, caller: Caller) -> int:
    if given is None:
        return caller.priority
    if given > caller.highest:
        raise NotInPlan(
            f"priority: given {given}; up to {caller.highest} is in this key's plan; lower it", param="priority"
        )
    return given


def _span(given: TimeRange | None, request: VideoRequest) -> Span | None:
    if given is None:
        return None
    length_s = (request.frames or request.seconds * request.fps) / request.fps
    end_s = length_s if given.end_seconds is None else given.end_seconds
    if not given.start_seconds < end_s <= length_s:
        raise InvalidRequest(
            f"time_range: given {given.start_seconds:g} to {end_s:g}; a start before its end, both from 0 to "
            f"{length_s:g} s, are allowed; mend them",
            param="time_range",
        )
    return Span(start_s=given.start_seconds, end_s=end_s)


def _region(given: Rectangle | None, request: VideoRequest) -> Region | None:
    """From pixels of what is delivered to those of what is rendered, outwards."""
    if given is None:
        return None
    width, height = sides(request.delivered_size)
    right, bottom = given.x + given.width, given.y + given.height
    if right > width or bottom > height:
        raise InvalidRequest(
            f"region: given {given.width}x{given.height} at {given.x},{given.y}; a rectangle within {width}x{height} "
            "is allowed; mend it",
            param="region",
        )
    own_width, own_height = sides(request.size)
    x, y = given.x * own_width // width, given.y * own_height // height
    return Region(x=x, y=y, width=-(-right * own_width // width) - x, height=-(-bottom * own_height // height) - y)
