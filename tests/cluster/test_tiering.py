from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.engines import Vllm
from cluster.errors import ContextTooLong, InvalidRequest, NotFound, NotInPlan, RequestError
from cluster.family import Family, Plan, Price, load
from cluster.loads import Choice
from cluster.tier import Tier
from cluster.tiering import Range, Wish, keeps, spill, tiers_for

LOADED = load("h200")
ABLE = {"engine": "vllm", "vllm": Vllm(tool_parser="hermes")}  # serves tools and answers held to a schema
H200 = LOADED.model_copy(update={"tiers": {key: tier.model_copy(update=ABLE) for key, tier in LOADED.tiers.items()}})
TIERS = tuple(H200.tiers)  # ultra, pro, turbo, mini
AUTO = "gpt-5.2"


def wish(model: str = AUTO, prompt_tokens: int = 100, **more: Any) -> Wish:
    return Wish(model=model, prompt_tokens=prompt_tokens, **more)


def plan(*tiers: str, **more: Any) -> Plan:
    return Plan(tiers=tiers or TIERS, **more)


def family(**tiers: dict[str, Any]) -> Family:
    changed = {key: tier.model_copy(update=tiers.get(key, {})) for key, tier in H200.tiers.items()}
    return H200.model_copy(update={"tiers": changed})


def served(asked: Wish, plan: Plan | None = None, family: Family = H200) -> str:
    return " ".join(tiers_for(asked, plan, family).tiers)


@pytest.mark.parametrize(
    ("model", "tiers"),
    [
        ("gpt-5.2-ultra", "ultra pro turbo mini"),
        ("gpt-5.2-pro", "pro ultra turbo mini"),  # one away: up before down
        ("gpt-5.2-turbo", "turbo pro mini ultra"),
        ("gpt-5.2-mini", "mini turbo pro ultra"),
    ],
)
def test_a_tier_asked_by_name_comes_first_then_the_nearest_in_quality(model: str, tiers: str) -> None:
    assert served(wish(model)) == tiers
    assert tiers_for(wish(model), None, H200) == Range(tuple(tiers.split()), "asked by name", False)


@pytest.mark.parametrize(
    ("asked", "first", "reason"),
    [
        (wish(), "turbo", "default"),
        (wish(prompt_tokens=32767), "turbo", "default"),
        (wish(prompt_tokens=32768), "pro", "long prompt"),
        (wish(tools=True), "pro", "tools"),
        (wish(hint="math"), "turbo", "hint math"),
        (wish(effort="medium"), "turbo", "default"),
        (wish(effort="high"), "pro", "effort high"),
        (wish(effort="max"), "pro", "effort max"),
        (wish(effort="medium", tools=True), "pro", "tools"),
        (wish(effort="high", hint="creative_writing"), "ultra", "hint creative_writing"),
        (wish(effort="xhigh", ceiling_usd_per_mtok=60), "turbo", "effort xhigh: pro; turbo is the nearest"),
        (wish(hint="creative_writing", tools=True), "ultra", "hint creative_writing"),
        (wish(hint="creative_writing", prompt_tokens=200_000), "pro", "hint creative_writing: ultra; pro is"),
        (wish(tools=True, ceiling_usd_per_mtok=60), "turbo", "tools: pro; turbo is the nearest one allowed"),
        (wish(ceiling_usd_per_mtok=2), "mini", "default: turbo; mini is"),
        (wish(floor="pro"), "pro", "default: turbo; pro is"),
    ],
)
def test_a_plain_name_is_chosen_for_by_rules(asked: Wish, first: str, reason: str) -> None:
    found = tiers_for(asked, None, H200)
    assert found.auto
    assert found.tiers[0] == first
    assert found.reason.startswith(reason)


def test_a_tier_asked_by_name_reasons_no_more_than_it_does() -> None:
    with pytest.raises(InvalidRequest, match=r"'high'; tier mini does not reason .* name gpt-5\.2, which") as caught:
        tiers_for(wish("gpt-5.2-mini", effort="high"), None, H200)
    assert (caught.value.param, caught.value.code) == ("reasoning_effort", "unsupported_parameter")


def test_an_effort_below_all_that_the_rules_know_is_refused_rather_than_passed_over() -> None:
    assert H200.auto is not None
    auto = H200.auto.model_copy(update={"efforts": {"high": "pro"}})
    told = H200.model_copy(update={"auto": auto})
    assert served(wish(effort="max"), None, told).split()[0] == "pro"
    for model in (AUTO, "gpt-5.2-pro"):
        with pytest.raises(InvalidRequest, match=r"'medium'; .*; leave it out"):
            tiers_for(wish(model, effort="medium"), None, told)


