"""The laws of the training text: a pure function of its seed, and evaluation never trained on."""

import json
from itertools import islice
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from deployments.demo.corpus import DOMAINS, TASKS, conversations, evaluation, render
from deployments.demo.subjects.mathematics import add_steps, multiply_steps, subtract_steps
from deployments.demo.task import Task, draw

CHECKPOINT = Path(__file__).parents[2] / "deployments/demo/checkpoints/mini"


def some(seed: int, count: int = 3000) -> list[str]:
    return [render(chat) for chat in islice(conversations(seed), count)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(CHECKPOINT)


def test_the_same_seed_gives_the_same_text_and_another_seed_another() -> None:
    assert some(7) == some(7)
    assert some(7) != some(8)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_held_out_phrasings_are_disjoint_from_training(task: Task) -> None:
    assert task.held_out
    assert not set(task.held_out) & set(task.asks)


def test_no_evaluation_question_occurs_in_training_text() -> None:
    text = "".join(some(1))
    questions = [sample.question for sample in evaluation(1, 4) if len(sample.question) > 25]
    assert len(questions) > 100
    assert not [question for question in questions if f"user\n{question}<|im_end|>" in text]


def test_open_ended_tasks_keep_their_evaluation_fillings_out_of_training() -> None:
    for task in (task for task in TASKS if task.open_ended):
        rng = Random(3)
        trained = {tuple(sorted(draw(task, rng, "train").slots.items())) for _ in range(300)}
        held = {tuple(sorted(draw(task, rng, "evaluation").slots.items())) for _ in range(30)}
        assert not trained & held, task.name


def test_every_domain_has_tasks_and_about_its_share_of_the_text() -> None:
    seen = [turn.domain for chat in islice(conversations(2), 4000) for turn in chat]
    assert all(seen.count(domain) > 0.1 * len(seen) for domain in DOMAINS)


def test_json_answers_parse() -> None:
    answers = [sample.answer for sample in evaluation(5, 20) if sample.task.json]
    assert answers
    assert all(isinstance(json.loads(answer), dict) for answer in answers)


@given(a=st.integers(0, 99), b=st.integers(0, 99))
def test_worked_arithmetic_ends_in_the_right_number(a: int, b: int) -> None:
    assert add_steps(a, b).endswith(f" = {a + b}.")
    assert subtract_steps(max(a, b), min(a, b)).endswith(f" = {abs(a - b)}.")
    assert multiply_steps(a, b % 10).endswith(f" = {a * (b % 10)}.")


def test_training_text_is_written_as_the_chat_template_writes_it(tokenizer: PreTrainedTokenizerBase) -> None:
    for chat in islice(conversations(4), 300):
        said = [{"role": turn.role, "content": turn.content} for turn in chat]
        assert tokenizer.apply_chat_template(said, tokenize=False) == render(chat)
