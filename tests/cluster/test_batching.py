import pytest
from hypothesis import given
from hypothesis import strategies as st
from twin_world import one_service

from cluster.batching import LEAST_TOKENS, MOST_TOKENS, SLACK_SHARE, chunk_tokens

SLACK = one_service("slack")  # 50 ms per token are promised
batches = st.integers(1, 1000)
steps_ms = st.floats(0, 200)
prices_us = st.floats(1, 1000)


@pytest.mark.parametrize(
    ("decoding", "step_ms", "us", "chunk"),
    [
        (0, 0, 100, MOST_TOKENS),  # nobody is held up
        (1, 15, 100, int((SLACK_SHARE * 50 - 15) * 10)),  # what is left of the pace, at 0.1 ms each
        (9, 44, 100, LEAST_TOKENS),
        (9, 99, 100, LEAST_TOKENS),
        (1, 5, 1, MOST_TOKENS),
    ],
)
def test_a_chunk_is_what_the_pace_leaves(decoding: int, step_ms: float, us: float, chunk: int) -> None:
    assert chunk_tokens(SLACK, decoding, step_ms, us) == chunk


@pytest.mark.parametrize("decoding", [0, 1, 50])
def test_a_fixed_chunk_is_that_of_the_engine(decoding: int) -> None:
    assert chunk_tokens(one_service("fixed"), decoding, 40, 100) == 500


@given(batches, steps_ms, prices_us)
def test_no_step_breaks_the_pace_unless_the_least_chunk_does(decoding: int, step_ms: float, us: float) -> None:
    chunk = chunk_tokens(SLACK, decoding, step_ms, us)
    whole_ms = step_ms + chunk * us / 1000
    assert whole_ms <= max(SLACK_SHARE * SLACK.tpot_ms, step_ms + LEAST_TOKENS * us / 1000) + 1e-9


@given(batches, steps_ms, steps_ms, prices_us)
def test_a_longer_step_never_gets_a_larger_chunk(decoding: int, one_ms: float, other_ms: float, us: float) -> None:
    short, long = sorted((one_ms, other_ms))
    assert chunk_tokens(SLACK, decoding, long, us) <= chunk_tokens(SLACK, decoding, short, us)
