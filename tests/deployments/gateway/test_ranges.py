"""Ranges of bytes as RFC 9110 has them, of a file of ten bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.gateway.ranges import RangeNotSatisfiable, asked_bytes

TAG = '"a"'


@pytest.mark.parametrize(
    ("wanted", "part"),
    [
        (None, None),
        ("bytes=0-", (0, 10)),
        ("bytes=0-0", (0, 1)),
        ("bytes=3-5", (3, 6)),
        ("bytes=3-99", (3, 10)),
        ("bytes=-4", (6, 10)),
        ("bytes=-99", (0, 10)),
        ("frames=0-1", None),
        ("bytes=5-3", None),
        ("bytes=x-3", None),
        ("bytes=-", None),
    ],
)
def test_one_range_names_its_bytes_and_what_is_no_range_names_all(
    wanted: str | None, part: tuple[int, int] | None
) -> None:
    assert asked_bytes(wanted, None, TAG, 10) == part


@pytest.mark.parametrize("wanted", ["bytes=10-", "bytes=10-12", "bytes=-0", "bytes=0-1,3-4"])
def test_bytes_that_are_not_there_and_several_ranges_are_refused(wanted: str) -> None:
    with pytest.raises(RangeNotSatisfiable, match=r"^range: "):
        asked_bytes(wanted, None, TAG, 10)


def test_a_range_of_an_earlier_file_is_answered_with_all_of_this_one() -> None:
    assert asked_bytes("bytes=3-5", TAG, TAG, 10) == (3, 6)
    assert asked_bytes("bytes=3-5", '"b"', TAG, 10) is None


@given(st.text(alphabet="bytes=0123456789-, ", max_size=24), st.integers(0, 100))
def test_whatever_is_asked_the_bytes_lie_within_the_file(wanted: str, size: int) -> None:
    try:
        part = asked_bytes(wanted, None, TAG, size)
    except RangeNotSatisfiable:
        return
    assert part is None or 0 <= part[0] < part[1] <= size
