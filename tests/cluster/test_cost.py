"""The formula, with the constants of the pro tier of h200: a 8.52, b .0309, c .0117, d 11.88, 8 experts of 128."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.cost import prefill_us_per_token, step_ms, ttft_ms
from cluster.family import load

PRO = load("h200").tiers["pro"].cost
DENSE = PRO.model_copy(update={"d_ms": 0.0, "experts": 1, "top_k": 1})


@pytest.mark.parametrize(
    ("sequences", "kv_tokens", "expected_ms"),
    [
        (0, 0, 8.52),  # a
        (1, 0, 8.52 + 0.0309 + 11.88 * 8 / 128),  # one token touches top_k of the experts
        (64, 131_072, 8.52 + 1.9776 + 1.5335 + 11.88 * (1 - 0.9375**64)),
        (256, 524_288, 8.52 + 7.9104 + 6.1342 + 11.88),  # 256 tokens touch them all
    ],
)
def test_a_step_costs_its_four_terms(sequences: int, kv_tokens: int, expected_ms: float) -> None:
    assert step_ms(PRO, sequences, kv_tokens) == pytest.approx(expected_ms, rel=1e-4)


def test_a_dense_model_has_no_expert_term() -> None:
    assert step_ms(DENSE, 10, 0) == pytest.approx(8.52 + 0.309)


@pytest.mark.parametrize(
    ("prompt_tokens", "us"),
    [
        (0, 79.0),  # flat below the first point
        (512, 79.0),
        (1024, (79 + 42.6) / 2),  # halfway in log(length)
        (2048, 42.6),
        (4096, (42.6 + 38.4) / 2),
        (8192, 38.4),
        (100_000, 38.4),  # flat above the last
    ],
)
def test_prefill_per_token_is_linear_in_the_log_of_the_length(prompt_tokens: int, us: float) -> None:
    assert prefill_us_per_token(PRO, prompt_tokens) == pytest.approx(us)


def test_one_point_of_prefill_holds_for_every_length() -> None:
    flat = PRO.model_copy(update={"prefill_us_per_token": {64: 10.0}})
    assert [prefill_us_per_token(flat, length) for length in (1, 64, 9999)] == [10.0] * 3


def test_the_first_token_waits_for_the_prefill_and_one_step_per_chunk() -> None:
    # 5000 tokens at 40 us = 200 ms, in 3 chunks of 2048 beside steps of 10 ms
    assert ttft_ms(5000, 40.0, 10.0, 2048) == pytest.approx(230.0)


loads = st.tuples(st.integers(0, 512), st.integers(0, 10**6))


@given(loads, loads)
def test_more_load_never_makes_a_step_cheaper(one: tuple[int, int], other: tuple[int, int]) -> None:
    low = step_ms(PRO, min(one[0], other[0]), min(one[1], other[1]))
    high = step_ms(PRO, max(one[0], other[0]), max(one[1], other[1]))
    assert low <= high


@given(st.integers(0, 10**6))
def test_prefill_per_token_stays_between_the_measured_points(prompt_tokens: int) -> None:
    assert 38.4 <= prefill_us_per_token(PRO, prompt_tokens) <= 79
