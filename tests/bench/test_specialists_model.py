import numpy as np
import pytest
from bench.specialists_model import DOMAINS, touched
from hypothesis import given
from hypothesis import strategies as st

from cluster.family import load

PRO = load("h200").tiers["pro"].cost  # 8 experts of 128


def drawn(batch: list[int], concentration: float, draws: int = 150) -> float:
    """Monte Carlo: each token draws its picks without replacement, so many of its own domain's experts on average."""
    rng, of = np.random.default_rng(sum(batch)), np.arange(PRO.experts) // (PRO.experts // DOMAINS)
    shares = []
    for _ in range(draws):
        seen = np.zeros(PRO.experts, dtype=bool)
        for domain in np.repeat(np.arange(DOMAINS), batch):
            wanted = PRO.top_k * concentration
            own = int(wanted) + int(rng.random() < wanted % 1)
            seen[rng.choice(np.flatnonzero(of == domain), own, replace=False)] = True
            seen[rng.choice(np.flatnonzero(of != domain), PRO.top_k - own, replace=False)] = True
        shares.append(seen.mean())
    return float(np.mean(shares))


@pytest.mark.parametrize("concentration", [0.0, 0.25, 0.82, 1.0])
@pytest.mark.parametrize("batch", [[8, 0, 0, 0], [2, 2, 2, 2], [5, 3, 0, 1], [32, 0, 0, 0]])
def test_a_mixture_of_domains_touches_what_drawing_its_picks_touches(batch: list[int], concentration: float) -> None:
    assert touched(PRO, np.array(batch), concentration) == pytest.approx(drawn(batch, concentration), abs=0.01)


batches = st.lists(st.integers(0, 80), min_size=DOMAINS, max_size=DOMAINS)


@given(batches)
def test_without_concentration_only_the_size_of_a_batch_counts(batch: list[int]) -> None:
    assert touched(PRO, np.array(batch), 0.25) == pytest.approx(1 - (1 - PRO.top_k / PRO.experts) ** sum(batch))


@given(batches, st.floats(0.25, 1))
def test_no_mixture_touches_less_than_one_domain_or_more_than_even_parts(batch: list[int], share: float) -> None:
    pure, even = [sum(batch), 0, 0, 0], [sum(batch) / DOMAINS] * DOMAINS
    least, mixed, most = touched(PRO, np.array([pure, batch, even], dtype=float), share)
    assert least - 1e-9 <= mixed <= most + 1e-9


def test_picks_that_do_not_fit_into_the_experts_of_a_domain_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.8; 8 picks of 16 experts do not fit"):
        touched(PRO.model_copy(update={"experts": 16}), np.array([1, 1, 1, 1]), 0.8)
