"""Draws depend on the row, its settings, seed and position; the distribution is the one asked for."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.engines.torch_engine.sampling import bias, choose, log_probabilities, penalise, uniform


def drawn(logits: torch.Tensor, temperature: float, top_p: float, draws: int) -> torch.Tensor:
    rows = logits.expand(draws, -1)
    u = uniform(np.full(draws, 3, np.uint64), np.arange(draws, dtype=np.uint64))
    return choose(rows, torch.full((draws,), temperature), torch.full((draws,), top_p), torch.from_numpy(u))


def test_draws_are_uniform_and_independent_of_order() -> None:
    u = uniform(np.full(20_000, 11, np.uint64), np.arange(20_000, dtype=np.uint64))
    assert ((u >= 0) & (u < 1)).all()
    histogram = np.histogram(u, bins=20, range=(0, 1))[0]
    assert abs(histogram - 1000).max() < 150  # five standard deviations of 31
    assert u[7] == uniform(np.array([11], np.uint64), np.array([7], np.uint64))[0]


@settings(deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**20))
def test_a_draw_lies_in_the_unit_interval(seed: int, position: int) -> None:
    assert 0 <= uniform(np.array([seed], np.uint64), np.array([position], np.uint64))[0] < 1


def test_temperature_zero_is_greedy() -> None:
    assert drawn(torch.tensor([0.0, 2.0, 1.0]), 0.0, 1.0, 50).tolist() == [1] * 50


def test_the_smallest_temperature_is_nearly_greedy() -> None:
    assert drawn(torch.tensor([0.0, 50.0, 49.0]), 1e-44, 1.0, 50).tolist() == [1] * 50
    assert drawn(torch.tensor([0.0, 50.0, 49.0]), 1e-44, 0.5, 50).tolist() == [1] * 50


def test_frequencies_follow_the_softmax_of_logits_over_temperature() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    counts = torch.bincount(drawn(logits, 2.0, 1.0, 20_000), minlength=4) / 20_000
    torch.testing.assert_close(counts, torch.softmax(logits / 2, -1), atol=0.02, rtol=0)


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    logits = torch.log(torch.tensor([0.1, 0.5, 0.05, 0.35]))
    # 0.5 + 0.35 reaches 0.8, with shares 10/17 and 7/17.
    counts = torch.bincount(drawn(logits, 1.0, 0.8, 20_000), minlength=4) / 20_000
    torch.testing.assert_close(counts, torch.tensor([0, 10 / 17, 0, 7 / 17]), atol=0.02, rtol=0)


def test_a_nucleus_wider_than_the_candidates_is_drawn_from_in_full() -> None:
    counts = torch.bincount(drawn(torch.zeros(500), 1.0, 0.9, 20_000), minlength=500)
    assert 440 <= int((counts > 0).sum()) <= 451  # 0.9 of 500, one more for rounding


def test_the_tiniest_top_p_leaves_the_best_token() -> None:
    assert set(drawn(torch.tensor([0.0, 0.1, 0.0]), 1.0, 0.0, 100).tolist()) == {1}


def test_neighbours_never_change_a_row() -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(64, 300, generator=generator) * 3
    temperature = torch.tensor([0.0, 0.7, 1.3, 1.0]).repeat(16)
    top_p = torch.tensor([1.0, 0.3, 0.999, 1.0]).repeat(16)
    u = torch.rand(64, generator=generator, dtype=torch.float64)
    together = choose(logits, temperature, top_p, u)
    alone = [choose(logits[i : i + 1], temperature[i : i + 1], top_p[i : i + 1], u[i : i + 1]) for i in range(64)]
    assert together.tolist() == torch.cat(alone).tolist()


def test_penalties_are_those_of_the_public_api() -> None:
    counts = torch.tensor([[0, 1, 3]], dtype=torch.int32)
    out = penalise(torch.zeros(1, 3), counts, torch.tensor([0.5]), torch.tensor([0.25]))
    assert out.tolist() == [[0, -0.75, -1.25]]  # 0.5 + 0.25 * 1, 0.5 + 0.25 * 3


def test_a_bias_is_added_to_its_token_of_its_row_alone() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    out = bias(logits, [(0, ((7, 2.5), (49, -100.0))), (2, ((7, 1.0),))])
    added = torch.zeros(3, 50)
    added[0, 7], added[0, 49], added[2, 7] = 2.5, -100.0, 1.0
    assert torch.equal(out, logits + added)
    assert torch.equal(out[1], logits[1])
    assert bias(logits, [(0, ())]) is logits


def test_log_probabilities_are_of_the_whole_distribution() -> None:
    chosen, best, ids = log_probabilities(torch.log(torch.tensor([[0.2, 0.7, 0.1]])), torch.tensor([0]), 2)
    torch.testing.assert_close(chosen.exp(), torch.tensor([0.2]))
    torch.testing.assert_close(best.exp(), torch.tensor([[0.7, 0.2]]))
    assert ids.tolist() == [[1, 0]]
