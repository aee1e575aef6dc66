"""One sampled row becomes one piece."""

import pytest

from cluster.request import Generation, Sampling
from deployments.engines.torch_engine.streams import Stream, Vocabulary

VOCABULARY = Vocabulary(bytes_of=[b"", b"a", "é".encode()[:1], "é".encode()[1:], b"END"], end_tokens=frozenset({0}))


def stream(
    max_tokens: int = 10,
    stop: tuple[str, ...] = (),
    top_logprobs: int | None = None,
    given: tuple[int, ...] = (),
    ignore_eos: bool = False,
) -> Stream:
    sampling = Sampling(stop=stop, top_logprobs=top_logprobs, ignore_eos=ignore_eos)
    generation = Generation(request_id="s", prompt=(1, 1), sampling=sampling, given=given)
    return Stream(generation=generation, max_tokens=max_tokens, emit=lambda _: None, submitted_s=1.0, began_s=1.5)


def test_an_end_token_is_counted_and_is_no_text() -> None:
    s = stream(top_logprobs=0)
    s.take([1, -0.5], VOCABULARY)
    last = s.take([0, -0.5], VOCABULARY)
    assert (last.text, last.logprobs, last.finish_reason) == ("", (), "stop")
    assert last.usage is not None
    assert last.usage.completion_tokens == 2


def test_an_end_token_that_is_ignored_is_a_token_without_text() -> None:
    s = stream(max_tokens=4, top_logprobs=0, given=(1, 0), ignore_eos=True)
    assert s.resume(VOCABULARY) is None
    ignored, last = (s.take([token, -0.5], VOCABULARY) for token in (0, 1))
    assert (ignored.text, ignored.tokens, len(ignored.logprobs), ignored.last) == ("", 1, 1, False)
    assert (last.text, last.finish_reason) == ("a", "length")


def test_text_held_for_a_stop_string_comes_out_at_the_end() -> None:
    s = stream(max_tokens=2, stop=("aab",))
    assert s.take([1], VOCABULARY).text == ""
    last = s.take([1], VOCABULARY)
    assert (last.text, last.finish_reason) == ("aa", "length")


def test_a_stop_string_wins_over_the_length() -> None:
    last = stream(max_tokens=1, stop=("a",)).take([1], VOCABULARY)
    assert (last.text, last.finish_reason) == ("", "stop")


def test_a_character_comes_with_its_last_byte() -> None:
    s = stream()
    assert [s.take([token], VOCABULARY).text for token in (2, 3)] == ["", "é"]


def test_ids_beyond_the_tokenizer_are_no_text() -> None:
    assert stream().take([99], VOCABULARY).text == ""


def test_each_stream_takes_as_many_alternatives_as_it_asked_for() -> None:
    row = [1, -0.1, 1, 4, 2, -0.1, -2.0, -3.0]  # token, its logprob, three ids, their logprobs
    (one,) = stream(top_logprobs=2).take(row, VOCABULARY).logprobs
    assert (one.token, one.token_bytes, one.logprob) == ("a", b"a", -0.1)
    assert one.top == (("a", b"a", -0.1), ("END", b"END", -2.0))
    assert stream().take(row, VOCABULARY).logprobs == ()


def test_the_first_piece_alone_says_how_long_it_queued() -> None:
    s = stream()
    assert [s.take([1], VOCABULARY).queued_s for _ in range(2)] == [0.5, None]


def test_a_character_cut_between_replicas_comes_with_its_last_byte() -> None:
    s = stream(given=(1, 2))
    assert s.resume(VOCABULARY) is None
    piece = s.take([3], VOCABULARY)
    assert (piece.text, piece.ids, piece.queued_s) == ("é", (3,), 0.5)


def test_a_stop_string_cut_between_replicas_ends_the_stream() -> None:
    s = stream(stop=("aaEND",), given=(1, 1))
    assert s.resume(VOCABULARY) is None
    last = s.take([4], VOCABULARY)
    assert (last.text, last.finish_reason) == ("", "stop")
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (2, 3)


@pytest.mark.parametrize(
    ("given", "reason"), [((1, 0), "stop"), ((2, 1, 4), "stop"), ((1, 1, 1), "length"), ((1, 1), None)]
)
def test_given_tokens_that_are_the_whole_answer_end_it(given: tuple[int, ...], reason: str | None) -> None:
    last = stream(max_tokens=3, stop=("END",), given=given).resume(VOCABULARY)
    assert (last and last.finish_reason) == reason
    if last:
        assert last.usage is not None
        assert (last.text, last.usage.completion_tokens) == ("", len(given))
