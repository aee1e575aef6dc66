"""Flex is behind every plan, priority ahead of every plan, and only for who may have it."""

from itertools import product

import pytest
from twin_world import family, tier

from cluster.family import Family, Plan
from cluster.request import ServiceClass
from cluster.service_class import patience_of, price_factor, priority_of, served_in

PLANS = {f"p{priority}": Plan(tiers=("pro",), priority=priority) for priority in (0, 1, 2)}
FAMILY = Family.model_validate(family(tier("pro")).model_dump() | {"plans": PLANS})
HOLDERS = (None, *PLANS.values())


def test_flex_goes_after_all_others_and_priority_before() -> None:
    urgent, usual, flexible = (
        {priority_of(served, plan, FAMILY) for plan in HOLDERS} for served in ("priority", "default", "flex")
    )
    assert min(urgent) > max(usual)
    assert min(usual) > max(flexible)


def test_among_the_urgent_plans_keep_their_order() -> None:
    told = [priority_of("priority", plan, FAMILY) for plan in PLANS.values()]
    assert told == sorted(set(told))


def test_who_asks_for_nothing_is_served_as_its_plan_says() -> None:
    assert [priority_of(None, plan, FAMILY) for plan in HOLDERS] == [0, 0, 1, 2]
    assert served_in(None, None) is None


def test_priority_is_for_plans_above_the_lowest_and_for_keys_without_a_plan_but_never_for_batches() -> None:
    assert [served_in("priority", plan) for plan in HOLDERS] == ["priority", "default", "priority", "priority"]
    assert {served_in("priority", plan, last=True) for plan in HOLDERS} == {"default"}
    assert {served_in("flex", plan, last=last) for plan, last in product(HOLDERS, (True, False))} == {"flex"}


@pytest.mark.parametrize(
    ("served", "price", "patience"), [(None, 1, 1), ("default", 1, 1), ("flex", 0.25, 9), ("priority", 3, 1)]
)
def test_the_family_file_says_what_a_class_costs_and_how_long_it_waits(
    served: ServiceClass | None, price: float, patience: float
) -> None:
    classes = {"flex": {"price_factor": 0.25, "patience_factor": 9}, "priority": {"price_factor": 3}}
    told = Family.model_validate(FAMILY.model_dump() | {"service_classes": classes})
    assert (price_factor(served, told), patience_of(served, told)) == (price, patience)
