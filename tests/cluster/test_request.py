import pytest

from cluster.request import Chat, Generation, Message, Piece, Sampling, TokenLogprob, Usage


@pytest.mark.parametrize(
    ("piece", "last"),
    [
        (Piece(), False),
        (Piece(tokens=3, text="abc", logprobs=(TokenLogprob(token="a", token_bytes=b"a", logprob=-0.1),)), False),
        (Piece(finish_reason="stop", usage=Usage(prompt_tokens=3, completion_tokens=1)), True),
        (Piece(error=RuntimeError("the engine is gone")), True),
    ],
)
def test_a_stream_ends_with_a_finish_reason_or_an_error(piece: Piece, last: bool) -> None:
    assert piece.last is last


def test_a_request_is_a_value() -> None:
    said = (Message(role="user", content="hello"),)
    one, other = (Chat(request_id="r", model="m", messages=said, sampling=Sampling(seed=7)) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert Generation(request_id="r", prompt=(1, 2), sampling=Sampling()).sampling.max_tokens is None
