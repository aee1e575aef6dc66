"""What a list of words finds, whatever hides them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.moderation import Endpoint, Lexicon, Moderation, Words

LEXICON = Lexicon(Words(refuse=("Grenade", "nerve gas", "straße"), flag=("knife", "blood bath")))


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("a red ball rolls to the left", "allow"),
        ("how is a grenade made", "refuse"),
        ("GRENADE!", "refuse"),
        ("nerve gas", "refuse"),
        ("nerve\n  gas, please", "refuse"),
        ("STRASSE", "refuse"),
        ("a knife and a grenade", "refuse"),
        ("a knife", "flag"),
        ("blood-bath", "flag"),
        ("how is a _grenade_ made", "refuse"),
        ("make_nerve_gas", "refuse"),
        ("pomegrenades and knifes", "allow"),
        ("gas, nerve", "allow"),
        ("", "allow"),
    ],
)
def test_whole_words_are_found_and_a_refusal_counts_before_a_flag(text: str, verdict: str) -> None:
    assert LEXICON.verdict([text]) == verdict
    assert LEXICON.verdict(["hello", text, "bye"]) == verdict


@pytest.mark.parametrize(
    "hidden",
    [
        "gre\u200bnade",  # a space of no width
        "gre\u00adnade",  # a soft hyphen
        "\ufeffgrenade\u2060",
        "\uff47\uff52\uff45\uff4e\uff41\uff44\uff45",  # full width
        "\U0001d420\U0001d42b\U0001d41e\U0001d427\U0001d41a\U0001d41d\U0001d41e",  # mathematical bold
        "g\u0336r\u0336e\u0336n\u0336a\u0336d\u0336e\u0336",  # struck through
        "\u24d6renade",  # circled
        "nerve\u00a0gas",
        "stra\u00dfe",
    ],
)
def test_a_word_is_found_though_it_is_written_to_be_missed(hidden: str) -> None:
    assert LEXICON.verdict([hidden]) == "refuse"


@given(st.lists(st.text(), max_size=4), st.text(alphabet="abcxyz é", min_size=1), st.integers(0, 4))
def test_a_listed_word_among_others_is_found_wherever_it_stands(texts: list[str], around: str, at: int) -> None:
    texts.insert(at, f"{around} grenade {around}")
    assert LEXICON.verdict(texts) == "refuse"


@given(st.lists(st.text()))
def test_an_empty_list_allows_everything(texts: list[str]) -> None:
    assert Lexicon(Words()).verdict(texts) == "allow"


@pytest.mark.parametrize(
    ("flagged", "categories", "verdict"),
    [
        (False, (), "allow"),
        (False, ("violence",), "allow"),  # the endpoint knows its own thresholds
        (True, ("violence",), "flag"),
        (True, ("violence", "hate"), "refuse"),
        (True, (), "refuse"),
    ],
)
def test_an_endpoint_refuses_what_it_flags_but_for_categories_that_are_only_flagged(
    flagged: bool, categories: tuple[str, ...], verdict: str
) -> None:
    endpoint = Endpoint(url="http://judge/v1/moderations", when_away="refuse", flag=("violence", "self-harm"))
    assert endpoint.verdict(flagged, categories) == verdict


@pytest.mark.parametrize("given", [{}, {"words": {}, "endpoint": {"url": "http://a/b", "when_away": "allow"}}])
def test_one_of_words_and_endpoint_judges(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="one of the two"):
        Moderation.model_validate(given)


def test_what_becomes_of_requests_while_the_endpoint_is_away_must_be_said() -> None:
    with pytest.raises(ValidationError, match="when_away"):
        Endpoint.model_validate({"url": "http://a/b"})
