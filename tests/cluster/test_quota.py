"""What a chat reserves of its plan's limits, and what it took of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shell import chat, family

from cluster.errors import ContextTooLong
from cluster.family import Family, Plan
from cluster.quota import GUESSED_TOKENS, chat_needs, taken, videos_need, within
from cluster.usage import Usage, chat_gpu_s

FAMILY: Family = family(Path("/nowhere"), context_tokens=8192)


def plan(**limits: Any) -> Plan:
    return Plan.model_validate({"tiers": ["mini"], **limits})


def needs(
    prompt_tokens: int = 100, factor: float = 1.0, max_tokens: int | None = None, **limits: Any
) -> dict[str, float]:
    asked = chat(max_tokens=max_tokens)
    return {
        key: float(n) for key, n in chat_needs(FAMILY, plan(**limits), asked, "mini", (prompt_tokens,), factor).items()
    }


def test_each_limit_is_asked_in_its_own_currency() -> None:
    asked = needs(
        max_tokens=50,
        requests_per_minute=9,
        tokens_per_minute=9000,
        gpu_seconds_per_minute=9,
        concurrent=9,
        budget_usd_per_month=9,
    )
    assert asked == {
        "requests": 1,
        "concurrent": 1,
        "tokens": 150,
        "gpu_s": chat_gpu_s(FAMILY, "mini", 100, 50),
        "usd": pytest.approx(100e-6 + 2 * 50e-6),
    }
    assert needs(max_tokens=50, factor=0.5, budget_usd_per_month=9)["usd"] == pytest.approx(asked["usd"] / 2)


def test_an_answer_without_a_length_is_guessed_within_context_and_limit() -> None:
    assert needs(tokens_per_minute=9000)["tokens"] == 100 + GUESSED_TOKENS
    assert needs(prompt_tokens=8000, tokens_per_minute=9000)["tokens"] == 8192
    assert needs(tokens_per_minute=9000, context_tokens=1000)["tokens"] == 1000
    assert needs(tokens_per_minute=700)["tokens"] == 700
    assert needs(tokens_per_minute=700, max_tokens=800)["tokens"] == 900, "who asks for more is told so"


def test_places_are_no_guess_so_answers_without_a_length_are_not_cut_to_those_that_there_are() -> None:
    several, narrow = replace(chat(max_tokens=None), choices=3), plan(concurrent=2, tokens_per_minute=700)
    assert chat_needs(FAMILY, narrow, several, "mini", (100,), 1.0) == {"concurrent": 3, "tokens": 700}


@given(prompt=st.integers(1, 300), asked=st.none() | st.integers(1, 300))
def test_prompt_and_answer_stay_within_the_plans_context(prompt: int, asked: int | None) -> None:
    given = chat(max_tokens=asked)
    assert within(None, given, prompt) == within(plan(), given, prompt) == given
    try:
        held = within(plan(context_tokens=200), given, prompt).sampling.max_tokens
    except ContextTooLong:
        assert prompt + (asked or 1) > 200
    else:
        assert held == (asked or 200 - prompt)
        assert held is not None
        assert prompt + held <= 200


def test_a_video_asks_for_its_seconds_their_price_and_no_place() -> None:
    video = family(Path("/nowhere"), video=True).video
    assert video is not None
    limits = plan(requests_per_minute=9, concurrent=1, video_seconds_per_day=9, budget_usd_per_month=9)
    assert videos_need(video, limits, [(2, 0.5)]) == ({"requests": 1, "video_s": 2, "usd": 0.2},)


@given(jobs=st.lists(st.tuples(st.integers(1, 10), st.floats(0, 1e4)), max_size=10), most=st.floats(0.01, 1e4))
def test_jobs_of_one_request_ask_no_more_gpu_seconds_than_a_minute_grants(
    jobs: list[tuple[int, float]], most: float
) -> None:
    video = family(Path("/nowhere"), video=True).video
    assert video is not None
    spent = 0.0
    for (_, gpu_s), asked in zip(jobs, videos_need(video, plan(gpu_seconds_per_minute=most), jobs), strict=True):
        assert asked["gpu_s"] <= gpu_s
        spent += asked["gpu_s"]
    assert spent <= most
    assert spent == pytest.approx(min(most, sum(gpu_s for _, gpu_s in jobs)), abs=1e-4)


def test_what_was_taken_is_what_the_ledger_says() -> None:
    words = {"id": "a", "at_s": 0, "kind": "chat", "org": "o", "project": "p", "key_id": "k", "model": "mini"}
    used = Usage(
        **words,  # type: ignore[arg-type]
        tier_asked="mini",
        tier_served="mini",
        code="ok",
        input_tokens=5,
        output_tokens=7,
        gpu_s=0.5,
        price_nusd=2_000_000,
    )
    assert taken(used) == {"requests": 1, "tokens": 12, "gpu_s": 0.5, "video_s": 0, "usd": 0.002}
