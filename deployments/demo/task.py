"""The words of the corpus: a task asks in one of several phrasings and fills its slots at random.

`held_out` phrasings, and for `open_ended` tasks one filling in ten, are never trained on: evaluation uses nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal
from zlib import crc32

Domain = Literal["math", "code_security", "scientific_reasoning", "creative_writing", "general"]
Split = Literal["train", "evaluation"]
Slots = dict[str, str]
Fill = Callable[[Random], tuple[Slots, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """`exact`: a greedy answer must equal the reference. `json`: it must parse to the same value."""

    name: str
    domain: Domain
    weight: float
    asks: tuple[str, ...]
    held_out: tuple[str, ...]
    fill: Fill
    open_ended: bool = False
    exact: bool = False
    json: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    role: Literal["system", "user", "assistant", "tool"]
    content: str
    domain: Domain


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    task: Task
    slots: Slots
    question: str
    answer: str


def reserved(slots: Slots) -> bool:
    """One filling in ten belongs to evaluation, in every process and for every seed."""
    return crc32(repr(sorted(slots.items())).encode()) % 10 == 0


def draw(task: Task, rng: Random, split: Split) -> Sample:
    """One question and its answer, from the phrasings and fillings of that split."""
    slots, answer = task.fill(rng)
    while task.open_ended and reserved(slots) != (split == "evaluation"):
        slots, answer = task.fill(rng)
    ask = rng.choice(task.asks if split == "train" else task.held_out)
    question = ask.format(**slots)
    return Sample(task=task, slots=slots, question=question[0].upper() + question[1:], answer=answer)