ONLY_PRO_IS_ABLE = family(**{key: {"engine": "simulated"} for key in ("ultra", "turbo", "mini")})


@pytest.mark.parametrize(("need", "param"), [("tools", "tools"), ("structured", "response_format")])
def test_what_an_engine_must_be_able_to_do_is_asked_of_no_other(need: str, param: str) -> None:
    asked: dict[str, Any] = {need: True}
    assert served(wish(**asked), None, ONLY_PRO_IS_ABLE) == "pro"
    assert served(wish("gpt-5.2-pro", **asked), None, ONLY_PRO_IS_ABLE) == "pro"
    with pytest.raises(InvalidRequest, match=f"{param}: given; .* are pro, not mini; name one of pro") as caught:
        served(wish("gpt-5.2-mini", **asked), None, ONLY_PRO_IS_ABLE)
    assert caught.value.param == param
    with pytest.raises(InvalidRequest, match="are pro, not turbo, mini"):
        served(wish(**asked), plan("turbo", "mini"), ONLY_PRO_IS_ABLE)


def test_tools_and_a_schema_are_asked_of_a_tier_that_serves_both() -> None:
    both: dict[str, Any] = {"tools": True, "structured": True}
    assert served(wish("gpt-5.2-pro", **both)).startswith("pro")
    torch = family(mini={"engine": "torch", "vllm": None})
    assert served(wish("gpt-5.2-mini", **both), None, torch).startswith("mini")
    plain = family(mini={"vllm": Vllm()})
    with pytest.raises(InvalidRequest, match=r"tools: given; .* are ultra, pro, turbo, not mini"):
        served(wish("gpt-5.2-mini", **both), None, plain)


def test_a_tier_without_a_parser_of_calls_holds_answers_to_a_schema_but_serves_no_tools() -> None:
    plain = family(mini={"vllm": Vllm()})
    assert served(wish("gpt-5.2-mini", structured=True), None, plain).startswith("mini")
    with pytest.raises(InvalidRequest, match="tools: given"):
        served(wish("gpt-5.2-mini", tools=True), None, plain)


SEEING = family(pro={"inputs": ("image",)}, ultra={"inputs": ("image", "audio")})
IMAGE: Any = {"image": "messages[0].content[1].image_url.url"}


def test_an_input_is_asked_of_tiers_that_take_it_and_spilled_to_no_other() -> None:
    assert served(wish(inputs=IMAGE), plan(spill="both"), SEEING) == "pro ultra"
    assert served(wish("gpt-5.2-ultra", inputs=IMAGE), plan(spill="both"), SEEING) == "ultra pro"
    assert served(wish(inputs=IMAGE | {"audio": "a"}), None, SEEING) == "ultra"


