"""Placements are whole, level for the loads to come, and change little."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.dispatch import Floats, settle
from cluster.errors import ConfigurationError
from cluster.experts import Drift, Placement, even, moves, place, rebalance_experts


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int]:
    """experts, ranks, slots"""
    ranks, experts = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    return experts, ranks, ranks * draw(st.integers(-(-experts // ranks), experts))


def is_whole(placement: Placement, experts: int) -> bool:
    held = [np.reshape(row, (placement.ranks, -1)).tolist() for row in placement.slots]
    return all(
        {expert for own in layer for expert in own} == set(range(experts))
        and all(len(set(own)) == len(own) == placement.room for own in layer)
        for layer in held
    )


def zipf(layers: int = 3, experts: int = 64, seed: int = 0) -> Floats:
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(1000 / np.arange(1.0, experts + 1)) for _ in range(layers)])


def imbalance(loads: Floats, placement: Placement) -> float:
    slots = np.array(placement.slots)
    copies = np.stack([np.bincount(row, minlength=loads.shape[1]) for row in slots])
    ranks = settle(loads[:, None], slots, copies, placement.ranks)[1]
    return float((ranks.max(2) / ranks.mean(2)).mean())


@given(shapes(), st.integers(1, 3))
def test_the_start_is_whole_and_copies_differ_by_one_at_most(shape: tuple[int, int, int], layers: int) -> None:
    experts, ranks, slots = shape
    start = even(layers=layers, experts=experts, ranks=ranks, redundant=slots - experts)
    assert len(start.slots) == layers
    assert is_whole(start, experts)


def test_the_start_is_in_order() -> None:
    assert even(layers=1, experts=8, ranks=2).slots == ((0, 1, 2, 3, 4, 5, 6, 7),)


def test_the_start_copies_experts_of_another_rank() -> None:
    assert even(layers=1, experts=4, ranks=2, redundant=2).slots == ((0, 1, 2, 2, 3, 0),)


def test_no_layers_have_no_room() -> None:
    assert even(layers=0, experts=4, ranks=2).room == 0


@settings(deadline=None)
@given(shapes(), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_plans_are_whole_whatever_the_loads(shape: tuple[int, int, int], seed: int, idle: float) -> None:
    experts, ranks, slots = shape
    rng = np.random.default_rng(seed)
    loads = rng.pareto(1, (2, experts)) * (rng.random((2, experts)) > idle)
    plan = place(loads, ranks=ranks, slots=slots)
    assert is_whole(plan, experts)
    again = place(rng.permuted(loads, axis=1), ranks=ranks, slots=slots, old=plan)
    assert is_whole(again, experts)


def test_the_same_loads_and_seed_give_the_same_plan() -> None:
    assert place(zipf(), ranks=8, slots=72) == place(zipf(), ranks=8, slots=72)
    assert is_whole(place(zipf(), ranks=8, slots=72, drift=Drift(seed=1)), 64)


def test_a_plan_is_more_level_than_the_start() -> None:
    plan, start = place(zipf(), ranks=8, slots=72), even(layers=3, experts=64, ranks=8, redundant=8)
    assert imbalance(zipf(), plan) < 1.05 < imbalance(zipf(), start)


def test_a_pooled_plan_stays_more_level_under_drift_than_one_made_without() -> None:
    loads, rng = zipf(experts=256, layers=4), np.random.default_rng(5)
    pooled = place(loads, ranks=32, slots=288)
    greedy = place(loads, ranks=32, slots=288, drift=Drift(deviation=0.0))
    drifted = [loads * np.exp(0.3 * rng.standard_normal(loads.shape)) for _ in range(4)]
    then = [[imbalance(batch, plan) - 1 for batch in drifted] for plan in (pooled, greedy)]
    assert np.mean(then[0]) < 0.7 * np.mean(then[1])


def test_nothing_moves_where_the_old_plan_is_as_good() -> None:
    plan = place(zipf(), ranks=8, slots=72)
    assert moves(plan, place(zipf() * 4, ranks=8, slots=72, old=plan)) == 0


def test_new_plans_name_ranks_and_slots_such_that_experts_stay() -> None:
    """The other layers keep what they have; in the one that changed some experts keep their slot."""
    plan = place(zipf(), ranks=8, slots=72)
    loads = zipf()
    loads[1] = loads[1][::-1]
    after = place(loads, ranks=8, slots=72, old=plan)
    assert after.slots[0] == plan.slots[0]
    assert 0 < moves(plan, after) < 72
    kept = np.equal(after.slots[1], plan.slots[1]).sum()
    assert kept == 72 - moves(plan, after)


def test_an_old_placement_of_another_shape_is_left_aside() -> None:
    loads = zipf()
    assert place(loads, ranks=8, slots=72, old=even(layers=3, experts=64, ranks=8)) == place(loads, ranks=8, slots=72)


def test_copies_of_an_expert_lie_on_one_node() -> None:
    plan = place(zipf(), ranks=8, slots=72, nodes=2)
    again = place(zipf(seed=1), ranks=8, slots=72, nodes=2, old=plan)
    for row in plan.slots + again.slots:
        assert not set(row[:36]) & set(row[36:])


def test_vllms_policy_keeps_groups_on_a_node_where_nodes_share_them() -> None:
    slots = rebalance_experts(zipf(), 72, 4, 2, 8)
    for row in slots:
        assert {expert // 16 for expert in row[:36]}.isdisjoint(expert // 16 for expert in row[36:])
    flat = rebalance_experts(zipf(), 72, 3, 2, 8, slots)
    assert flat.shape == (3, 72)


def test_layers_without_load_are_placed_too() -> None:
    assert is_whole(place(np.zeros((2, 8)), ranks=2, slots=10), 8)


@pytest.mark.parametrize(
    ("ranks", "slots", "nodes", "text"),
    [
        (3, 8, 1, "8 over 3 ranks; each rank has equally many"),
        (2, 6, 1, "6 for 8 experts on 2 ranks; 8 to 16"),
        (2, 18, 1, "18 for 8 experts on 2 ranks; 8 to 16"),
        (0, 8, 1, "8 over 0 ranks"),
        (4, 8, 3, "3 for 4 ranks"),
    ],
)
def test_experts_that_do_not_fill_the_slots_are_refused(ranks: int, slots: int, nodes: int, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        place(np.ones((1, 8)), ranks=ranks, slots=slots, nodes=nodes)


@pytest.mark.parametrize("load", [-1.0, float("nan"), float("inf")])
def test_loads_that_are_no_counts_are_refused(load: float) -> None:
    loads = np.ones((2, 4))
    loads[1, 2] = load
    with pytest.raises(ConfigurationError, match=rf"layer 1, expert 2: {load}; 0 or more tokens; count them anew"):
        place(loads, ranks=2, slots=4)


def test_copies_are_dealt_out_where_greed_finds_no_rank_for_the_last() -> None:
    for seed in range(20):
        loads = np.random.default_rng(seed).pareto(0.5, (4, 6))
        assert is_whole(place(loads, ranks=5, slots=25), 6)


def test_loads_that_drifted_move_few_experts_and_the_plan_is_more_level_than_the_old_one() -> None:
    loads = zipf(experts=256, layers=2)
    plan = place(loads, ranks=32, slots=288)
    drifted = loads * np.exp(0.3 * np.random.default_rng(5).standard_normal(loads.shape))
    after = place(drifted, ranks=32, slots=288, old=plan)
    assert moves(plan, after) < 0.5 * 2 * 288
    assert imbalance(drifted, after) <= imbalance(drifted, plan) + 0.01
