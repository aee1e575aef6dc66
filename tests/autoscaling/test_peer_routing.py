"""The routers of others: whom they choose, by hand; and what they never do. 10 + B ms a step, 100 us a prompt token."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peer_world import COST

from autoscaling.peer_routing import KvCost, PrefixAffinity, predicted, two_choices
from cluster.cost import Service, service
from cluster.family import Price, Replicas, Slo, Tier
from cluster.loads import Ask, Loads, Router

PRO = Tier(
    names=("pro",),
    checkpoint="/none",
    engine="simulated",
    context_tokens=1000,
    kv_tokens=100_000,
    max_running=100,
    prefill_chunk_tokens=1000,
    slo=Slo(ttft_s=1, tpot_ms=50),
    price=Price(input_usd_per_mtok=1, output_usd_per_mtok=1),
    replicas=Replicas(min=1, max=9, initial=1),
    cost=COST,
)
SERVICE: Service = service(PRO, "pro")
ROUTERS: tuple[Router, ...] = (two_choices, predicted, KvCost(), PrefixAffinity())


def loads(count: int, **columns: Any) -> Loads:
    given: dict[str, Any] = {
        "sequences": 0.0,
        "kv_tokens": 0.0,
        "kv_capacity_tokens": 1e6,
        "prefill_tokens": 0.0,
        "prefill_done_s": 0.0,
        "correction": 1.0,
        "heard_s": 0.0,
        "ongoing": 0.0,
        "open": True,
    }
    full = {name: np.full(count, value) for name, value in given.items()}
    return Loads(**{**full, **{name: np.array(values) for name, values in columns.items()}})


def ask(draw: float = 0.0, hits: list[float] | None = None, prompt: int = 1000) -> Ask:
    return Ask(
        prompt_tokens=prompt,
        expected_output_tokens=100,
        us_per_token=100,
        draw=draw,
        hit_tokens=None if hits is None else np.array(hits),
    )


def chosen(router: Router, seen: Loads, asked: Ask | None = None) -> int | None:
    return router(seen, asked or ask(), SERVICE, 0.0, False).index


@pytest.mark.parametrize("router", ROUTERS)
def test_where_nobody_has_room_the_request_stays(router: Router) -> None:
    full = loads(3, sequences=[100.0, 100.0, 0.0], open=[True, True, False])
    for nowhere in (full, loads(0), loads(1, open=[False])):
        choice = router(nowhere, ask(hits=[0.0] * len(nowhere.open)), SERVICE, 0.0, False)
        assert (choice.index, choice.feasible, choice.method) == (None, False, "none")


@given(st.sampled_from(ROUTERS), st.data())
def test_only_open_replicas_with_room_are_chosen(router: Router, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 6))

    def column(values: st.SearchStrategy[Any]) -> list[Any]:
        return data.draw(st.lists(values, min_size=count, max_size=count))

    seen = loads(
        count,
        sequences=column(st.sampled_from([0.0, 5.0, 99.0, 100.0])),
        kv_tokens=column(st.floats(0, 1e6)),
        prefill_tokens=column(st.floats(0, 1e5)),
        open=column(st.booleans()),
    )
    draw = data.draw(st.floats(0, 1, exclude_max=True))
    hits = data.draw(st.none() | st.lists(st.floats(0, 1000), min_size=count, max_size=count))
    choice = router(seen, ask(draw, hits), SERVICE, 0.0, False)
    usable = np.flatnonzero(seen.open & (seen.sequences < 100)).tolist()
    assert choice.feasible == bool(usable)
    assert choice.index in usable if usable else choice.index is None
    assert choice == router(seen, ask(draw, hits), SERVICE, 0.0, True) or math.isnan(choice.ttft_s)


def test_of_two_drawn_the_one_with_fewer_requests_goes() -> None:
    seen = loads(3, sequences=[5.0, 1.0, 3.0])
    # 0.5 of 3 is replica 1, half of its third is left: the second of the other two.
    assert chosen(two_choices, seen, ask(0.5)) == 1
    assert chosen(two_choices, seen, ask(0.3)) == 2  # replica 0, then 0.9 of two: replica 2
    assert chosen(two_choices, seen, ask(0.0)) == 1  # replica 0, then replica 1


def test_all_pairs_are_drawn_alike() -> None:
    seen = loads(4, sequences=[0.0, 1.0, 2.0, 3.0])
    wins = Counter(chosen(two_choices, seen, ask(draw)) for draw in np.arange(0.0, 1.0, 1 / 1200).tolist())
    # Of the six pairs replica 0 wins three, 1 two, 2 one.
    assert [wins[index] for index in range(3)] == pytest.approx([600, 400, 200], abs=5)


def test_what_is_drawn_in_vain_is_drawn_again_fairly() -> None:
    closed = loads(4, open=[False, False, True, True])
    wins = Counter(chosen(two_choices, closed, ask(draw)) for draw in np.arange(0.0, 1.0, 1 / 1200).tolist())
    assert wins[2] == pytest.approx(600, abs=60)
    assert wins[3] == pytest.approx(600, abs=60)
    assert chosen(two_choices, loads(1)) == 0


def test_the_prediction_is_the_formula() -> None:
    seen = loads(1, sequences=[4.0], prefill_tokens=[500.0], correction=[2.0])
    choice = predicted(seen, ask(hits=[250.0]), SERVICE, 0.0, False)
    # (500 + 750) tokens of 100 us, and two chunks on steps of 2 * (10 + 4) ms.
    assert choice.ttft_s == pytest.approx(0.125 + 2 * 0.028)
    assert choice.tpot_ms == pytest.approx(2 * 15)


@pytest.mark.parametrize(
    ("columns", "index"),
    [
        ({"prefill_tokens": [100.0, 0.0]}, 1),
        ({"sequences": [30.0, 10.0]}, 1),
        ({"sequences": [0.0, 20.0], "prefill_tokens": [9000.0, 0.0]}, 1),  # late is worse than slower
        ({"sequences": [60.0, 0.0], "prefill_tokens": [0.0, 2000.0]}, 1),  # a broken pace is worse than later
        ({"kv_tokens": [999_000.0, 0.0], "sequences": [0.0, 1.0]}, 1),  # 400 tokens over: 0.4 s
        ({"kv_tokens": [998_600.0, 0.0], "sequences": [0.0, 1.0]}, 0),  # 998,600 + 1100 + 300 just fit
    ],
)
def test_the_lowest_predicted_score_goes(columns: dict[str, list[float]], index: int) -> None:
    assert chosen(predicted, loads(2, **columns)) == index


@pytest.mark.parametrize(
    ("weight", "index"),
    [(1.0, 0), (0.5, 1)],  # 1.0: 2600 against 2900; 0.5: 2100 against 1900
)
def test_dynamo_weighs_blocks_to_compute_against_blocks_to_hold(weight: float, index: int) -> None:
    seen = loads(2, prefill_tokens=[0.0, 1000.0], kv_tokens=[1600.0, 900.0])
    # weight * (0 + 1000) + 1600 against weight * (1000 + 1000) + 900, blocks alike
    assert chosen(KvCost(weight=weight), seen) == index


def test_dynamo_counts_a_cached_prefix_as_computed() -> None:
    seen = loads(2, kv_tokens=[0.0, 500.0])
    assert chosen(KvCost(), seen, ask(hits=[0.0, 512.0])) == 1  # 1000 against 488 + 500
    assert chosen(KvCost(), seen, ask(hits=[0.0, 496.0])) == 0  # 1000 against 504 + 500


def test_equal_costs_are_drawn() -> None:
    seen = loads(3, kv_tokens=[0.0, 7.0, 0.0])
    assert [chosen(KvCost(), seen, ask(draw)) for draw in (0.0, 0.49, 0.5, 0.99)] == [0, 0, 2, 2]


def test_the_longest_prefix_draws_a_request() -> None:
    seen = loads(3, sequences=[10.0, 20.0, 30.0], kv_tokens=[5.0, 4.0, 6.0])
    assert chosen(PrefixAffinity(), seen, ask(hits=[0.0, 600.0, 800.0])) == 2
    assert chosen(PrefixAffinity(), seen, ask(hits=[0.0, 400.0, 500.0])) == 1  # half is not enough: fewest KV tokens
    assert chosen(PrefixAffinity(), seen) == 1  # nothing is known of prefixes


def test_queues_far_apart_end_the_affinity() -> None:
    apart = loads(3, sequences=[0.0, 1.0, 33.0])
    assert chosen(PrefixAffinity(), apart, ask(hits=[0.0, 0.0, 1000.0])) == 0
    assert chosen(PrefixAffinity(apart_requests=33), apart, ask(hits=[0.0, 0.0, 1000.0])) == 2
    assert chosen(PrefixAffinity(apart_ratio=2), loads(2, sequences=[40.0, 79.0]), ask(hits=[0.0, 900.0])) == 1
