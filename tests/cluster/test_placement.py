import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray._private.label_utils import validate_label_key, validate_label_selector_value, validate_label_value

from cluster.engines import Vllm
from cluster.errors import PlacementError
from cluster.family import Family, load
from cluster.fleet import CellState, Node
from cluster.placement import (
    CELL_LABEL,
    Group,
    Plan,
    VideoReplica,
    as_dict,
    bundles,
    declared_cells,
    observed_cells,
    plan,
    reach,
    require,
    selector,
    strategy,
)

LAPTOP = load("laptop")


def family(
    tiers: dict[str, tuple[int, int, int]],
    budget: int = 100,
    video: tuple[int, int, int] = (1, 0, 0),
    beside: str = "",
    least: int = 0,
) -> Family:
    """tiers: name -> (ranks, initial, max). video: (gpus, initial, max), none where max is 0. least: min of tiers."""
    model = LAPTOP.tiers["mini"]
    spec = {
        name: model.model_copy(
            update={
                "names": (name,),
                "ranks": ranks,
                "replicas": model.replicas.model_copy(
                    update={"min": min(least, initial), "initial": initial, "max": most}
                ),
            }
        )
        for name, (ranks, initial, most) in tiers.items()
    }
    gpus, initial, most = video
    assert LAPTOP.video is not None
    clips = LAPTOP.video.model_copy(
        update={
            "gpus": gpus,
            "beside": beside or None,
            "replicas": model.replicas.model_copy(update={"min": 0, "initial": initial, "max": most}),
        }
    )
    return LAPTOP.model_copy(
        update={"gpu_budget_gpus": budget, "tiers": spec, "video": clips if most else None, "name": "trial"}
    )


def cells(*gpus: int) -> tuple[CellState, ...]:
    return tuple(CellState(name=f"c{index}", gpus=each, free_gpus=each) for index, each in enumerate(gpus))


def held(made: Plan) -> dict[str, list[str]]:
    return {
        cell.name: [f"{g.tier}{g.replica}" for g in cell.groups] + [f"video{v.replica}" for v in cell.video]
        for cell in made.cells
    }


def test_the_laptop_starts_small_and_has_room_for_all_that_may_grow() -> None:
    made = require(plan(LAPTOP, declared_cells(LAPTOP)))
    assert (made.initial_gpus, made.used_gpus, made.shares, made.unplaced) == (2, 9, (), ())


def test_video_takes_turns_with_the_tiers_where_one_gpu_is_missing() -> None:
    cell = LAPTOP.cells[0].model_copy(update={"gpus": 8})
    eight = LAPTOP.model_copy(update={"gpu_budget_gpus": 8, "cells": (cell,)})
    made = require(plan(eight, declared_cells(eight)))
    assert (made.initial_gpus, made.used_gpus, made.unplaced) == (2, 8, ())
    assert [group.tier for group in made.cells[0].groups if group.initial] == ["turbo", "mini"]
    # 2 + 2 + 2*1 + 2*1 ranks fill the budget of 8
    assert Counter(group.tier for group in made.cells[0].groups) == {"ultra": 1, "pro": 1, "turbo": 2, "mini": 2}
    (share,) = made.shares
    assert (share.owner, share.replica, share.cells, share.turns) == (
        "video",
        0,
        ("laptop",),
        ("mini", "pro", "turbo", "ultra"),
    )
    assert share.reason == (
        "needs 1 GPUs; 0 of the budget and at most 0 in one cell are left beside all of mini, pro, turbo, ultra, "
        "so they take turns"
    )


def test_the_h200_family_starts_with_every_tier_and_video_beside_turbo() -> None:
    h200 = load("h200")
    made = require(plan(h200, declared_cells(h200)))
    assert made.initial_gpus == 8 + 4 + 1 + 1 + 1
    assert [(group.tier, group.ranks) for group in made.cells[0].groups if group.initial] == [("ultra", 8)]
    assert [group.tier for group in made.cells[1].groups if group.initial] == ["pro", "turbo", "mini"]
    assert made.cells[1].video == (VideoReplica(replica=0, gpus=1, initial=True),)
    assert made.used_gpus == 16
    # the second pro group needs 4 GPUs in one cell: only where ultra sleeps
    assert made.unplaced == ()
    assert ("pro", 1, ("h200-0",)) in [(share.owner, share.replica, share.cells) for share in made.shares]


