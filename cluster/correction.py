"""The tier's cost constants, corrected by observed steps: recursive least squares with forgetting.

An observed step is a sum of five terms, each the family file's figure times an unknown ratio r, all 1 at first:

    step_ms = r_a*a + r_b*b*B + r_c*c*K + r_d*d*touched(B) + r_p*chunk_tokens*us_per_token/1000

Rows are divided by the modelled step, since errors grow with it. The least squares are kept as sums, whose past fades
by FORGET per sample, plus a prior of ratio 1 that never fades: what the samples do not tell apart stays with the family
file, and nothing winds up while the load is constant. A ratio never leaves [1/MOST, MOST]. Samples that are no numbers,
or that the family file's figures miss by more than ABSURD times, are counted and otherwise ignored.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from cluster.family import StepCost

FORGET = 0.998  # per sample: the last 500 count
NOISE = 0.05  # relative standard deviation of a step
SPREAD = 0.3  # relative standard deviation of the family file's constants, as a prior
MOST = 2.0
ABSURD = 5.0
TERMS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A step of `sequences` that decode with `kv_tokens` of context, and `chunk_tokens` of prompts on it.

    `us_per_token`: the family file's prefill cost at the length of those prompts.
    """

    sequences: float
    kv_tokens: float
    step_ms: float
    chunk_tokens: float = 0.0
    us_per_token: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """`information` (row by row) and `moment`: the fading sums of x*x and x*y, beyond the prior. `used`: samples."""

    information: tuple[float, ...] = (0.0,) * (TERMS * TERMS)
    moment: tuple[float, ...] = (0.0,) * TERMS
    used: int = 0
    ignored: int = 0


def observe(state: Correction, sample: Sample, cost: StepCost) -> Correction:
    """`cost`: of the family file, not corrected."""
    row = _row(sample, cost)
    if row is None:
        return replace(state, ignored=state.ignored + 1)
    terms, observed = row
    products = [one * other for one in terms for other in terms]
    return Correction(
        information=tuple(FORGET * old + new for old, new in zip(state.information, products, strict=True)),
        moment=tuple(FORGET * old + new * observed for old, new in zip(state.moment, terms, strict=True)),
        used=state.used + 1,
        ignored=state.ignored,
    )


def _row(sample: Sample, cost: StepCost) -> tuple[list[float], float] | None:
    """The five terms and the observed step as shares of the modelled step; None for garbage."""
    given = (sample.sequences, sample.kv_tokens, sample.step_ms, sample.chunk_tokens, sample.us_per_token)
    if not all(math.isfinite(number) and number >= 0 for number in given):
        return None
    batch, context = cost.b_ms_per_seq * sample.sequences, cost.c_ms_per_ktok * sample.kv_tokens / 1000
    touched = cost.d_ms * (1.0 - math.pow(1.0 - cost.top_k / cost.experts, sample.sequences))
    terms = (cost.a_ms, batch, context, touched, sample.chunk_tokens * sample.us_per_token / 1000)
    modelled = sum(terms)
    if not (0 < modelled < math.inf and 1 / ABSURD <= sample.step_ms / modelled <= ABSURD):
        return None
    return [term / modelled for term in terms], sample.step_ms / modelled


def ratios(state: Correction) -> tuple[float, ...]:
    """Of a, b, c, d and prefill to the family file's figures, within the bound."""
    prior = (NOISE / SPREAD) ** 2
    information = np.reshape(state.information, (TERMS, TERMS)) + prior * np.eye(TERMS)
    found = np.linalg.solve(information, np.asarray(state.moment) + prior)
    return tuple(float(ratio) for ratio in np.clip(found, 1 / MOST, MOST))


def corrected(cost: StepCost, state: Correction) -> StepCost:
    """The family file's constants, each times its ratio."""
    a, b, c, d, prefill = ratios(state)
    return cost.model_copy(
        update={
            "a_ms": cost.a_ms * a,
            "b_ms_per_seq": cost.b_ms_per_seq * b,
            "c_ms_per_ktok": cost.c_ms_per_ktok * c,
            "d_ms": cost.d_ms * d,
            "prefill_us_per_token": {tokens: us * prefill for tokens, us in cost.prefill_us_per_token.items()},
        }
    )
