"""Text comes out whole however it was cut into tokens, and never begins a stop string that it will not finish."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE

from cluster.errors import CheckpointError
from deployments.engines.text import TextStream, vocabulary_bytes

STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3)


def written(parts: list[bytes], stop: list[str]) -> tuple[str, bool]:
    stream, out = TextStream(stop), ""
    for part in parts:
        text, stopped = stream.push(part)
        out += text
        if stopped:
            return out, True
    text, stopped = stream.flush()
    return out + text, stopped


def cut(data: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *sorted(i % (len(data) + 1) for i in at), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@settings(deadline=None)
@given(st.text(), st.lists(st.integers(0, 1000), max_size=20))
def test_characters_cut_between_tokens_come_out_whole(text: str, at: list[int]) -> None:
    assert written(cut(text.encode(), at), []) == (text, False)


@settings(deadline=None)
@given(st.binary(), st.lists(st.integers(0, 1000), max_size=20))
def test_invalid_bytes_become_replacement_characters(data: bytes, at: list[int]) -> None:
    assert written(cut(data, at), []) == (data.decode("utf-8", "replace"), False)


@settings(deadline=None)
@given(st.text("abcd", max_size=30), STOPS, st.lists(st.integers(0, 1000), max_size=20))
def test_the_cut_into_tokens_never_changes_where_a_stop_string_ends_the_text(
    text: str, stop: list[str], at: list[int]
) -> None:
    ends = [text.find(s) + len(s) for s in stop if s in text]
    first = min(ends, default=None)
    out, stopped = written(cut(text.encode(), at), stop)
    assert stopped == (first is not None)
    if first is None:
        assert out == text
    else:
        longest = max(len(s) for s in stop if text[:first].endswith(s))
        assert out == text[: first - longest]


@settings(deadline=None)
@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_only_what_may_begin_a_stop_string_is_held_back(text: str, stop: list[str]) -> None:
    stream, out = TextStream(stop), ""
    for length, character in enumerate(text, 1):
        new, stopped = stream.push(character.encode())
        out += new
        if stopped:
            break
        held = text[len(out) : length]
        assert out + held == text[:length]
        assert any(s.startswith(held) for s in stop)


def test_an_unfinished_character_at_the_end_is_replaced() -> None:
    assert written(["é".encode()[:1]], []) == ("�", False)


def test_only_byte_level_vocabularies_are_read() -> None:
    tokenizer = Tokenizer(BPE())
    tokenizer.decoder = decoders.Metaspace()
    with pytest.raises(CheckpointError, match=r"t\.json: decoder is Metaspace; ByteLevel is allowed"):
        vocabulary_bytes(tokenizer, "t.json")