def test_large_groups_go_first_and_into_the_fullest_cell_that_fits() -> None:
    made = plan(family({"small": (1, 1, 1), "large": (4, 1, 1), "mid": (2, 1, 1)}), cells(8, 4, 3))
    # large -> c1 (4 free), mid -> c2 (3 free), small -> c2 (1 free)
    assert held(made) == {"c0": [], "c1": ["large0"], "c2": ["mid0", "small0"]}


def test_a_group_is_never_split_while_some_cell_could_hold_it() -> None:
    made = plan(family({"a": (3, 2, 2)}), cells(4, 4, 2))
    assert held(made) == {"c0": ["a0"], "c1": ["a1"], "c2": []}
    crowded = plan(family({"a": (3, 3, 3)}), cells(4, 4, 2))
    assert [one.what for one in crowded.unplaced] == ["a[2]"]


def test_a_group_larger_than_every_cell_is_spread_over_the_emptiest() -> None:
    made = plan(family({"huge": (10, 1, 1)}), cells(2, 8, 4))
    assert made.cells[1].groups == (Group(tier="huge", replica=0, ranks=8, initial=True, spread=True),)
    assert made.cells[2].groups == (Group(tier="huge", replica=0, ranks=2, initial=True, spread=True),)
    assert made.used_gpus == 10
    assert not made.unplaced


def test_gpus_that_others_hold_are_not_planned_with() -> None:
    made = plan(family({"a": (2, 1, 1)}), [CellState(name="c0", gpus=8, free_gpus=1)])
    assert made.unplaced[0].reason == "needs 2 GPUs; the emptiest cell has 1 free"


def test_video_goes_beside_the_tier_it_is_told_to() -> None:
    tiers = {"pro": (4, 1, 1), "turbo": (2, 1, 1)}
    beside_pro = plan(family(tiers, video=(1, 1, 1), beside="pro"), cells(8, 3))
    beside_turbo = plan(family(tiers, video=(1, 1, 1), beside="turbo"), cells(8, 3))
    assert held(beside_pro) == {"c0": ["pro0", "video0"], "c1": ["turbo0"]}
    assert held(beside_turbo) == {"c0": ["pro0"], "c1": ["turbo0", "video0"]}


def test_video_prefers_any_expert_group_to_an_empty_cell_and_takes_that_if_it_must() -> None:
    roomy = plan(family({"a": (2, 1, 1)}, video=(1, 1, 1)), cells(8, 1))
    assert held(roomy) == {"c0": ["a0", "video0"], "c1": []}
    full = plan(family({"a": (2, 1, 1)}, video=(1, 1, 1)), cells(2, 1))
    assert held(full) == {"c0": ["a0"], "c1": ["video0"]}


def test_copies_of_a_model_that_no_cell_holds_are_refused_and_never_spread() -> None:
    trial = family({"a": (8, 1, 1)})
    settings = Vllm(tensor_parallel=4, data_parallel=2)
    copies = {"a": trial.tiers["a"].model_copy(update={"engine": "vllm", "vllm": settings})}
    made = plan(trial.model_copy(update={"tiers": copies}), cells(4, 4))
    assert held(made) == {"c0": [], "c1": []}
    with pytest.raises(PlacementError, match="needs 8 GPUs; the emptiest cell has 4 free; add a cell with 8"):
        require(made)
    assert held(plan(trial.model_copy(update={"tiers": copies}), cells(4, 8))) == {"c0": [], "c1": ["a0"]}


