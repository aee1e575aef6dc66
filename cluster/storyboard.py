"""A storyboard: shots in order, who appears in them, and what is doubtful about them. Pure.

A shot is one clip. Its prompt names its camera, and how each of its characters looks, so that they look alike in all
shots. Doubts are data, never refusals: the rules read words, and a model may do better than they know.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

MOST_CHARACTERS = 3  # in one shot, before they are mixed up
WORDS_PER_S = 4.0  # nobody is understood who speaks faster; conversation has 2 to 3

Doubt = Literal["seconds", "size", "motion", "characters", "reference", "dialogue", "speech"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Character:
    """`phrase`: how he looks, in every prompt. `reference`: id of a character of /v1/videos/characters."""

    name: str
    phrase: str
    reference: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """`characters`: names. `dialogue` is what is said in it."""

    prompt: str
    seconds: float
    camera: str = ""
    dialogue: str = ""
    characters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What a video model can do. `seconds`: the lengths it makes. `references`: whether it takes pictures of who

    appears. No model here speaks.
    """

    seconds: tuple[int, ...]
    references: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned:
    """`shot`: from 0; None of all of them."""

    shot: int | None
    kind: Doubt
    message: str


def prompt_of(shot: Shot, cast: Sequence[Character]) -> str:
    """What its clip is asked for. Dialogue is no part of it: a model would write it into the picture."""
    looks = [f"{one.name}: {one.phrase}" for one in present(shot, cast)]
    camera = [f"camera: {shot.camera}"] if shot.camera else []
    return ". ".join([shot.prompt.rstrip(". "), *camera, *looks])


def present(shot: Shot, cast: Sequence[Character]) -> tuple[Character, ...]:
    """Who is in the shot: those it lists, and those whose name its prompt has as a word."""
    return tuple(one for one in cast if one.name in shot.characters or _names(shot.prompt, one.name))


def seconds_of(shot: Shot, model: Model) -> int:
    """The shortest clip that has room for the shot; else the longest."""
    return min((each for each in model.seconds if each >= shot.seconds), default=max(model.seconds))


def warnings(
    shots: Sequence[Shot], cast: Sequence[Character], model: Model, *, rendered: str, delivered: str
) -> tuple[Warned, ...]:
    """`rendered` and `delivered`: sizes of all shots."""
    found = [
        Warned(shot=index, kind=kind, message=message)
        for index, shot in enumerate(shots)
        for kind, message in _doubts(shot, cast, model)
    ]
    if rendered != delivered:
        message = f"{delivered} is beyond the model: rendered as {rendered} and scaled up"
        found.append(Warned(shot=None, kind="size", message=message))
    return tuple(found)


def _doubts(shot: Shot, cast: Sequence[Character], model: Model) -> Iterator[tuple[Doubt, str]]:
    made = seconds_of(shot, model)
    if made != shot.seconds:
        lengths = ", ".join(map(str, sorted(model.seconds)))
        yield "seconds", f"{shot.seconds:g} s is no length of the model ({lengths} s): rendered as {made} s"
    for text in (shot.prompt, shot.camera):
        for one, other in _contradictions(text):
            yield "motion", f"{one} and {other} at once cannot be; say which comes first, or make two shots"
    there = present(shot, cast)
    if len(there) > MOST_CHARACTERS:
        yield "characters", f"{len(there)} characters in one shot get mixed up beyond {MOST_CHARACTERS}; make two shots"
    unseen = [one.name for one in there if one.reference and not model.references]
    if unseen:
        yield "reference", f"the model takes no pictures: {', '.join(unseen)} is drawn by the phrase alone"
    if shot.dialogue:
        yield (
            "dialogue",
            "the model does not speak: lips will not say this; send the voice as audio_reference",
        )
        words = len(shot.dialogue.split())
        if words > WORDS_PER_S * made:
            yield "speech", f"{words} words in {made} s are more than {WORDS_PER_S:g} a second; shorten, or lengthen"


_LENS = r"(?:pan(?:s|ning)?|tilt(?:s|ing)?|zoom(?:s|ing)?|doll(?:y|ies|ying))\b"  # there is one camera
_VERB = r"(?:mov|fl|run|walk|driv|turn|slid|roll|rotat|swim|danc)\w*"
_SLOW = r"(?:\s+(?:slowly|quickly|to|the))*\s+"
_WAYS = (
    ("left", "right"), ("up", "down"), ("upwards?", "downwards?"), ("in", "out"), ("forwards?", "backwards?"),
    ("clockwise", "counterclockwise"),
)  # fmt: skip
_STILL = re.compile(r"\b(?:static|locked|fixed|still) (?:camera|shot|frame)\b|^\s*(?:static|locked|fixed|still)\b")
_IN_TURN = re.compile(r"\b(?:then|after|afterwards|before|first|finally|later|back|forth)\b")


def _contradictions(text: str) -> Iterator[tuple[str, str]]:
    """Opposite ways of the camera, or of one subject, in a sentence without a word that puts them in turn.

    Of `a moves left and b moves right` nothing is said.
    """
    for sentence in re.split(r"[.;!?]", text.lower()):
        if _IN_TURN.search(sentence):
            continue
        for pair in _WAYS:
            for one, other in (pair, pair[::-1]):
                yield from _opposite(sentence, one, other)
        if (moving := re.search(rf"\b{_LENS}", sentence)) and (still := _STILL.search(sentence)):
            yield still[0].strip(), moving[0]


def _opposite(sentence: str, one: str, other: str) -> Iterator[tuple[str, str]]:
    first = re.search(rf"\b{_LENS}{_SLOW}{one}\b", sentence)
    # A second search: one pattern for both would look through the rest from each first anew.
    if first and (second := re.compile(rf"\b{_LENS}{_SLOW}{other}\b").search(sentence, first.end())):
        yield first[0], second[0]
    subject = rf"\b({_VERB}{_SLOW}{one})\s+and\s+({_VERB}{_SLOW}{other})\b"
    if found := re.search(subject, sentence):
        yield found[1], found[2]


def _names(text: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE) is not None
