"""The wire of /v1/storyboards: fields -> what is asked, Storyboard -> its object. No error has words of a prompt."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from cluster.errors import InvalidRequest
from cluster.storyboard import Character, Model, Shot, present, prompt_of, seconds_of
from deployments.gateway.body import Strict
from deployments.gateway.videos_wire import LONGEST_PROMPT_CHARS, MOST_REFERENCES, Outlook, video_object
from deployments.stores.storyboards import State, Storyboard, Take
from deployments.video.jobs import VideoJob

MOST_SHOTS = 32
LONGEST_PHRASE_CHARS = 1000
LONGEST_DIALOGUE_CHARS = 4000
Name = Annotated[str, Field(min_length=1, max_length=64)]


class SoundBody(Strict):
    audio_url: Annotated[str, Field(min_length=1)]


class ShotBody(Strict):
    """What a shot is; a language model writes such objects, too, but without sound."""

    prompt: Annotated[str, Field(min_length=1, max_length=LONGEST_PROMPT_CHARS - 9000)]
    seconds: Annotated[float, Field(gt=0, le=3600)]
    camera: Annotated[str, Field(max_length=LONGEST_PHRASE_CHARS)] = ""
    dialogue: Annotated[str, Field(max_length=LONGEST_DIALOGUE_CHARS)] = ""
    characters: Annotated[list[Name], Field(max_length=MOST_REFERENCES)] = Field(default=[])
    audio_reference: SoundBody | None = None


class Script(Strict):
    shots: Annotated[list[ShotBody], Field(min_length=1, max_length=MOST_SHOTS)]


class CharacterBody(Strict):
    name: Name
    phrase: Annotated[str, Field(min_length=1, max_length=LONGEST_PHRASE_CHARS)]
    reference: Name | None = None


class StoryboardBody(Strict):
    title: Annotated[str, Field(max_length=200)] = ""
    shots: Annotated[list[ShotBody], Field(min_length=1, max_length=MOST_SHOTS)] | None = None
    script: Annotated[str, Field(min_length=1, max_length=LONGEST_PROMPT_CHARS)] | None = None
    script_model: str | None = None
    characters: Annotated[list[CharacterBody], Field(max_length=MOST_REFERENCES)] = Field(default=[])
    model: str | None = None
    size: str | None = None
    style: str | None = None
    negative_prompt: Annotated[str, Field(max_length=LONGEST_PROMPT_CHARS)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**62)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=200)] | None = None


class RetakeBody(Strict):
    """Of one shot what is to be another; what is left out stays. Without a seed, one is drawn."""

    prompt: Annotated[str, Field(min_length=1, max_length=LONGEST_PROMPT_CHARS - 9000)] | None = None
    seconds: Annotated[float, Field(gt=0, le=3600)] | None = None
    camera: Annotated[str, Field(max_length=LONGEST_PHRASE_CHARS)] | None = None
    dialogue: Annotated[str, Field(max_length=LONGEST_DIALOGUE_CHARS)] | None = None
    characters: Annotated[list[Name], Field(max_length=MOST_REFERENCES)] | None = None
    audio_reference: SoundBody | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None


def said(body: StoryboardBody) -> Iterator[str | None]:
    """What is to be judged. A script is a chat, and judged as one."""
    yield from (body.title, body.negative_prompt)
    for one in body.characters:
        yield from (one.name, one.phrase)
    for shot in body.shots or ():
        yield from (shot.prompt, shot.camera, shot.dialogue)


def digest(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def cast_of(body: StoryboardBody) -> tuple[Character, ...]:
    """Raises InvalidRequest."""
    names = [one.name for one in body.characters]
    if len(set(names)) < len(names):
        raise InvalidRequest(
            "characters: a name comes twice; each is allowed once; rename one of the two", param="characters"
        )
    return tuple(Character(name=one.name, phrase=one.phrase, reference=one.reference) for one in body.characters)


def shot_of(body: ShotBody, cast: Sequence[Character], index: int) -> Shot:
    """Raises InvalidRequest."""
    shot = Shot(
        prompt=body.prompt,
        seconds=body.seconds,
        camera=body.camera,
        dialogue=body.dialogue,
        characters=tuple(body.characters),
    )
    check_names(shot, cast, index)
    return shot


def check_names(shot: Shot, cast: Sequence[Character], index: int) -> None:
    """Raises InvalidRequest."""
    if set(shot.characters) - {one.name for one in cast}:
        raise InvalidRequest(
            f"shots[{index}].characters: names somebody who is not in characters; {len(cast)} are there; add the "
            "character, or leave the name out",
            param=f"shots[{index}].characters",
        )


def video_fields(shot: Shot, cast: Sequence[Character], model: Model, others: Mapping[str, Any]) -> dict[str, Any]:
    """The body of the shot's /v1/videos. `others`: its further fields, of which some are None."""
    fields = {**others, "prompt": prompt_of(shot, cast), "seconds": seconds_of(shot, model)}
    if model.references:
        pictures = [{"id": one.reference} for one in present(shot, cast) if one.reference]
        fields |= {"characters": pictures} if pictures else {}
    return {name: value for name, value in fields.items() if value is not None}


