"""Dynamo's planner with its arithmetic: a step is 10 ms + 1 ms per sequence, at most 10 of them; 100 us per token."""

from dataclasses import replace
from typing import Any

import pytest
from peer_world import counts, lead, look, spec, tier
from pydantic import TypeAdapter

from autoscaling.peers import Memory
from autoscaling.peers_dynamo import DynamoParameters, DynamoState, Traffic, decode_tokens_per_s, dynamo, planned
from autoscaling.signals import Seen, Spec, VideoSeen, VideoSpec

PLAIN = DynamoParameters(predictor="constant", corrections=False)
TRAFFIC = Traffic(requests_per_s=10, isl_tokens=1000, osl_tokens=100, ttft_s=0.1, itl_ms=20, duration_s=1.1)
HISTORY = [(1800.0, 1000.0, 100.0)]  # 10 requests a second for 180 s


def seen(now_s: float, requests: int, **changed: Any) -> Seen:
    """All that arrived has finished, 1000 tokens in and 100 out."""
    given: dict[str, Any] = {
        "ready": 2,
        "arrived_requests": requests,
        "arrived_prompt_tokens": 1000 * requests,
        "finished_requests": requests,
        "finished_output_tokens": 100 * requests,
        "ttft_s_sum": 0.1 * requests,
        "tpot_s_sum": 0.02 * requests,
        "duration_s_sum": 1.1 * requests,
    }
    return look(now_s, **{**given, **changed})


@pytest.mark.parametrize(
    ("target_ms", "context_tokens", "tokens_per_s"),
    [
        (50, 1050, 500),  # the largest batch is 10: a step of 20 ms
        (15, 1050, 5 / 0.015),
        (50, 250_000, 4 / 0.014),  # four of them fill a million KV tokens
        (10.5, 1050, 0),  # a batch of one takes 11 ms
    ],
)
def test_the_profile_takes_the_largest_batch_within_the_target(
    target_ms: float, context_tokens: float, tokens_per_s: float
) -> None:
    assert decode_tokens_per_s(tier(), target_ms, context_tokens) == pytest.approx(tokens_per_s)


@pytest.mark.parametrize(
    ("p", "replicas"),
    [
        (PLAIN, 2),  # decode: 1000 tokens/s at 500; prefill: 10,000 tokens/s at 10,000 are 1
        (replace(PLAIN, combine="sum"), 3),
        (replace(PLAIN, itl_target_ms=16), 3),  # 6 in 16 ms: 375 tokens/s, 1000/375 = 2.67
        (replace(PLAIN, itl_target_ms=10.5, min_replicas=4), 4),  # not to be had: the minimum
        (replace(PLAIN, predictor="kalman"), 2),  # too short a history for either: the last value
        (replace(PLAIN, predictor="ar"), 2),
    ],
)
def test_the_larger_of_prefill_and_decode_is_planned(p: DynamoParameters, replicas: int) -> None:
    assert planned(p, tier(), TRAFFIC, 2, HISTORY) == replicas


def test_a_longer_prompt_makes_prefill_decide() -> None:
    assert planned(PLAIN, tier(), TRAFFIC, 2, [(1800.0, 4500.0, 100.0)]) == 5  # 45,000 tokens/s: 4.5


@pytest.mark.parametrize(
    ("measured", "replicas"),
    [
        # Profiled: 5.5 sequences on each of two (10/s * 1.1 s / 2) make a step of 15.5 ms.
        (TRAFFIC._replace(itl_ms=15.5), 2),
        (TRAFFIC._replace(itl_ms=31.0), 3),  # twice as slow: 32/2 = 16 ms allow 6, 375 tokens/s
        (TRAFFIC._replace(itl_ms=40.0, duration_s=99.0), 3),  # a profile ends at 10: 20 ms, twice as slow again
        (TRAFFIC._replace(itl_ms=0.0), 2),  # single tokens have no pace
    ],
)
def test_a_slow_pace_is_corrected(measured: Traffic, replicas: int) -> None:
    p = DynamoParameters(predictor="constant", itl_target_ms=32)
    assert planned(p, tier(), measured, 2, HISTORY) == replicas


def test_a_fast_first_token_is_credited_and_a_slow_one_is_not_charged() -> None:
    p, long = DynamoParameters(predictor="constant", itl_target_ms=99), [(1800.0, 4500.0, 1.0)]
    alone = TRAFFIC._replace(isl_tokens=4500, itl_ms=0, osl_tokens=1)  # profiled: 0.45 s
    prefill = [planned(p, tier(), alone._replace(ttft_s=ttft_s), 2, long) for ttft_s in (0.9, 0.45, 0.18)]
    assert prefill == [5, 5, 2]  # 4.5 * 1; 4.5 * 1; 4.5 * 0.4
    cached = TRAFFIC._replace(isl_tokens=0, itl_ms=0)  # all of every prompt was cached: nothing to correct by
    assert planned(p, tier(), cached, 2, long) == 5


def test_intervals_follow_the_start_delay() -> None:
    looks = [seen(now_s, 10 * now_s) for now_s in range(0, 401, 10)]
    targets = lead(dynamo(spec(), replace(PLAIN, itl_target_ms=16)), looks)
    assert [target.replicas for target in targets] == [2] * 21 + [3] * 20  # at 30 + 180 s
    assert "1800 requests of 1000 and 100 tokens ask for 3" in targets[21].reason
    assert targets[39].reason == targets[21].reason  # at 390 s


