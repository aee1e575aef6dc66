"""What may be done to a workload, as laws over small drawn ones; dispersion on a bursty one of known shape."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ConfigurationError
from cluster.workload import Workload, assign_tenants, merge, scale, superpose, thin, window

COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens", "model", "tenant")
Rows = Sequence[tuple[int, int, int, int]]


def workload(rows: Rows, *, blocks: bool = False, models: tuple[str, ...] = ("pro", "mini")) -> Workload:
    """Rows of (arrival in whole seconds, prompt, model, first block)."""
    columns = np.array(sorted(rows), dtype=np.int64).reshape(-1, 4)
    return Workload(
        arrival_s=columns[:, 0].astype(float),
        prompt_tokens=columns[:, 1],
        output_tokens=columns[:, 1] + 1,
        model=columns[:, 2],
        tenant=np.zeros(len(columns), dtype=np.int64),
        models=models,
        blocks=tuple((row[3], row[3] + 1) for row in columns.tolist()) if blocks else None,
    )


ROWS = st.lists(
    st.tuples(st.integers(0, 500), st.integers(1, 9999), st.integers(0, 1), st.integers(-5, 30)),
    min_size=1,
    max_size=40,
)
SEEDS = st.integers(0, 2**32)
WORKLOADS = st.builds(workload, ROWS, blocks=st.booleans())


def same(one: Workload, other: Workload) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in COLUMNS) and (
        (one.models, one.tenants, one.blocks) == (other.models, other.tenants, other.blocks)
    )


def requests(given: Workload) -> Counter[Any]:
    names = ([given.models[index] for index in given.model], [given.tenants[index] for index in given.tenant])
    return Counter(zip(given.prompt_tokens.tolist(), given.output_tokens.tolist(), *names, strict=True))


def sharing(blocks: tuple[tuple[int, ...], ...]) -> list[int]:
    """Which requests share blocks, whatever the hashes are called: each hash becomes the place of its first use."""
    flat = [block for row in blocks for block in row]
    return [flat.index(block) for block in flat]


def dispersion(arrival_s: np.ndarray[Any, np.dtype[np.float64]], bin_s: float) -> float:
    counts = np.bincount((arrival_s // bin_s).astype(int))
    return float(counts.var() / counts.mean())


BURSTS = workload([(10 * burst + second, 1 + second, 0, 0) for burst in range(200) for second in (0, 0, 0, 0, 0, 1)])


@given(WORKLOADS, st.integers(1, 4), SEEDS)
def test_superposed_copies_hold_every_request_that_often_in_order(given: Workload, copies: int, seed: int) -> None:
    more = superpose(given, copies, seed)
    assert requests(more) == Counter({request: copies * count for request, count in requests(given).items()})
    assert (np.diff(more.arrival_s) >= 0).all()
    assert more.arrival_s[0] == given.arrival_s[0]
    assert more.arrival_s[-1] <= given.arrival_s[-1] + 30


@given(st.builds(workload, ROWS, blocks=st.just(True)), SEEDS)
def test_blocks_are_shared_inside_a_copy_only_and_in_the_order_of_the_trace(given: Workload, seed: int) -> None:
    both = superpose(given, 2, seed)
    copied = both.arrival_s % 1 != 0  # arrivals are whole seconds; a copy is shifted by a fraction
    assert given.blocks
    assert both.blocks
    original = tuple(row for row, later in zip(both.blocks, copied, strict=True) if not later)
    copy = tuple(row for row, later in zip(both.blocks, copied, strict=True) if later)
    assert sharing(original) == sharing(copy) == sharing(given.blocks)
    assert not {block for row in original for block in row} & {block for row in copy for block in row}


@given(WORKLOADS, st.floats(0.01, 5), SEEDS)
def test_the_same_seed_scales_to_the_same_columns(given: Workload, k: float, seed: int) -> None:
    assert same(scale(given, k, seed), scale(given, k, seed))


@given(WORKLOADS, st.floats(1, 5), SEEDS)
def test_a_fraction_of_a_copy_comes_on_top_of_the_whole_ones(given: Workload, k: float, seed: int) -> None:
    assert int(k) * len(given) <= len(scale(given, k, seed)) <= (int(k) + 1) * len(given)


@given(WORKLOADS, SEEDS)
def test_scaled_by_one_a_workload_stays_as_it_is(given: Workload, seed: int) -> None:
    assert same(scale(given, 1, seed), given)


@given(WORKLOADS, st.floats(0.01, 1), SEEDS)
def test_a_thinned_workload_is_a_part(given: Workload, keep: float, seed: int) -> None:
    part = thin(given, keep, seed)
    assert requests(part) <= requests(given)
    assert (part.blocks is None) == (given.blocks is None)
    assert part.blocks is None or len(part.blocks) == len(part)


@pytest.mark.parametrize(("k", "least", "most"), [(0.3, 330, 390), (2.5, 2950, 3050)])
def test_a_scale_is_met(k: float, least: int, most: int) -> None:
    assert least <= len(scale(BURSTS, k, seed=1)) <= most  # of 1,200


def test_lengths_move_at_most_two_hundred_requests() -> None:
    rising = workload([(second, second + 1, second // 500, 0) for second in range(1000)])
    both = superpose(rising, 2, seed=3)
    lengths = both.prompt_tokens[both.arrival_s % 1 != 0]  # of the copy
    assert (lengths - 1 != np.arange(1000)).mean() > 0.9
    assert ((lengths - 1) // 200 == np.arange(1000) // 200).all()
    assert (both.output_tokens == both.prompt_tokens + 1).all()
    assert (both.model == (both.prompt_tokens - 1) // 500).all()


def test_thinning_keeps_bursts_and_superposition_smooths_short_ones() -> None:
    arrivals = BURSTS.arrival_s
    assert dispersion(arrivals, 1) > 3
    expected = 1 + 0.25 * (dispersion(arrivals, 1) - 1)
    assert dispersion(thin(BURSTS, 0.25, 5).arrival_s, 1) == pytest.approx(expected, rel=0.2)
    assert dispersion(superpose(BURSTS, 50, 5).arrival_s, 1) / 50 < 0.2 * dispersion(arrivals, 1)


@given(WORKLOADS, st.integers(1, 499))
def test_two_windows_make_the_whole(given: Workload, cut_s: int) -> None:
    end_s = given.arrival_s[-1]
    first = window(given, 0, cut_s)
    parts = [(first, 0)] if cut_s > end_s else [(first, 0), (window(given, cut_s, np.inf), cut_s)]
    for name in COLUMNS[1:]:
        assert np.array_equal(np.concatenate([getattr(part, name) for part, _ in parts]), getattr(given, name))
    assert np.array_equal(np.concatenate([part.arrival_s + moved for part, moved in parts]), given.arrival_s)
    if given.blocks is not None:
        assert sum((part.blocks or () for part, _ in parts), ()) == given.blocks


@pytest.mark.parametrize(("start_s", "duration_s"), [(-1, 5), (2000, 5), (0, 0), (0, np.nan), (np.nan, 5)])
def test_a_window_lies_within_the_workload(start_s: float, duration_s: float) -> None:
    with pytest.raises(ConfigurationError, match=r"stretch: .*; a start from 0 to 1991 s, .*; give another start"):
        window(BURSTS, start_s, duration_s)


def test_a_window_of_nothing_starts_at_nought() -> None:
    assert len(window(window(BURSTS, 5, 1), 0, 1)) == 0


@given(st.lists(WORKLOADS, min_size=1, max_size=4))
def test_merging_conserves_requests_in_order(given: list[Workload]) -> None:
    whole = merge(*given)
    assert requests(whole) == sum((requests(part) for part in given), Counter())
    assert (np.diff(whole.arrival_s) >= 0).all()


def test_merged_tables_of_names_are_united() -> None:
    one, other = workload([(0, 1, 1, 0)], models=("pro", "mini")), workload([(1, 2, 0, 0)], models=("mini", "ultra"))
    whole = merge(one, other)
    assert whole.models == ("pro", "mini", "ultra")
    assert [whole.models[index] for index in whole.model] == ["mini", "mini"]
    assert whole.tenants == ("default",)


def test_a_request_without_blocks_has_none_beside_others_that_have_some() -> None:
    whole = merge(
        workload([(0, 1, 0, 7)], blocks=True), workload([(1, 1, 0, 0)]), workload([(2, 1, 0, 7)], blocks=True)
    )
    assert whole.blocks == ((0, 1), (), (2, 3))


def test_blocks_of_two_sizes_do_not_merge() -> None:
    one = workload([(0, 1, 0, 7)], blocks=True)
    other = Workload(**{name: getattr(one, name) for name in (*COLUMNS, "models", "blocks")}, block_tokens=256)
    with pytest.raises(ConfigurationError, match=r"merge: blocks of \[256, 512\] tokens; one size is allowed; merge"):
        merge(one, other)


@given(WORKLOADS, SEEDS)
def test_tenants_change_nothing_else(given: Workload, seed: int) -> None:
    shared = assign_tenants(given, {"acme": 3, "initech": 1, "nobody": 0}, seed)
    assert shared.tenants == ("acme", "initech", "nobody")
    assert set(shared.tenant.tolist()) <= {0, 1}
    assert all(np.array_equal(getattr(shared, name), getattr(given, name)) for name in COLUMNS[:-1])
    assert same(shared, assign_tenants(given, {"acme": 3, "initech": 1, "nobody": 0}, seed))


def test_tenants_get_their_share() -> None:
    assert (assign_tenants(BURSTS, {"acme": 3, "initech": 1}, 0).tenant == 0).mean() == pytest.approx(0.75, abs=0.04)


@pytest.mark.parametrize("weights", [{}, {"acme": 0.0}, {"acme": -1.0, "initech": 2.0}, {"acme": np.nan}])
def test_weights_of_tenants_must_make_sense(weights: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=r"tenants: .*; weights >= 0, one above 0, are allowed; give such"):
        assign_tenants(BURSTS, weights, 0)


@pytest.mark.parametrize("k", [0, -1, np.nan, np.inf, 1001])
def test_a_scale_must_make_sense(k: float) -> None:
    with pytest.raises(ConfigurationError, match=r"scale: .* allowed.*; give another scale"):
        scale(BURSTS, k, 0)
