from typing import Literal, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.domains import FIRST_CHARS, domain_of
from cluster.family import Specialist, load
from cluster.request import Message
from deployments.demo.corpus import PERSONAS

HINTS: tuple[Specialist, ...] = get_args(Specialist)
PHRASES: dict[Specialist, tuple[str, ...]] = {
    "math": ("tutor", "Zahlen-Straße"),
    "creative_writing": ("a tutor of poets",),
}


def said(content: str, role: Literal["system", "developer", "user"] = "system") -> Message:
    return Message(role=role, content=content)


@given(st.sampled_from(HINTS), st.text())
def test_a_hint_goes_before_every_persona(hint: Specialist, content: str) -> None:
    assert domain_of(hint, (said(content), said("You are a tutor.")), PHRASES) == hint


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_persona_is_found_whatever_its_case(role: Literal["system", "developer"]) -> None:
    assert domain_of(None, (said("Hi", "user"), said("ZAHLEN-STRASSE 7", role)), PHRASES) == "math"


def test_only_the_first_system_or_developer_message_tells_and_only_its_begin() -> None:
    assert domain_of(None, (said("I need a tutor.", "user"),), PHRASES) == ""
    assert domain_of(None, (said("Be brief."), said("You are a tutor.", "developer")), PHRASES) == ""
    assert domain_of(None, (said(" " * FIRST_CHARS + "You are a tutor."),), PHRASES) == ""


def test_the_longest_phrase_wins() -> None:
    assert domain_of(None, (said("You are a tutor of poets."),), PHRASES) == "creative_writing"
    assert domain_of(None, (said("You are a tutor."),), PHRASES) == "math"


def test_without_personas_or_messages_the_domain_is_unknown() -> None:
    assert domain_of(None, (said("You are a tutor."),), {}) == ""
    assert domain_of(None, (), PHRASES) == ""


@pytest.mark.parametrize(("domain", "persona"), [(domain, words) for domain in PERSONAS for words in PERSONAS[domain]])
def test_the_laptop_family_knows_the_personas_of_its_training_and_leaves_general_ones_unknown(
    domain: str, persona: str
) -> None:
    found = domain_of(None, (said(persona),), load("laptop").personas)
    assert found == (domain if domain in HINTS else "")