@pytest.mark.parametrize(
    ("model", "inputs", "told"),
    [
        ("gpt-5.2-mini", IMAGE, "that take image are ultra, pro, not mini; name one of ultra, pro, or leave it out"),
        ("gpt-5.2-pro", IMAGE | {"audio": "a"}, "a: given; tiers that take audio are ultra, not pro"),
        (AUTO, {"video": "v"}, "v: given; tiers that take video are none, not "),
    ],
)
def test_an_input_that_a_tier_does_not_take_is_refused_by_its_part(model: str, inputs: Any, told: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        served(wish(model, inputs=inputs), None, SEEING)
    assert told in caught.value.message
    assert (caught.value.param, caught.value.code) == (caught.value.message.split(":")[0], "unsupported_parameter")


def test_inputs_that_no_tier_takes_together_are_refused_together() -> None:
    apart = family(pro={"inputs": ("image",)}, ultra={"inputs": ("audio",)})
    with pytest.raises(InvalidRequest, match="tiers that take image and audio are none"):
        served(wish(inputs=IMAGE | {"audio": "a"}), None, apart)


def test_only_engines_that_give_inputs_to_their_models_may_say_so() -> None:
    with pytest.raises(ValueError, match="inputs is image, engine is torch; vllm and simulated take inputs"):
        Tier.model_validate(H200.tiers["mini"].model_dump() | {"engine": "torch", "vllm": None, "inputs": ["image"]})


def test_without_a_rule_for_tools_or_hints_the_default_stays() -> None:
    assert H200.auto is not None
    auto = H200.auto.model_copy(update={"tools": None, "hints": {}})
    assert served(wish(tools=True, hint="math"), None, H200.model_copy(update={"auto": auto})).startswith("turbo")


def test_of_two_equally_near_the_choice_is_the_upper_and_of_equals_the_wanted_then_the_cheaper() -> None:
    assert served(wish(), plan("pro", "mini")).startswith("pro")
    assert served(wish(), None, family(mini={"quality": 2})).startswith("turbo mini")
    assert served(wish(hint="creative_writing"), plan("turbo", "pro"), family(turbo={"quality": 3})) == "turbo pro"


@pytest.mark.parametrize(
    ("limits", "tiers"),
    [
        (plan(), "turbo pro mini ultra"),
        (plan("turbo", "mini"), "turbo mini"),
        (plan(spill="none"), "turbo"),
        (plan(spill="up"), "turbo pro ultra"),
        (plan(spill="down"), "turbo mini"),
        (plan(floor="mini"), "turbo pro mini ultra"),
        (plan(floor="turbo"), "turbo pro ultra"),
        (plan(floor="pro"), "turbo pro ultra"),  # a floor bars going down, not the tier itself
    ],
)
def test_spilling_stays_within_the_plan_its_permission_and_its_floor(limits: Plan, tiers: str) -> None:
    assert served(wish("gpt-5.2-turbo"), limits) == tiers


@pytest.mark.parametrize(("spill", "tiers"), [("up", "turbo mini pro ultra"), ("down", "turbo")])
def test_a_tier_of_equal_quality_counts_as_up(spill: str, tiers: str) -> None:
    assert served(wish("gpt-5.2-turbo"), plan(spill=spill), family(mini={"quality": 2})) == tiers


def test_a_plain_name_is_never_spilled_above_its_ceiling_even_to_a_lesser_tier() -> None:
    dear = Price(input_usd_per_mtok=1, output_usd_per_mtok=99)
    assert served(wish(ceiling_usd_per_mtok=30), None, family(mini={"price": dear})) == "turbo"


@pytest.mark.parametrize(
    ("asked", "tiers"),
    [
        (wish("gpt-5.2-turbo", floor="turbo"), "turbo pro ultra"),
        (wish("gpt-5.2-turbo", ceiling_usd_per_mtok=150), "turbo pro mini"),  # ultra costs 600
        (wish("gpt-5.2-turbo", ceiling_usd_per_mtok=1), "turbo mini"),  # who asks by name accepts its price
        (wish("gpt-5.2-turbo", prompt_tokens=131_072), "turbo pro ultra"),  # mini holds 131,071 and one of answer
        (wish(ceiling_usd_per_mtok=30), "turbo mini"),
    ],
)
def test_spilling_stays_within_the_requests_own_limits(asked: Wish, tiers: str) -> None:
    assert served(asked) == tiers


def refusal(asked: Wish, limits: Plan | None = None, family: Family = H200) -> RequestError:
    with pytest.raises(RequestError) as caught:
        tiers_for(asked, limits, family)
    return caught.value


@pytest.mark.parametrize(
    ("asked", "limits", "kind", "message"),
    [
        (
            wish("gpt-9"),
            None,
            NotFound,
            "model: 'gpt-9' is not served; served: gpt-5.2-ultra, gpt-5.2-pro, gpt-5.2-turbo, gpt-5.2-mini, gpt-5.2; "
            "choose one of them",
        ),
        (
            wish("gpt-5.2-ultra"),
            plan("turbo", "mini"),
            NotInPlan,
            "model: 'gpt-5.2-ultra' is tier ultra; the plan allows turbo, mini; choose one of them, or another plan",
        ),
        (wish(floor="nano"), None, InvalidRequest, "floor: 'nano' is no tier; tiers are ultra, pro, turbo, mini;"),
        (
            wish("gpt-5.2-mini", floor="pro"),
            None,
            InvalidRequest,
            "floor: pro is above tier mini, which 'gpt-5.2-mini'",
        ),
        (
            wish(floor="pro"),
            plan("turbo", "mini"),
            NotInPlan,
            "floor: pro; the plan allows turbo, mini; lower the floor",
        ),
        (
            wish("gpt-5.2-mini", 131_072),
            None,
            ContextTooLong,
            "messages: 131072 prompt tokens; mini can hold at most 131071 and one token of answer; shorten the prompt",
        ),
        (
            wish(prompt_tokens=262_144),
            None,
            ContextTooLong,
            "messages: 262144 prompt tokens; ultra, pro, turbo, mini can",
        ),
        (wish(ceiling_usd_per_mtok=1.5), None, InvalidRequest, "ceiling_usd_per_mtok: 1.5; the cheapest tier for this"),
    ],
)
def test_what_no_tier_may_serve_is_refused_with_the_mend(
    asked: Wish, limits: Plan | None, kind: type[RequestError], message: str
) -> None:
    error = refusal(asked, limits)
    assert type(error) is kind
    assert error.message.startswith(message)
    assert error.param in ("model", "floor", "messages", "ceiling_usd_per_mtok")


def test_a_family_without_automatic_choice_serves_the_names_of_its_tiers_alone() -> None:
    alone = H200.model_copy(update={"auto": None})
    assert "gpt-5.2-mini; choose" in refusal(wish(), None, alone).message


PRO = tiers_for(wish("gpt-5.2-pro"), None, H200)


@pytest.mark.parametrize(
    ("feasible", "to"),
    [
        ([True, True, True, True], None),
        ([False, True, True, True], (1, "pro saturated: no replica keeps its promises; served by ultra")),
        ([False, False, True, True], (2, "pro saturated: no replica keeps its promises; served by turbo")),
        ([False, False, False, False], None),
    ],
)
def test_a_request_is_spilled_to_the_first_tier_that_keeps_its_promises(
    feasible: list[bool], to: tuple[int, str] | None
) -> None:
    assert spill(PRO, feasible) == to


plans = st.none() | st.lists(st.sampled_from(TIERS), min_size=1, unique=True).flatmap(
    lambda tiers: st.builds(
        Plan,
        tiers=st.just(tuple(tiers)),
        spill=st.sampled_from(["none", "up", "down", "both"]),
        floor=st.none() | st.sampled_from(tiers),
    )
)
lengths = st.integers(1, 300_000)
wishes = st.builds(
    Wish,
    model=st.sampled_from([AUTO, *(tier.names[0] for tier in H200.tiers.values())]),
    prompt_tokens=lengths,
    tools=st.booleans(),
    hint=st.none() | st.sampled_from(["math", "code_security", "scientific_reasoning", "creative_writing"]),
    ceiling_usd_per_mtok=st.none() | st.floats(0, 700),
    floor=st.none() | st.sampled_from(TIERS),
)
families = st.builds(
    family,
    **{
        key: st.fixed_dictionaries({"quality": st.integers(1, 4), "context_tokens": st.integers(2, 300_000)})
        for key in TIERS
    },
)


def found(asked: Wish, limits: Plan | None, family: Family) -> tuple[str, ...]:
    """Nothing where the request is refused."""
    try:
        return tiers_for(asked, limits, family).tiers
    except RequestError:
        return ()


@given(wishes, plans, families)
def test_a_plan_never_gets_a_tier_it_has_no_right_to(asked: Wish, limits: Plan | None, family: Family) -> None:
    tiers = found(asked, limits, family)
    assert len(set(tiers)) == len(tiers)
    assert limits is None or set(tiers) <= set(limits.tiers)
    if limits is not None and limits.spill == "none":
        assert len(tiers) <= 1


@given(wishes, plans, families)
def test_no_tier_is_below_a_floor_too_small_for_the_prompt_or_above_the_ceiling(
    asked: Wish, limits: Plan | None, family: Family
) -> None:
    tiers = [family.tiers[key] for key in found(asked, limits, family)]
    floor = family.tiers[asked.floor].quality if asked.floor else 0
    plan_floor = family.tiers[limits.floor].quality if limits and limits.floor else 0
    for tier in tiers:
        assert tier.quality >= max(floor, min(plan_floor, tiers[0].quality))
        assert tier.context_tokens >= asked.prompt_tokens + 1
        if asked.ceiling_usd_per_mtok is not None and (asked.model == AUTO or tier.quality > tiers[0].quality):
            assert tier.price.output_usd_per_mtok <= asked.ceiling_usd_per_mtok


@given(wishes, plans, families)
def test_a_tier_asked_by_name_is_the_first_or_the_request_is_refused(
    asked: Wish, limits: Plan | None, family: Family
) -> None:
    tiers = found(asked, limits, family)
    assert not tiers or asked.model == AUTO or tiers[0] == family.tier_of(asked.model)


@given(wishes, lengths, plans, families)
def test_a_longer_prompt_never_gets_a_lower_quality_unless_the_better_tier_cannot_hold_it(
    asked: Wish, more_tokens: int, limits: Plan | None, family: Family
) -> None:
    auto = replace(asked, model=AUTO)
    shorter = found(auto, limits, family)
    longer = found(replace(auto, prompt_tokens=auto.prompt_tokens + more_tokens), limits, family)
    if shorter and longer:
        better = family.tiers[shorter[0]]
        held = better.context_tokens > auto.prompt_tokens + more_tokens
        assert not held or family.tiers[longer[0]].quality >= better.quality


@pytest.mark.parametrize(
    ("best", "kept"),
    [
        (Choice(0, 1.0, 40.0, True, "predicted"), True),  # 40 of 50 ms: 0.8 of the pace
        (Choice(0, 1.0, 40.1, True, "predicted"), False),
        (Choice(0, 1.1, 40.0, True, "predicted"), False),
        (Choice(0, 1.0, 40.0, False, "predicted"), False),
    ],
)
def test_another_tier_keeps_what_the_tier_asked_promised(best: Choice, kept: bool) -> None:
    assert keeps(best, 1.0, 50.0) == kept
