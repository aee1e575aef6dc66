"""Counted repetitions are written out by engines: what a pattern costs is its size then."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InvalidRequest
from deployments.gateway.patterns import expanded
from deployments.gateway.schemas import MOST_PATTERN, bounded


@pytest.mark.parametrize(
    ("pattern", "size"),
    [
        ("", 0),
        ("^abc$", 3),
        ("[a-z]{8}-[0-9a-f]{4}", 13),
        ("^([a-z]{1,20}){1,20}$", 400),
        ("^(([a-z]{1,50}){1,50}){1,20}$", 50_000),
        ("(ab|c){3}", 9),
        ("(a{2,})+b*", 3),
        (r"\\{3,9}\(x\)[]{9}]{2}", 1 + 8 + 3 + 2),
        (r"\p{L}{4}", 4),
        ("a{0}", 1),
        ("a{,7}", 5),  # no count, by the standard: characters
        (")){9}(", 10),
    ],
)
def test_a_count_repeats_what_stands_before_it(pattern: str, size: int) -> None:
    assert expanded(pattern) == size


@given(st.text(alphabet="ab(){},0123456789[]|*\\\\^", max_size=60))
def test_any_text_has_a_size(text: str) -> None:
    assert expanded(text) >= 0


@given(st.integers(1, 40), st.integers(1, 40))
def test_counts_in_counts_multiply(inner: int, outer: int) -> None:
    assert expanded(f"(x{{{inner}}}){{1,{outer}}}") == inner * outer


@pytest.mark.parametrize("where", ["pattern", "patternProperties"])
def test_a_schema_whose_patterns_are_too_large_is_refused(where: str) -> None:
    pattern = f"^(a{{1,100}}){{1,{MOST_PATTERN // 100 + 1}}}$"
    inner = pattern if where == "pattern" else {pattern: {"type": "string"}}
    with pytest.raises(InvalidRequest, match="1100 characters, counted repetitions written out; at most 1000"):
        bounded({"type": "object", "properties": {"a": {where: inner}}}, "response_format")


def test_patterns_count_together() -> None:
    half = {"type": "string", "pattern": f"a{{{MOST_PATTERN // 2}}}"}
    assert bounded({"properties": {"a": half, "b": half}}, "response_format")
    with pytest.raises(InvalidRequest, match="shorten their counts"):
        bounded({"properties": {"a": half, "b": half, "c": half}}, "response_format")
