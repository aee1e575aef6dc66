from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.workload import Workload
from deployments.load.plan import Request, Words, requests


def workload(count: int, model: str = "") -> Workload:
    return Workload(
        arrival_s=np.arange(count, dtype=float),
        prompt_tokens=np.full(count, 7),
        output_tokens=np.full(count, 3),
        model=np.zeros(count, dtype=np.int64),
        tenant=np.zeros(count, dtype=np.int64),
        models=(model,),
    )


def request(prompt_tokens: int, blocks: tuple[int, ...] = (), number: int = 0) -> Request:
    return Request(
        number=number, at_s=0.0, model="m", prompt_tokens=prompt_tokens, output_tokens=1, blocks=blocks, block_tokens=8
    )


def test_a_replay_at_twice_the_speed_takes_half_the_time() -> None:
    assert [one.at_s for one in requests(workload(4), 2.0, {"a": 1.0}, 0)] == [0.0, 0.5, 1.0, 1.5]


def test_what_names_no_model_is_shared_out_and_the_seed_says_how() -> None:
    shares = {"a": 0.75, "b": 0.25}
    planned = list(requests(workload(2000), 1.0, shares, 3))
    assert planned == list(requests(workload(2000), 1.0, shares, 3))
    assert Counter(one.model for one in planned)["a"] == pytest.approx(1500, rel=0.05)
    assert {one.model for one in requests(workload(5, "named"), 1.0, shares, 3)} == {"named"}


@given(st.integers(1, 200_000), st.integers(0, 10_000_000))
def test_a_prompt_has_four_characters_for_each_token(tokens: int, number: int) -> None:
    text = WORDS.prompt(request(tokens, number=number))
    assert len(text) == 4 * tokens
    assert len(text.split()) == tokens


def test_equal_blocks_are_equal_text_and_others_are_not() -> None:
    one, other = WORDS.prompt(request(20, (1, 2, 3), 4)), WORDS.prompt(request(20, (1, 2, 9), 5))
    assert len(one) == len(other) == 80
    assert one[:64] == other[:64]
    assert one[64:] != other[64:]
    assert WORDS.prompt(request(20, (1, 2), 4))[:64] == one[:64], "the hash of the begun block may be missing"


WORDS = Words(0)
