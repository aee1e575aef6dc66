"""A workload: requests and video jobs as columns, in order of arrival.

Columns, not objects: a day of a busy tier is millions of requests. All arrays have one entry per request.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Workload:
    """Language requests. `model`, `tenant`: indices into `models` (model or tier names, as asked) and `tenants`.

    `arrival_s` is sorted and >= 0; tokens are >= 1. `blocks`: per request the hashes of its prompt's blocks of
    `block_tokens` tokens, equal where the prefix up to there is equal; None where the trace has none.
    """

    arrival_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    model: Ints
    tenant: Ints
    models: tuple[str, ...]
    tenants: tuple[str, ...] = ("default",)
    blocks: tuple[tuple[int, ...], ...] | None = None
    block_tokens: int = 512

    def __len__(self) -> int:
        return len(self.arrival_s)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Jobs:
    """Video jobs: denoising steps, replica-seconds of one step, when the file is due, and what it pays by then."""

    arrival_s: Floats
    steps: Ints
    step_s: Floats
    deadline_s: Floats
    value_usd: Floats

    def __len__(self) -> int:
        return len(self.arrival_s)
