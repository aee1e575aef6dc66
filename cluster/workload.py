"""A workload: requests and video jobs as columns, in order of arrival; and what may be done to one.

Columns, not objects: a day of a busy tier is millions of requests. All arrays have one entry per request. Every
function is pure: the same arguments, seed included, give the same columns. Burstiness is told as dispersion: variance
over mean of the requests per interval, 1 for Poisson arrivals.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from cluster.errors import ConfigurationError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SHIFT_S = 30.0  # the most that a copy is moved against the original
PERMUTED_REQUESTS = 200  # lengths move at most this far, so that slow changes of the mix stay
MOST_COPIES = 1000.0


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


def window(workload: Workload, start_s: float, duration_s: float) -> Workload:
    """The requests of [start, start + duration), moved so that it begins at 0. Burstiness stays."""
    end_s = workload.arrival_s[-1] if len(workload) else 0.0
    if not (0 <= start_s <= end_s and duration_s > 0):
        raise ConfigurationError(
            f"stretch: {duration_s:g} s from {start_s:g} s; a start from 0 to {end_s:g} s, the last request, and a "
            "duration above 0 are allowed; give another start or duration"
        )
    first, last = np.searchsorted(workload.arrival_s, (start_s, start_s + duration_s))
    part = taken(workload, np.arange(first, last))
    return replace(part, arrival_s=part.arrival_s - start_s)


def scale(workload: Workload, k: float, seed: int) -> Workload:
    """k times the rate: thinned below 1, superposed above."""
    return thin(workload, k, seed) if k < 1 else superpose(workload, k, seed)


def thin(workload: Workload, keep: float, seed: int) -> Workload:
    """Each request stays with probability `keep`. Dispersion D becomes 1 + keep*(D - 1): bursts stay, but shallower."""
    if not 0 < keep <= 1:
        raise ConfigurationError(f"scale: {keep:g}; more than 0, at most 1 is allowed to thin; give another scale")
    draws = np.random.default_rng(seed).random(len(workload))
    return taken(workload, np.flatnonzero(draws < keep))


def superpose(workload: Workload, k: float, seed: int) -> Workload:
    """The original and k - 1 copies, each as a whole 0 to 30 s later, drawn uniformly; a remainder is a thinned copy.

    A copy's rows are permuted against its arrivals within 200 requests. Bursts shorter than about 30 s get smoother;
    of longer ones dispersion grows k-fold. Requests with blocks keep their place, since order decides what a cache
    holds; hashes are shared inside a copy only.
    """
    if not 1 <= k <= MOST_COPIES:
        raise ConfigurationError(f"scale: {k:g}; 1 to {MOST_COPIES:g} copies are allowed; give another scale")
    whole = math.floor(k)
    copies = [_copy(workload, seed, copy) for copy in range(1, whole)]
    rest = [thin(_copy(workload, seed, whole), k - whole, seed)] if k > whole else []
    return merge(workload, *copies, *rest)


def merge(first: Workload, *others: Workload) -> Workload:
    """All requests in order of arrival; equal names of models and of tenants become one.

    Independent workloads merged are smoother than each: dispersions average, weighted by rate. Block hashes of
    different workloads are kept apart; a request of a workload without blocks gets none.
    """
    if not others:
        return first
    parts = (first, *others)
    models, model = _united([part.models for part in parts], [part.model for part in parts])
    tenants, tenant = _united([part.tenants for part in parts], [part.tenant for part in parts])
    together = Workload(
        arrival_s=np.concatenate([part.arrival_s for part in parts]),
        prompt_tokens=np.concatenate([part.prompt_tokens for part in parts]),
        output_tokens=np.concatenate([part.output_tokens for part in parts]),
        model=model,
        tenant=tenant,
        models=models,
        tenants=tenants,
        blocks=_apart(parts),
        block_tokens=_block_tokens(parts),
    )
    return taken(together, np.argsort(together.arrival_s, kind="stable"))


def assign_tenants(workload: Workload, weights: Mapping[str, float], seed: int) -> Workload:
    """Each request gets a tenant by weight, independently. The whole stays as bursty; each tenant is a thinned part."""
    given = np.array(list(weights.values()), dtype=float)
    if not (np.isfinite(given).all() and (given >= 0).all() and given.sum() > 0):
        raise ConfigurationError(f"tenants: {dict(weights)}; weights >= 0, one above 0, are allowed; give such weights")
    tenant = np.random.default_rng(seed).choice(len(given), len(workload), p=given / given.sum())
    return replace(workload, tenant=tenant.astype(np.int64), tenants=tuple(weights))


def taken(workload: Workload, rows: NDArray[np.intp]) -> Workload:
    """These requests alone, in the order given."""
    blocks = workload.blocks
    return replace(
        workload,
        arrival_s=workload.arrival_s[rows],
        prompt_tokens=workload.prompt_tokens[rows],
        output_tokens=workload.output_tokens[rows],
        model=workload.model[rows],
        tenant=workload.tenant[rows],
        blocks=None if blocks is None else tuple(blocks[row] for row in rows.tolist()),
    )


def _copy(workload: Workload, seed: int, copy: int) -> Workload:
    """Whole rows are permuted: a length belongs to its model and tenant, and an output to its prompt."""
    rng = np.random.default_rng((seed, copy))
    arrival_s = workload.arrival_s + rng.uniform(0.0, SHIFT_S)
    if workload.blocks is None:
        rows = np.arange(len(workload))
        workload = taken(workload, np.argsort(rows // PERMUTED_REQUESTS + rng.random(len(rows))))
    return replace(workload, arrival_s=arrival_s)


def _united(tables: list[tuple[str, ...]], columns: list[Ints]) -> tuple[tuple[str, ...], Ints]:
    """One table of names, in order of first appearance, and the columns as indices into it."""
    names = tuple(dict.fromkeys(chain.from_iterable(tables)))
    place = {name: index for index, name in enumerate(names)}
    moved = [
        np.array([place[name] for name in table], dtype=np.int64)[column]
        for table, column in zip(tables, columns, strict=True)
    ]
    return names, np.concatenate(moved)


def _block_tokens(parts: tuple[Workload, ...]) -> int:
    sizes = {part.block_tokens for part in parts if part.blocks is not None}
    if len(sizes) > 1:
        raise ConfigurationError(
            f"merge: blocks of {sorted(sizes)} tokens; one size is allowed; merge traces of one size"
        )
    return sizes.pop() if sizes else parts[0].block_tokens


def _apart(parts: tuple[Workload, ...]) -> tuple[tuple[int, ...], ...] | None:
    """The blocks of all parts, renumbered so that no two parts share a hash."""
    if all(part.blocks is None for part in parts):
        return None
    blocks: list[tuple[int, ...]] = []
    free = 0
    for part in parts:
        if part.blocks is None:
            blocks += [()] * len(part)
            continue
        lowest = min(chain.from_iterable(part.blocks), default=0)
        shift = free - lowest
        blocks += [tuple(block + shift for block in row) for row in part.blocks]
        free = max(chain.from_iterable(part.blocks), default=lowest) + shift + 1
    return tuple(blocks)