def status_of(board: Storyboard, jobs: Mapping[str, VideoJob]) -> State:
    """incomplete: some shots failed, the others are there; failed: only the cut did. A cut outlives its shots."""
    if board.joined == board.videos:
        return "completed"
    shots = [_status(take, jobs) for take in board.takes]
    if any(status in ("queued", "in_progress") for status in shots):
        return "in_progress"
    if any(status != "completed" for status in shots):
        return "incomplete"
    return "joining" if board.cut_error is None else "failed"


def noted(board: Storyboard, jobs: Mapping[str, VideoJob]) -> Storyboard:
    """With how its takes ended."""
    return replace(board, takes=tuple(replace(take, ended=take.ended or _ended(take, jobs)) for take in board.takes))


def _ended(take: Take, jobs: Mapping[str, VideoJob]) -> Literal["ok", "failed"] | None:
    """None while it may still be made, and where nobody can tell any more."""
    ends: dict[str, Literal["ok", "failed"]] = {"completed": "ok", "failed": "failed"}
    return ends.get(_status(take, jobs))


def storyboard_object(
    board: Storyboard, jobs: Mapping[str, VideoJob], outlooks: Mapping[str, Outlook]
) -> dict[str, Any]:
    status = status_of(board, jobs)
    return {
        "id": board.id,
        "object": "storyboard",
        "created_at": board.created_at_s,
        "completed_at": board.joined_at_s if status == "completed" else None,
        "expires_at": board.expires_at_s,
        "status": status,
        "title": board.title,
        "characters": [asdict(one) for one in board.cast],
        "shots": [_shot(index, take, jobs, outlooks) for index, take in enumerate(board.takes)],
        "warnings": [asdict(one) for one in board.warnings],
        "signed": board.signed if status == "completed" else None,
        "error": None if board.cut_error is None else {"code": "cut_failed", "message": board.cut_error},
    }


def _status(take: Take, jobs: Mapping[str, VideoJob]) -> str:
    if take.refused is not None:
        return "failed"
    if take.video_id is None:
        return "queued"
    return jobs[take.video_id].status if take.video_id in jobs else "deleted"


def _shot(index: int, take: Take, jobs: Mapping[str, VideoJob], outlooks: Mapping[str, Outlook]) -> dict[str, Any]:
    job = jobs.get(take.video_id or "")
    error = None if take.refused is None else {"code": "not_accepted", "message": take.refused}
    return {
        "index": index,
        **asdict(take.shot),
        "status": _status(take, jobs),
        "video": None if job is None else video_object(job, outlook=outlooks.get(job.id)),
        "earlier_videos": list(take.earlier),
        "error": error,
    }
