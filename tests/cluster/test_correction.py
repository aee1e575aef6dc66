"""True constants that differ from the family file's, steps with noise, and garbage between them."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.correction import MOST, Correction, Sample, corrected, observe, ratios
from cluster.cost import step_ms
from cluster.family import StepCost, load

FAMILY = load("h200")
PRO = FAMILY.tiers["pro"].cost
US = 40.0
TERMS = ("a_ms", "b_ms_per_seq", "c_ms_per_ktok", "d_ms", "prefill")
POINTS = [(batch, batch * context) for batch in (1, 4, 16, 64, 256) for context in (256, 2048, 8192)]


def truth(cost: StepCost, term: str, factor: float) -> StepCost:
    if term == "prefill":
        return cost
    return cost.model_copy(update={term: getattr(cost, term) * factor})


def watched(
    cost: StepCost, term: str, factor: float, *, samples: int, noise: float = 0.05, seed: int = 1
) -> Correction:
    """After so many steps of a load that varies as a day does: batches 1-256, contexts 128-8192, chunks on half."""
    true, rng, state = truth(cost, term, factor), np.random.default_rng(seed), Correction()
    for _ in range(samples):
        batch = float(np.rint(np.exp(rng.uniform(0, np.log(256)))))
        kv = batch * float(np.exp(rng.uniform(np.log(128), np.log(8192))))
        chunk = float(rng.integers(0, 2) * rng.integers(128, 2048))
        ms = step_ms(true, batch, kv) + chunk * US / 1000 * (factor if term == "prefill" else 1)
        seen = ms * (1 + noise * rng.normal())
        sample = Sample(sequences=batch, kv_tokens=kv, step_ms=seen, chunk_tokens=chunk, us_per_token=US)
        state = observe(state, sample, cost)
    return state


def error(true: StepCost, modelled: StepCost) -> float:
    """The largest relative error of a step."""
    return max(abs(step_ms(modelled, *point) / step_ms(true, *point) - 1) for point in POINTS)


@pytest.mark.parametrize("tier", ["ultra", "pro", "turbo", "mini"])
@pytest.mark.parametrize("factor", [0.8, 1.2])
@pytest.mark.parametrize("term", TERMS)
def test_steps_are_predicted_again_when_any_one_constant_is_a_fifth_off(tier: str, term: str, factor: float) -> None:
    cost = FAMILY.tiers[tier].cost
    state = watched(cost, term, factor, samples=1000)
    assert error(truth(cost, term, factor), corrected(cost, state)) < 0.02
    assert state.ignored == 0


@pytest.mark.parametrize("factor", [0.8, 1.2])
@pytest.mark.parametrize("term", TERMS)
def test_the_constant_that_is_off_is_found(term: str, factor: float) -> None:
    found = ratios(watched(PRO, term, factor, samples=2000))
    expected = [factor if name == term else 1.0 for name in TERMS]
    assert found == pytest.approx(expected, abs=0.05)


def test_a_change_is_followed() -> None:
    state = watched(PRO, "a_ms", 0.8, samples=1000, noise=0)
    rng = np.random.default_rng(2)
    true = truth(PRO, "a_ms", 1.3)
    for batch in rng.integers(1, 256, 3000).tolist():
        state = observe(state, Sample(sequences=batch, kv_tokens=0, step_ms=step_ms(true, batch, 0)), PRO)
    assert ratios(state)[0] == pytest.approx(1.3, abs=0.05)


def test_without_samples_nothing_is_corrected() -> None:
    assert corrected(PRO, Correction()) == PRO


def test_what_the_samples_do_not_tell_stays_with_the_family_file() -> None:
    state = Correction()
    for _ in range(5000):  # one and the same batch, without context and chunks
        state = observe(state, Sample(sequences=8, kv_tokens=0, step_ms=1.2 * step_ms(PRO, 8, 0)), PRO)
    seen = corrected(PRO, state)
    assert step_ms(seen, 8, 0) == pytest.approx(1.2 * step_ms(PRO, 8, 0), rel=0.01)
    assert seen.c_ms_per_ktok == PRO.c_ms_per_ktok
    assert seen.prefill_us_per_token == PRO.prefill_us_per_token
    assert all(1 <= ratio < 1.4 for ratio in ratios(state))


def test_prefill_is_corrected_at_every_length() -> None:
    seen = corrected(PRO, watched(PRO, "prefill", 1.2, samples=1000))
    for tokens, us in PRO.prefill_us_per_token.items():
        assert seen.prefill_us_per_token[tokens] == pytest.approx(1.2 * us, rel=0.02)


def test_a_correction_survives_json() -> None:
    state = watched(PRO, "d_ms", 1.2, samples=20)
    read = json.loads(json.dumps(asdict(state)))
    assert Correction(**read | {name: tuple(read[name]) for name in ("information", "moment")}) == state


@pytest.mark.parametrize(
    "change",
    [
        {"step_ms": math.nan},
        {"step_ms": math.inf},
        {"step_ms": 0.0},
        {"step_ms": -1.0},
        {"step_ms": 1000.0},  # 100 times too long: a pause of the machine, not a step
        {"step_ms": 1.0},
        {"sequences": -1.0},
        {"kv_tokens": math.nan},
        {"kv_tokens": 1e308, "us_per_token": 1e308, "chunk_tokens": 1e308},
    ],
)
def test_garbage_is_counted_and_changes_nothing_else(change: dict[str, float]) -> None:
    before = watched(PRO, "a_ms", 1.2, samples=5)
    good = {"sequences": 8.0, "kv_tokens": 8000.0, "step_ms": 14.0}
    after = observe(before, Sample(**good | change), PRO)
    assert (after.ignored, after.used) == (1, 5)
    assert ratios(after) == ratios(before)


def test_a_cost_of_nothing_learns_nothing() -> None:
    free = PRO.model_copy(update={"a_ms": 0.0, "b_ms_per_seq": 0.0, "c_ms_per_ktok": 0.0, "d_ms": 0.0})
    assert observe(Correction(), Sample(sequences=1, kv_tokens=1, step_ms=1), free).ignored == 1


anything = st.floats() | st.floats(0, 1e4)
samples = st.builds(
    Sample, sequences=anything, kv_tokens=anything, step_ms=anything, chunk_tokens=anything, us_per_token=anything
)


@given(st.lists(samples, max_size=20))
def test_no_samples_move_a_constant_beyond_the_bound(given_samples: list[Sample]) -> None:
    state = Correction()
    for sample in given_samples:
        state = observe(state, sample, PRO)
    assert all(1 / MOST <= ratio <= MOST for ratio in ratios(state))
    assert state.used + state.ignored == len(given_samples)


@given(st.sampled_from([0.25, 0.4, 3.0, 4.5]), st.integers(0, 99))
def test_a_replica_far_off_is_corrected_up_to_the_bound(factor: float, seed: int) -> None:
    rng, state = np.random.default_rng(seed), Correction()
    for batch in rng.integers(1, 256, 200).tolist():
        ms = factor * step_ms(PRO, batch, 1000 * batch)
        state = observe(state, Sample(sequences=batch, kv_tokens=1000 * batch, step_ms=ms), PRO)
    assert ratios(state)[0] == (1 / MOST if factor < 1 else MOST)