def test_what_never_fits_says_what_would_make_it_fit() -> None:
    made = plan(family({"a": (2, 1, 1), "b": (4, 0, 1)}, budget=5, least=1), cells(3))
    (never,) = made.unplaced
    assert never.what == "b[0]"
    # b is larger than the only cell, so it may be spread; 1 GPU and 3 of the budget are left beside a
    assert (
        never.reason
        == "needs 4 GPUs; 3 of the budget of 5 are left and no cell has as many, and all together have 1 free"
    )
    assert never.mend == "raise gpu_budget_gpus to 6 and add cells with 3 more GPUs, or ask for fewer ranks or replicas"


def test_a_tier_that_could_never_run_is_refused_but_growth_that_never_fits_is_not() -> None:
    asleep_for_ever = plan(family({"a": (2, 1, 1), "b": (4, 0, 1)}, least=1), cells(4))
    with pytest.raises(PlacementError, match=r"trial: b\[0\]: needs 4 GPUs"):
        require(asleep_for_ever)
    optimistic = plan(family({"a": (2, 1, 3)}, least=1), cells(4))
    assert [(one.what, one.required) for one in optimistic.unplaced] == [("a[2]", False)]
    assert require(optimistic) is optimistic


def test_what_fits_while_others_sleep_takes_turns_with_them() -> None:
    tiers = {"a": (2, 1, 1), "b": (3, 0, 1)}
    asleep = plan(family(tiers, least=0), cells(4))
    assert [(share.owner, share.turns, share.cells) for share in asleep.shares] == [("b", ("a",), ("c0",))]
    awake = plan(family(tiers, least=1), cells(4))
    assert [one.what for one in awake.unplaced] == ["b[0]"]


def test_an_initial_placement_that_does_not_fit_is_an_error_with_every_fault() -> None:
    made = plan(family({"a": (4, 1, 1), "b": (2, 1, 1)}, budget=5, video=(3, 1, 1)), cells(4))
    with pytest.raises(PlacementError) as caught:
        require(made)
    assert caught.value.code == "does_not_fit"
    assert caught.value.message.splitlines() == [
        "trial: b[0]: needs 2 GPUs; 1 of the budget of 5 are left and the emptiest cell has 0 free; "
        "raise gpu_budget_gpus to 6 and add a cell with 2 free GPUs, or ask for fewer ranks or replicas",
        "trial: video[0]: needs 3 GPUs; 1 of the budget of 5 are left and the emptiest cell has 0 free; "
        "raise gpu_budget_gpus to 7 and add a cell with 3 free GPUs, or ask for fewer ranks or replicas",
    ]


def test_no_cell_at_all_is_said_too() -> None:
    assert plan(family({"a": (1, 1, 1)}), ()).unplaced[0].reason.startswith("needs 1 GPUs; no cell has as many")
    only_video = family({"a": (1, 0, 1)}, video=(1, 1, 1))
    assert "the emptiest cell has 0 free" in plan(only_video, ()).unplaced[0].reason


def test_the_plan_is_plain_values() -> None:
    made = plan(LAPTOP, declared_cells(LAPTOP))
    plain = json.loads(json.dumps(as_dict(made)))
    assert {"family", "gpu_budget_gpus", "used_gpus", "cells", "unplaced"} <= set(plain)
    assert plain["cells"][0]["groups"][0] == {
        "tier": "turbo",
        "replica": 0,
        "ranks": 1,
        "initial": True,
        "spread": False,
    }


trials = st.builds(
    family,
    st.dictionaries(
        st.sampled_from(["ultra", "pro", "turbo", "mini"]),
        st.tuples(st.integers(1, 12), st.integers(0, 3), st.integers(3, 4)),
        min_size=1,
    ),
    budget=st.integers(1, 40),
    video=st.tuples(st.integers(1, 4), st.integers(0, 1), st.integers(1, 3)),
    beside=st.sampled_from(["", "pro"]),
)


