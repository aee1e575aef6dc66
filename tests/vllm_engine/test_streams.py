"""vLLM's outputs as pieces of a stream. Needs no vLLM."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.request import Generation, Piece, Sampling
from deployments.engines.vllm_engine.streams import Step, Stream

BYTES = [b"", *(bytes([n]) for n in range(256))]  # token n + 1 is byte n; 0 is the end
END = frozenset({0})


@dataclass(frozen=True)
class Told:
    logprob: float
    rank: int | None


def ids(text: str) -> tuple[int, ...]:
    return tuple(byte + 1 for byte in text.encode())


def stream(*stop: str, given: str = "", max_tokens: int = 100, top: int | None = None) -> Stream:
    sampling = Sampling(stop=stop, max_tokens=max_tokens, top_logprobs=top)
    asked = Generation(request_id="a", prompt=(5, 6), sampling=sampling, given=ids(given))
    return Stream(generation=asked, max_tokens=max_tokens, emit=lambda piece: None, bytes_of=BYTES)


@given(st.text(max_size=20), st.lists(st.integers(1, 4), max_size=20))
def test_the_text_does_not_depend_on_how_tokens_come_together(text: str, sizes: list[int]) -> None:
    left, got, made = list(ids(text)), "", stream()
    for size in sizes:
        got += made.take(Step(ids=left[:size])).text
        left = left[size:]
    last = made.take(Step(ids=(*left, 0), ended="stop"))
    assert got + last.text == text
    assert last.usage is not None
    assert last.usage.completion_tokens == len(text.encode()) + 1


@pytest.mark.parametrize(("told", "kept"), [("one STOP two", 8), ("a b STOP", 8)])
def test_an_answer_ends_with_the_token_that_completes_a_stop_string(told: str, kept: int) -> None:
    last = stream("STOP").take(Step(ids=ids(told)))
    assert (last.finish_reason, last.tokens, len(last.ids)) == ("stop", kept, kept)
    assert last.text == told[: told.index("STOP")]


def test_a_stop_string_may_begin_in_the_given_tokens() -> None:
    made = stream("STOP", given="one ST")
    assert made.resume(END) is None
    last = made.take(Step(ids=ids("OP!")))
    assert (last.text, last.finish_reason, last.tokens) == ("", "stop", 2)
    assert last.usage is not None
    assert last.usage.completion_tokens == 8


def test_the_first_piece_says_how_long_it_waited_and_the_last_what_the_cache_spared() -> None:
    made = stream()
    first = made.take(Step(ids=ids("a"), cached_tokens=1, queued_s=0.5))
    last = made.take(Step(ids=ids("b"), ended="length", cached_tokens=0, queued_s=0.5))
    assert (first.queued_s, last.queued_s) == (0.5, None)
    assert last.usage is not None
    assert last.usage.cached_tokens == 1


def test_log_probabilities_are_the_chosen_tokens_and_the_best_few_and_none_for_the_end() -> None:
    chosen, best, end = ids("x")[0], ids("y")[0], 0
    told = [{chosen: Told(-3.0, 7), best: Told(-0.1, 1)}, {end: Told(-0.2, 1)}]
    piece: Piece = stream(top=1).take(Step(ids=(chosen, end), logprobs=told, ended="stop"))
    (one,) = piece.logprobs
    assert (one.token, one.logprob, one.top) == ("x", -3.0, (("y", b"y", -0.1),))
