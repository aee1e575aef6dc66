import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.loads import OUTPUT_SHARE, PRIOR_OUTPUT_TOKENS, Answers


def learnt(*tokens: int) -> Answers:
    lengths = Answers()
    for each in tokens:
        lengths.learn(each)
    return lengths


def test_before_anything_has_finished_a_guess_stands_in() -> None:
    assert (Answers().mean, Answers().left) == (PRIOR_OUTPUT_TOKENS, PRIOR_OUTPUT_TOKENS / 2)


def test_answers_that_vary_have_more_left_when_they_are_met() -> None:
    assert learnt(100, 100).left == pytest.approx(50)
    assert learnt(10, 190).mean == pytest.approx(100)
    assert learnt(10, 190).left == pytest.approx((100 + 36_100) / 2 / 200)


def test_after_a_hundred_the_newest_counts_as_one_in_a_hundred() -> None:
    lengths = learnt(*[100] * 200)
    lengths.learn(200)
    assert lengths.mean == pytest.approx(100 + OUTPUT_SHARE * 100)


@given(st.lists(st.integers(1, 10_000), min_size=1))
def test_the_mean_is_within_what_was_seen_and_half_of_it_at_least_is_left(tokens: list[int]) -> None:
    lengths = learnt(*tokens)
    assert min(tokens) - 1e-6 <= lengths.mean <= max(tokens) + 1e-6
    assert lengths.left >= lengths.mean / 2 - 1e-6
