"""The training text, a pure function of a seed: chats about four specialist domains and general ones.

A chat holds one to five turns, in 15 % of cases below a system prompt with a persona. All text is written for this
project, except one-line docstrings of the Python standard library (PSF licence), which follow the interpreter.
"""

from collections.abc import Iterator
from random import Random
from typing import get_args

from deployments.demo.subjects import chat, mathematics, science, security, stories
from deployments.demo.task import Domain, Sample, Split, Task, Turn, draw

Conversation = tuple[Turn, ...]

TASKS: tuple[Task, ...] = (*mathematics.TASKS, *security.TASKS, *science.TASKS, *stories.TASKS, *chat.TASKS)
DOMAINS: tuple[Domain, ...] = get_args(Domain)
SHARE: dict[Domain, float] = {
    "math": 0.26,
    "code_security": 0.16,
    "scientific_reasoning": 0.13,
    "creative_writing": 0.12,
    "general": 0.33,
}
PERSONAS: dict[Domain, tuple[str, ...]] = {
    "math": ("You are a careful mathematician.", "You are a patient math tutor.", "You solve problems step by step."),
    "code_security": (
        "You are a security engineer who reviews code.",
        "You are an expert in secure software.",
        "You are a senior Python programmer.",
    ),
    "scientific_reasoning": (
        "You are a scientist who explains things simply.",
        "You are a physics teacher.",
        "You reason carefully from evidence.",
    ),
    "creative_writing": ("You are a storyteller.", "You are a poet.", "You are a creative writer with a warm voice."),
    "general": ("You are a helpful assistant.", "You are a friendly assistant.", "Answer briefly and politely."),
}


def _tasks(domain: Domain) -> tuple[list[Task], list[float]]:
    own = [task for task in TASKS if task.domain == domain]
    return own, [task.weight for task in own]


BY_DOMAIN = {domain: _tasks(domain) for domain in DOMAINS}


def _sample(rng: Random) -> Sample:
    domain = rng.choices(DOMAINS, [SHARE[domain] for domain in DOMAINS])[0]
    tasks, weights = BY_DOMAIN[domain]
    return draw(rng.choices(tasks, weights)[0], rng, "train")


def _turns(sample: Sample) -> Conversation:
    domain = sample.task.domain
    return (
        Turn(role="user", content=sample.question, domain=domain),
        Turn(role="assistant", content=sample.answer, domain=domain),
    )


def conversation(rng: Random) -> Conversation:
    """One training chat."""
    if rng.random() < 0.06:
        return chat.dialogue(rng, "train")
    turns = tuple(turn for _ in range(rng.choice((1, 1, 1, 1, 1, 2, 2, 3, 5))) for turn in _turns(_sample(rng)))
    if rng.random() >= 0.15:
        return turns
    domain = turns[0].domain
    words = rng.choice(PERSONAS[domain if rng.random() < 0.7 else "general"])
    return (Turn(role="system", content=words, domain=domain), *turns)


def conversations(seed: int) -> Iterator[Conversation]:
    """Training chats without end."""
    rng = Random(seed)
    while True:
        yield conversation(rng)


def evaluation(seed: int, per_task: int) -> Iterator[Sample]:
    """Samples with phrasings, and where there are many fillings also fillings, that training never draws."""
    for task in TASKS:
        rng = Random(f"{seed} {task.name}")
        yield from (draw(task, rng, "evaluation") for _ in range(per_task))


def render(turns: Conversation) -> str:
    """The text of a chat, as the checkpoints' chat template writes it."""
    return "".join(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in turns)


__all__ = ["DOMAINS", "TASKS", "Conversation", "Split", "conversation", "conversations", "evaluation", "render"]
