"""A tier built for throughput alone: whoever names it waits for it, and nobody else is ever sent there."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.engines import Offload
from cluster.errors import ContextTooLong, NotInPlan, RequestError
from cluster.family import Family, Plan, Tier, load
from cluster.tiering import Range, Wish, tiers_for

LAPTOP = load("laptop")
ONLINE = tuple(LAPTOP.tiers)  # ultra, pro, turbo, mini
AUTO = "gpt-5.2"


def offline(**changes: Any) -> dict[str, Any]:
    pro = LAPTOP.tiers["pro"].model_dump()
    own = {"names": ["offline"], "engine": "deepspeed", "ranks": 1, "offload": {"to": "cpu"}}
    return {**pro, **own, **changes}


def family(**changes: Any) -> Family:
    """The laptop's, with a deferrable tier as good as `pro` and as cheap as can be."""
    raw = LAPTOP.model_dump()
    free = {"input_usd_per_mtok": 0, "output_usd_per_mtok": 0}
    return Family.model_validate({**raw, "tiers": {**raw["tiers"], "offline": offline(price=free)}, **changes})


def test_it_serves_who_names_it_and_is_never_spilled_from() -> None:
    for plan in (None, Plan(tiers=("mini", "offline"))):
        assert tiers_for(Wish(model="offline", prompt_tokens=9), plan, family()) == Range(
            ("offline",), "asked by name; deferrable: it answers in batches, at no pace", False
        )


@given(
    st.builds(
        Wish,
        model=st.sampled_from([AUTO, *(name for tier in LAPTOP.tiers.values() for name in tier.names)]),
        prompt_tokens=st.integers(1, 2047),
        hint=st.none() | st.sampled_from(LAPTOP.tiers["ultra"].specialists),
        ceiling_usd_per_mtok=st.none() | st.sampled_from([0.0, 2.0, 150.0]),
        floor=st.none() | st.sampled_from([*ONLINE, "offline"]),
    ),
    st.none() | st.just(Plan(tiers=(*ONLINE, "offline"))),
)
def test_no_rule_ceiling_floor_or_spill_ever_sends_a_request_there(asked: Wish, plan: Plan | None) -> None:
    try:
        served = tiers_for(asked, plan, family()).tiers
    except RequestError:
        return
    assert served
    assert "offline" not in served


def test_a_plan_of_deferrable_tiers_alone_has_no_choice_to_make() -> None:
    with pytest.raises(NotInPlan, match="chooses no deferrable tier, and the plan allows no other; name one"):
        tiers_for(Wish(model=AUTO, prompt_tokens=9), Plan(tiers=("offline",)), family())


def test_its_own_limits_hold() -> None:
    with pytest.raises(NotInPlan):
        tiers_for(Wish(model="offline", prompt_tokens=9), Plan(tiers=("mini",)), family())
    with pytest.raises(ContextTooLong):
        tiers_for(Wish(model="offline", prompt_tokens=2048), None, family())


@pytest.mark.parametrize("rule", ["default", "long", "tools", "hints.math"])
def test_a_family_file_whose_rules_name_it_is_refused(rule: str) -> None:
    auto = LAPTOP.model_dump()["auto"]
    named = {**auto, "hints": {"math": "offline"}} if rule == "hints.math" else {**auto, rule: "offline"}
    with pytest.raises(ValueError, match=rf"auto\.{rule} names 'offline', which is deferrable .* name another tier"):
        family(auto=named)


def test_a_family_file_with_a_plan_whose_floor_it_is_is_refused() -> None:
    with pytest.raises(ValueError, match=r"plans\.cheap\.floor names 'offline', which is deferrable"):
        family(plans={"cheap": {"tiers": ["mini", "offline"], "floor": "offline"}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offload": None}, "engine is deepspeed, offload is left out; deepspeed needs it, others take none"),
        ({"engine": "torch"}, "engine is torch, offload is given; deepspeed needs it, others take none"),
        ({"ranks": 2}, "ranks is 2; 1 is allowed with engine deepspeed; set it to 1"),
        ({"offload": {"to": "nvme"}}, "nvme needs a folder on it, cpu takes none"),
    ],
)
def test_a_tier_that_deepspeed_could_not_serve_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tier.model_validate(offline(**changes))


def test_only_such_a_tier_is_deferrable() -> None:
    assert [key for key, tier in family().tiers.items() if tier.deferrable] == ["offline"]
    assert family().tiers["offline"].offload == Offload()


def test_the_simulated_engine_takes_its_place_and_its_class() -> None:
    assert Tier.model_validate(offline(engine="simulated")).deferrable
