"""Experts move where their loads have drifted and the move pays, and never for noise."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.dispatch import Floats, Ints
from cluster.errors import ConfigurationError
from cluster.experts import Placement, even, moves, place
from cluster.rebalance import Judgement, Terms, Window, judge, rank_loads

EVEN = even(layers=2, experts=16, ranks=4, redundant=4)
SKEWED = np.stack([1 / np.arange(1.0, 17), 1 / np.arange(16.0, 0, -1)])


def window(shares: Floats, *, parts: int = 8, tokens: int = 4000, seed: int = 0, since_s: float = 1e9) -> Window:
    rng = np.random.default_rng(seed)
    chances = shares / shares.sum(1, keepdims=True)
    loads = [[rng.multinomial(tokens, row) for row in chances] for _ in range(parts)]
    return Window(loads=np.array(loads, np.int64), part_s=5.0, since_s=since_s)


def imbalance(loads: Ints, placement: Placement) -> float:
    return float(rank_loads(loads, placement).max(2).mean())


def test_skewed_loads_move_experts_off_the_hot_ranks() -> None:
    found = judge(window(SKEWED), EVEN, Terms())
    assert found.placement is not None
    assert found.moved == moves(EVEN, found.placement) > 0
    assert found.imbalance_then < 1.05 < found.imbalance_now
    assert f"imbalance {found.imbalance_now:.3f} to {found.imbalance_then:.3f}" in found.reason
    assert imbalance(window(SKEWED, seed=9).loads, found.placement) < 1.05


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.sampled_from([50, 500, 5000]))
def test_noise_alone_moves_nothing(seed: int, tokens: int) -> None:
    fitting = place(SKEWED, ranks=4, slots=20)
    for shares, placement in ((SKEWED, fitting), (np.ones((2, 16)), EVEN)):
        assert judge(window(shares, tokens=tokens, seed=seed), placement, Terms()).placement is None


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 2), st.floats(0, 0.05))
def test_what_moves_lowers_the_imbalance_and_pays(seed: int, skew: float, move_s: float) -> None:
    shares = np.random.default_rng(seed).pareto(skew + 1, (2, 16)) + 0.01
    terms = Terms(move_s=move_s)
    found = judge(window(shares, seed=seed), EVEN, terms)
    if found.placement is not None:
        fall = found.imbalance_now - found.imbalance_then
        assert fall > terms.least_gain
        best_s = terms.horizon_s * terms.share * fall / (1 - terms.share + terms.share * found.imbalance_now)
        assert best_s > found.moved * move_s


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=10)
def test_the_same_window_is_judged_alike(seed: int) -> None:
    seen = window(SKEWED, seed=seed)
    assert judge(seen, EVEN, Terms()) == judge(seen, EVEN, Terms())


def test_a_shift_is_answered_once_it_fills_the_newer_half() -> None:
    before, after = window(SKEWED).loads, window(SKEWED[::-1], seed=1).loads
    placed = place(SKEWED, ranks=4, slots=20)
    seen = Window(loads=np.concatenate([before[:4], after[:4]]), part_s=5.0)
    assert judge(seen, placed, Terms()).placement is not None


def test_a_placement_that_fast_drift_soon_undoes_is_not_worth_much() -> None:
    steady = window(SKEWED)
    slopes = np.linspace(0, 1, 8)[:, None, None]
    drifting = (steady.loads * (1 - slopes) + steady.loads[:, ::-1] * slopes).astype(np.int64)
    price = Terms(move_s=3.0)
    assert judge(steady, EVEN, price).placement is not None
    assert "the move does not pay" in judge(replace(steady, loads=drifting), EVEN, price).reason


@pytest.mark.parametrize(
    ("seen", "terms", "reason"),
    [
        (window(SKEWED, parts=3), Terms(), "the window has 3 parts; 4 are least"),
        (window(SKEWED, tokens=10), Terms(), "a layer has 80 tokens in the window; 1000 are least"),
        (window(SKEWED, since_s=5), Terms(), "experts moved 5 s ago; 60 s are least"),
        (window(SKEWED), Terms(least_gain=5), "a fall of 5.000 is least: "),
        (window(SKEWED), Terms(move_s=1e3), "the move does not pay: "),
    ],
)
def test_experts_that_stay_say_why(seen: Window, terms: Terms, reason: str) -> None:
    found = judge(seen, EVEN, terms)
    assert found.placement is None
    assert found.reason.startswith(reason)


def test_a_placement_that_fits_is_the_best_known() -> None:
    found = judge(window(SKEWED), place(SKEWED, ranks=4, slots=20), Terms())
    assert found.placement is None
    assert found.moved == 0
    assert found.reason.startswith("no better placement is known: ")


def test_a_window_without_load_moves_nothing() -> None:
    idle = Window(loads=np.zeros((8, 2, 16), np.int64), part_s=5.0)
    assert judge(idle, EVEN, Terms(least_tokens=0)).placement is None


def test_a_model_without_expert_layers_has_nothing_to_move() -> None:
    nothing = Window(loads=np.zeros((8, 0, 0), np.int64), part_s=5.0)
    found = judge(nothing, Placement(ranks=2, slots=()), Terms())
    assert found == Judgement(placement=None, reason="no layer has experts")


def test_windows_that_cannot_be_judged_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="count what is placed"):
        judge(Window(loads=np.ones((8, 2, 15), np.int64), part_s=5.0), EVEN, Terms())
    with pytest.raises(ConfigurationError, match="-1 tokens; 0 or more; count them anew"):
        judge(Window(loads=np.full((8, 2, 16), -1), part_s=5.0), EVEN, Terms())
