import pytest
from hypothesis import given
from hypothesis import strategies as st
from shell import TIER, chat

from cluster.family import Family
from cluster.tiering import Wish
from deployments.gateway.wishes import Estimates, range_of

CONTEXT = {"mini": 2048, "turbo": 4096}
FAMILY = Family.model_validate(
    {
        "name": "tested",
        "accelerator": "cpu",
        "gpu_budget_gpus": 8,
        "cells": [{"name": "here", "gpus": 8}],
        "tiers": {name: TIER | {"names": [name], "context_tokens": tokens} for name, tokens in CONTEXT.items()},
        "plans": {"all": {"tiers": ["mini", "turbo"]}},
        "auto": {"names": ["any"], "default": "mini", "long": "mini", "long_prompt_tokens": 9000},
    }
)
PLAN = FAMILY.plans["all"]


@given(st.integers(1, 100_000))
def test_a_guess_refuses_no_named_tier(tokens: int) -> None:
    for name in CONTEXT:
        found = range_of(Wish(model=name, prompt_tokens=tokens), PLAN, FAMILY)
        assert found.tiers[0] == name
        assert all(CONTEXT[other] > tokens for other in found.tiers[1:])


@given(st.integers(1, 100_000))
def test_a_plain_name_gets_the_longest_context_where_the_guess_fits_none(tokens: int) -> None:
    found = range_of(Wish(model="any", prompt_tokens=tokens), PLAN, FAMILY)
    assert found.tiers[0] == ("mini" if tokens < CONTEXT["mini"] else "turbo")
    assert tokens < max(CONTEXT.values()) or len(found.tiers) == 1


def test_a_guess_too_long_for_the_tiers_that_may_serve_is_left_to_the_roomiest_of_them() -> None:
    raw = FAMILY.model_dump()
    raw["tiers"]["turbo"] |= {"engine": "deepspeed", "offload": {}}
    for wish in (Wish(model="any", prompt_tokens=3000), Wish(model="any", prompt_tokens=100_000)):
        assert range_of(wish, PLAN, Family.model_validate(raw)).tiers == ("mini",)
    raw["tiers"]["turbo"] |= {"engine": "simulated", "offload": None}
    raw["tiers"]["mini"] |= {"engine": "vllm"}
    asked = Wish(model="any", prompt_tokens=3000, structured=True)
    assert range_of(asked, PLAN, Family.model_validate(raw)).tiers == ("mini",)


@pytest.mark.parametrize("model", ["mini", "turbo", "any"])
def test_without_a_plan_nobody_permitted_a_spill(model: str) -> None:
    assert len(range_of(Wish(model=model, prompt_tokens=1), None, FAMILY).tiers) == 1
    assert len(range_of(Wish(model=model, prompt_tokens=1), PLAN, FAMILY).tiers) == 2


def test_the_guess_begins_at_four_characters_a_token_and_follows_what_engines_count() -> None:
    estimates = Estimates()
    asked = chat()  # hello
    assert estimates.prompt_tokens("mini", asked) == 2
    for _ in range(1000):
        estimates.learn("mini", asked, 10)
    assert abs(estimates.prompt_tokens("mini", asked) - 10) <= 1
    assert estimates.prompt_tokens("turbo", asked) == 2, "another tokenizer"