def test_an_interval_without_traffic_is_skipped() -> None:
    busy = [seen(now_s, 10 * now_s) for now_s in range(0, 211, 10)]
    idle = [seen(now_s, 2100, ready=3) for now_s in range(220, 801, 10)]
    targets = lead(dynamo(spec(), replace(PLAIN, itl_target_ms=16)), busy + idle)
    assert {target.replicas for target in targets[21:]} == {3}
    assert targets[39].reason == "no traffic, the interval is skipped"
    unfinished = [seen(now_s, 10 * now_s, finished_requests=0) for now_s in (0, 210)]
    assert counts(dynamo(spec(), PLAIN), unfinished) == [2, 2]


def test_one_replica_stays_at_least() -> None:
    sleeping = [look(now_s, ready=0) for now_s in (0, 10)]
    assert counts(dynamo(spec(least=0), PLAIN), sleeping) == [1, 1]


def reactive(**changed: Any) -> DynamoParameters:
    return replace(PLAIN, load_based=True, throughput_based=False, **changed)


def loaded(now_s: int, load: int, **changed: Any) -> Seen:
    """Requests of 100 + 10 tokens, 10 in 5 s; the first token takes 1 ms, the next 0.01 ms, per waiting token of two.

    The sums are those of a history in which the load of look i was 100*i, until the last one.
    """
    step = now_s // 5
    before = sum(100 * index for index in range(step))
    done = 10 * step
    given: dict[str, Any] = {
        "ready": 2,
        "arrived_requests": done,
        "arrived_prompt_tokens": 100 * done,
        "finished_requests": done,
        "finished_output_tokens": 10 * done,
        "waiting_prefill_tokens": 2 * load,
        "ongoing_requests": 2 * load // 100,
        "ttft_s_sum": 10 * (before + load) / 1000,
        "tpot_s_sum": 10 * (before + load) / 1e5,
    }
    return look(now_s, **{**given, **changed})


def test_load_above_what_a_target_allows_asks_for_one_more() -> None:
    looks = [loaded(5 * step, 100 * step) for step in range(8)]
    # TTFT is 1 ms per waiting token, so 550 ms allow 550 + ISL: passed at 600, the sixth look after the first.
    assert counts(dynamo(spec(), reactive(ttft_target_s=0.55)), looks) == [2, 2, 2, 2, 2, 2, 3, 4]
    # ITL is 0.01 ms per token: 5.5 ms allow as much.
    assert counts(dynamo(spec(), reactive(ttft_target_s=9.0, itl_target_ms=5.5)), looks) == [2, 2, 2, 2, 2, 2, 3, 4]


def test_little_load_on_both_asks_for_one_fewer() -> None:
    looks = [loaded(5 * step, 100 * step) for step in range(7)]
    # 600 waiting of what 2000 ms allow, below 2000 * (2 - 1)/2 * 0.8 = 800; the pace likewise: 20 ms allow 2000.
    assert counts(dynamo(spec(), reactive(ttft_target_s=2.0, itl_target_ms=20)), looks)[-1] == 1
    assert counts(dynamo(spec(), reactive(ttft_target_s=2.0, itl_target_ms=10)), looks)[-1] == 2  # 600 of 1000


@pytest.mark.parametrize("changed", [{"starting": 1}, {"draining": 1}, {"ready": 0}])
def test_nothing_is_asked_while_a_change_is_under_way(changed: dict[str, int]) -> None:
    looks = [loaded(5 * step, 100 * step, **changed) for step in range(9)]
    assert len({target.replicas for target in lead(dynamo(spec(), reactive(ttft_target_s=0.01)), looks)}) == 1


def test_loads_that_explain_no_latency_ask_for_nothing() -> None:
    looks = [loaded(5 * step, 0, ttft_s_sum=50.0 * step, tpot_s_sum=50.0 * step) for step in range(9)]
    assert set(counts(dynamo(spec(), reactive()), looks)) == {2}


def test_the_intervals_result_bounds_the_load_loop_from_below() -> None:
    p = replace(PLAIN, load_based=True, itl_target_ms=16, interval_s=15, start_delay_s=0)
    looks = [seen(now_s, 10 * now_s, ready=3) for now_s in range(0, 31, 5)]
    assert counts(dynamo(spec(), p), looks) == [3] * 7
    few = [
        seen(now_s, now_s, ready=9) for now_s in range(0, 31, 5)
    ]  # would do with one; the load loop takes one a time
    assert counts(dynamo(spec(), p), few) == [9] * 7


def test_video_is_held_and_the_tick_is_that_of_the_quickest_loop() -> None:
    family = Spec(tiers={"pro": tier()}, video=VideoSpec(gpus=1, min=0, max=9, cold_start_s=30))
    scaler = dynamo(family, PLAIN)
    decision, _ = scaler(Seen(now_s=0, gpus=9, tiers={}, video=VideoSeen(ready=3)), None)
    assert decision.video is not None
    assert (decision.video.replicas, scaler.tick_s) == (3, 10.0)
    assert dynamo(family, reactive()).tick_s == 5.0


def test_memory_survives_json() -> None:
    scaler = dynamo(spec(), replace(PLAIN, load_based=True, interval_s=5.0, start_delay_s=0.0))
    memory: Any = None
    for step in range(8):
        _, memory = scaler(loaded(5 * step, 100 * step), memory)
    kind = TypeAdapter(Memory[DynamoState])
    assert kind.validate_json(kind.dump_json(memory)) == memory
