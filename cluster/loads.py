"""What routing sees of a tier's replicas, as columns, and what it answers.

Columns, so that a decision over a thousand replicas is a few array operations. The owner of the arrays changes them in
place between decisions; a decision only reads them.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from cluster.cost import Service
from cluster.workload import Floats

OUTPUT_SHARE = 0.01  # of a finished answer in the running mean of lengths, once there are a hundred
PRIOR_OUTPUT_TOKENS = 200.0
Method = Literal["predicted", "two_choices", "peer", "none"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Loads:
    """One entry per replica in every array.

    `sequences`: there, waiting or running. `kv_tokens`: held by those that run, and prompts of those that wait; what
    answers will add is left to the decision. `prefill_tokens`: queued, not computed yet. `prefill_done_s`: when those
    will be computed. `correction`: measured step over modelled step. `heard_s`: when it was last heard of. `ongoing`:
    requests that this router itself has there. `open`: takes new requests (neither draining nor dead).
    """

    sequences: Floats
    kv_tokens: Floats
    kv_capacity_tokens: Floats
    prefill_tokens: Floats
    prefill_done_s: Floats
    correction: Floats
    heard_s: Floats
    ongoing: Floats
    open: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ask:
    """A request as routing sees it. Its true output length is unknown, so it brings a guess.

    `us_per_token`: prefill cost at its length. `hit_tokens`: of its prefix, cached on each replica; None where unknown.
    `draw`: uniform in [0, 1), all the chance that the decision may use. `waited_s`: since it arrived; the promised
    first token is due so much sooner. `left_tokens`: what a sequence that is met running has yet to answer on average,
    E[o^2]/(2 E[o]), which is far more than half of the mean answer where answers vary; None: that half.
    """

    prompt_tokens: int
    expected_output_tokens: float
    us_per_token: float
    draw: float
    waited_s: float = 0.0
    left_tokens: float | None = None
    hit_tokens: Floats | None = None


@dataclass(slots=True)
class Answers:
    """Of a tier's answers, in tokens: running means of what has finished, and of its square."""

    mean: float = PRIOR_OUTPUT_TOKENS
    square: float = PRIOR_OUTPUT_TOKENS**2
    finished: int = 0

    def learn(self, output_tokens: int) -> None:
        self.finished += 1
        share = max(OUTPUT_SHARE, 1 / self.finished)
        self.mean += share * (output_tokens - self.mean)
        self.square += share * (output_tokens * output_tokens - self.square)

    @property
    def left(self) -> float:
        """What an answer that is met running has yet to bring: long ones are met more often."""
        return self.square / (2 * self.mean)


@dataclass(frozen=True, slots=True)
class Choice:
    """The replica for a request (None: none is open), what it would see there, and whether all promises there hold.

    `own_s`: what of the time to first token is its own prefill; the rest it waits for others.
    """

    index: int | None
    ttft_s: float
    tpot_ms: float
    feasible: bool
    method: Method
    own_s: float = 0.0


class Router(Protocol):
    """`packing`: the tier is scaling in, so replicas that empty may leave."""

    def __call__(self, loads: Loads, ask: Ask, service: Service, now_s: float, packing: bool) -> Choice: ...
