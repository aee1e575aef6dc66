"""Inputs beside text, from the official client, to the family that ships: its tiers take text alone."""

from typing import Any

import pytest
from inputs import file_part, image_part, pdf, text_part
from integration.server import Server
from openai import BadRequestError

pytestmark = pytest.mark.slow


def test_a_pdf_is_answered_by_a_tier_of_text_and_costs_its_text(laptop: Server) -> None:
    def asked(*parts: Any) -> Any:
        said: Any = [{"role": "user", "content": list(parts)}]
        return laptop.client().chat.completions.create(model="gpt-5.2-mini", messages=said, max_tokens=8)

    bare = asked(text_part("What is this?"))
    read = asked(text_part("What is this?"), file_part(pdf("A prime number has two divisors", "Two is prime")))
    assert read.choices[0].message.content
    assert read.usage.prompt_tokens > bare.usage.prompt_tokens + 20


def test_an_image_is_refused_with_the_tiers_that_take_it(laptop: Server) -> None:
    said: Any = [{"role": "user", "content": [image_part()]}]
    with pytest.raises(BadRequestError, match="tiers that take image are none, not mini") as caught:
        laptop.client().chat.completions.create(model="gpt-5.2-mini", messages=said)
    assert caught.value.code == "unsupported_parameter"