@given(trials, st.lists(st.integers(1, 10), max_size=4))
@settings(max_examples=200, deadline=None)
def test_every_plan_accounts_for_every_replica_and_every_gpu(trial: Family, gpus: list[int]) -> None:
    made = plan(trial, cells(*gpus))
    for cell in made.cells:
        taken = sum(group.ranks for group in cell.groups) + sum(clip.gpus for clip in cell.video)
        assert cell.free_gpus == cell.gpus - taken >= 0
    assert made.used_gpus == sum(cell.gpus - cell.free_gpus for cell in made.cells) <= made.gpu_budget_gpus
    assert made.initial_gpus <= made.used_gpus
    seen = {f"{g.tier}[{g.replica}]" for cell in made.cells for g in cell.groups}
    seen |= {f"video[{clip.replica}]" for cell in made.cells for clip in cell.video}
    later = [f"{s.owner}[{s.replica}]" for s in made.shares] + [one.what for one in made.unplaced]
    expected = {f"{key}[{i}]" for key, tier in trial.tiers.items() for i in range(tier.replicas.max)}
    assert trial.video is not None
    expected |= {f"video[{i}]" for i in range(trial.video.replicas.max)}
    assert seen.isdisjoint(later)
    assert sorted([*seen, *later]) == sorted(expected)


@given(trials, st.lists(st.integers(1, 10), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_a_group_is_whole_unless_it_is_larger_than_every_cell(trial: Family, gpus: list[int]) -> None:
    parts: Counter[tuple[str, int]] = Counter()
    for cell in plan(trial, cells(*gpus)).cells:
        for group in cell.groups:
            ranks = trial.tiers[group.tier].ranks
            assert group.spread == (ranks > max(gpus))
            parts[group.tier, group.replica] += group.ranks
    assert all(total == trial.tiers[tier].ranks for (tier, _), total in parts.items())


def test_the_cells_of_a_family_are_numbered_where_there_are_several() -> None:
    many = LAPTOP.model_copy(update={"cells": (LAPTOP.cells[0].model_copy(update={"count": 2}),)})
    assert declared_cells(LAPTOP) == (CellState(name="laptop", gpus=9, free_gpus=9),)
    assert [cell.name for cell in declared_cells(many)] == ["laptop-0", "laptop-1"]


def test_nodes_of_one_cell_label_are_one_cell_and_others_stand_alone() -> None:
    nodes = [
        Node(name="n0", gpus=4, free_gpus=4, labels={CELL_LABEL: "rack"}),
        Node(name="n1", gpus=9, free_gpus=9),
        Node(name="n2", gpus=4, free_gpus=1, labels={CELL_LABEL: "rack"}),
    ]
    assert observed_cells(nodes) == (
        CellState(name="rack", gpus=8, free_gpus=5),
        CellState(name="n1", gpus=9, free_gpus=9),
    )


def test_a_rank_reserves_a_gpu_or_a_slot() -> None:
    pro, clips = LAPTOP.tiers["pro"], LAPTOP.video
    assert clips is not None
    assert bundles(pro, "cpu") == [{"moray_slot": 1, "CPU": 0.01}] * 2
    assert bundles(pro, "cuda") == [{"GPU": 1, "CPU": 1}] * 2
    assert bundles(clips.model_copy(update={"gpus": 3}), "cpu") == [{"moray_slot": 3, "CPU": 0.03}]
    assert bundles(clips.model_copy(update={"gpus": 2}), "cuda") == [{"GPU": 2, "CPU": 2}]


def test_a_group_may_be_on_every_cell_that_holds_it_and_on_all_where_none_does() -> None:
    assert reach(4, cells(4, 3, 8)) == ("c0", "c2")
    assert reach(9, cells(4, 3, 8)) == ("c0", "c1", "c2")


def test_ray_accepts_the_label_and_the_selectors() -> None:
    one, many = selector(["h200-0"]), selector(["h200-0", "h200-1"])
    assert many == {CELL_LABEL: "in(h200-0,h200-1)"}
    assert validate_label_key(CELL_LABEL) is None
    validate_label_value(one[CELL_LABEL])
    assert [validate_label_selector_value(each[CELL_LABEL]) for each in (one, many)] == [None, None]


def test_a_group_is_packed_on_one_node_unless_none_can_hold_it() -> None:
    pro = LAPTOP.tiers["pro"]
    assert strategy(pro, cells(1, 2)) == "STRICT_PACK"
    assert strategy(pro, cells(1, 1)) == "PACK"
