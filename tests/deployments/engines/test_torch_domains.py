"""Whose rows the experts compute: as the request says, or as the experts that its prompt chose say."""

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch_group import collected

from cluster.request import Generation, Message, Sampling
from deployments.demo.corpus import evaluation
from deployments.engines.torch_engine.checkpoint import read_config
from deployments.engines.torch_engine.domains import DOMAINS, Tally, ballot, number
from deployments.engines.torch_engine.engine import TorchEngine
from deployments.engines.torch_engine.spec import EngineSpec

CHECKPOINTS = Path(__file__).parents[3] / "deployments" / "demo" / "checkpoints"
ANSWER = Sampling(temperature=0, max_tokens=2)


def test_rows_to_an_expert_of_a_small_domain_say_more() -> None:
    votes = ballot({"math": (0, 1), "general": (2, 3, 4, 5), "cooking": (6,)}, 8)
    assert votes[:, number("math")].tolist() == [0.5, 0.5, 0, 0, 0, 0, 0, 0]
    assert votes[:, number("general")].tolist() == [0, 0, 0.25, 0.25, 0.25, 0.25, 0, 0]
    assert not votes[6:].any(), "what is counted under no name of its own says nothing"


@pytest.fixture
def spec() -> EngineSpec:
    return EngineSpec(checkpoint=str(CHECKPOINTS / "ultra"), context_tokens=512, kv_tokens=4096)


@pytest.fixture
async def engine(spec: EngineSpec) -> AsyncIterator[TorchEngine]:
    engine = TorchEngine(spec)
    await engine.start()
    yield engine
    await engine.stop()


async def rows(engine: TorchEngine, question: str, domain: str = "") -> dict[str, int]:
    """Rows of one request by domain, in rows per layer and expert of a token."""
    before = counted(engine)
    prompt = engine.encode((Message(role="user", content=question),))
    await collected(engine, Generation(request_id="a", prompt=prompt, sampling=ANSWER, domain=domain))
    config = read_config(CHECKPOINTS / "ultra")
    each = (counted(engine) - before) // (config.moe_layers * config.top_k)
    return {name: int(n) for name, n in zip(DOMAINS, each, strict=True) if n}


def counted(engine: TorchEngine) -> NDArray[np.int64]:
    experts = engine.report().experts
    assert experts is not None
    assert experts.domains == DOMAINS
    return np.asarray(experts.tokens.sum(axis=(1, 2, 3)))


QUESTION = "What is 12 plus 7?"


async def test_what_a_request_names_counts_its_prompt_and_its_answer(engine: TorchEngine) -> None:
    tokens = len(engine.encode((Message(role="user", content=QUESTION),)))
    assert await rows(engine, QUESTION, "creative_writing") == {"creative_writing": tokens + 1}


async def test_what_no_request_names_is_measured_and_counts_prompt_and_answer(engine: TorchEngine) -> None:
    tokens = len(engine.encode((Message(role="user", content=QUESTION),)))
    assert await rows(engine, QUESTION) == {"math": tokens + 1}
    assert await rows(engine, QUESTION, "cooking") == {"math": tokens + 1}, "an unknown name is none"


async def test_a_prompt_of_many_steps_is_measured_as_a_whole(spec: EngineSpec) -> None:
    engine = TorchEngine(replace(spec, prefill_chunk_tokens=3))
    await engine.start()
    tokens = len(engine.encode((Message(role="user", content=QUESTION),)))
    assert await rows(engine, QUESTION) == {"math": tokens + 1}
    await engine.stop()


class Sequences:
    """Rows of sequences at places, each to two experts, in two layers whose experts lie in order."""

    def __init__(self) -> None:
        config = read_config(CHECKPOINTS / "ultra")
        assert config.domains is not None
        self.of, self.slots = config.domains, tuple(range(config.experts))
        self.tally = Tally((self.slots,) * 2, config, 3, torch.device("cpu"))

    def step(self, *rows: tuple[int, str]) -> None:
        """rows: the place of each, and the domain whose experts it goes to."""
        chosen = torch.tensor([self.slots.index(expert) for _, domain in rows for expert in self.of[domain][:2]])
        self.tally.add(np.array([place for place, _ in rows]), [chosen, chosen])

    def taken(self) -> dict[str, int]:
        """In tokens."""
        each = self.tally.taken().sum((0, 2)) // 4
        return {name: int(n) for name, n in zip(DOMAINS, each, strict=True) if n}


def test_rows_of_a_prompt_that_were_taken_before_its_end_stay_unknown_but_have_a_vote() -> None:
    s = Sequences()
    s.tally.open(0, "")
    s.tally.open(2, "general")
    s.step((2, "code_security"), (0, "math"), (0, "math"), (0, "math"))
    assert s.taken() == {"": 3, "general": 1}
    s.step((0, "creative_writing"), (2, "general"))
    s.tally.close(0)
    s.step((0, "creative_writing"))
    assert s.taken() == {"math": 2, "general": 1}
    assert s.taken() == {}


def test_a_prompt_that_was_cancelled_counts_as_unknown_and_says_nothing_of_the_next() -> None:
    s = Sequences()
    s.tally.open(1, "")
    s.step((1, "creative_writing"), (1, "creative_writing"))
    s.tally.open(1, "")
    s.step((1, "math"))
    s.tally.close(1)
    assert s.taken() == {"": 2, "math": 1}


def test_experts_that_moved_vote_from_where_they_lie() -> None:
    s = Sequences()
    s.slots = s.slots[::-1]
    for layer in range(2):
        s.tally.move(layer, s.slots)
    s.tally.open(1, "")
    s.step((1, "math"))
    s.tally.close(1)
    assert s.taken() == {"math": 1}


@pytest.mark.parametrize(("name", "floor"), [("mini", 0.95), ("turbo", 0.9), ("pro", 0.84), ("ultra", 0.87)])
async def test_the_measured_domain_is_nearly_always_the_true_one(spec: EngineSpec, name: str, floor: float) -> None:
    folder = CHECKPOINTS / name
    owned = read_config(folder).domains
    assert owned is not None
    engine = TorchEngine(replace(spec, checkpoint=str(folder)))
    await engine.start()
    right = Counter[bool]()
    for sample in evaluation(20_000, 3):
        true = sample.task.domain if sample.task.domain in owned else "general"
        seen = counted(engine)
        prompt = engine.encode((Message(role="user", content=sample.question),))
        await collected(engine, Generation(request_id="a", prompt=prompt, sampling=ANSWER))
        right[DOMAINS[int((counted(engine) - seen).argmax())] == true] += 1
    await engine.stop()
    assert right[True] / right.total() >= floor, right
