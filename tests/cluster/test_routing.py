import sys
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.family import Tier, load
from cluster.fleet import Candidate, ReplicaReport
from cluster.routing import Ask, Ranking, order, predict

# turbo of the laptop: TTFT 1 s, TPOT 25 ms; step = 6 + 0.6*B + 0.5*K ms; prefill 400 us/token in chunks of 256
TURBO: Tier = load("laptop").tiers["turbo"]


def report(**given: float) -> ReplicaReport:
    fields: dict[str, float] = {
        "at_s": 100.0,
        "running": 0,
        "waiting": 0,
        "waiting_prefill_tokens": 0,
        "kv_used_tokens": 0,
        "kv_capacity_tokens": 32768,
        "step_ms": 0.0,
        "prefill_us_per_token": 400.0,
    }
    return ReplicaReport(replica_id="any", **(fields | given))  # type: ignore[arg-type]


def candidate(name: str, seen: ReplicaReport | None, ongoing: int = 0, sent: tuple[int, int] = (0, 0)) -> Candidate:
    return Candidate(
        replica_id=name, ongoing_requests=ongoing, report=seen, sent_requests=sent[0], sent_prefill_tokens=sent[1]
    )


def ask(prompt: int = 100, output: int = 100) -> Ask:
    return Ask(prompt_tokens=prompt, expected_output_tokens=output, tier=TURBO)


def ranked(*candidates: Candidate, asked: Ask | None = None, now_s: float = 101.0, seed: int = 0) -> Ranking:
    return order(candidates, asked or ask(), now_s=now_s, rng=Random(seed))


def test_the_prediction_follows_the_formula() -> None:
    seen = report(running=9, waiting=1, waiting_prefill_tokens=400, kv_used_tokens=1500, prefill_us_per_token=200.0)
    latency = predict(candidate("a", seen), seen, ask())
    assert latency is not None
    step = 6 + 0.6 * 11 + 0.5 * (1500 + 500 + 100) / 1000  # B = 9 + 1 + this one
    assert latency.tpot_ms == pytest.approx(step)
    assert latency.ttft_ms == pytest.approx(500 * 0.2 + 2 * step)  # two chunks


def test_a_replica_twice_as_slow_as_the_model_is_predicted_twice_as_slow() -> None:
    slow = report(running=10, step_ms=24.0)  # the model says 6 + 0.6*10 = 12
    model = report(running=10)
    slow_latency, model_latency = (
        predict(candidate("s", slow), slow, ask()),
        predict(candidate("m", model), model, ask()),
    )
    assert slow_latency is not None
    assert model_latency is not None
    assert slow_latency.tpot_ms == pytest.approx(2 * model_latency.tpot_ms)


def test_an_idle_replica_is_not_judged_by_the_batch_it_had() -> None:
    busy, idle = report(running=30, step_ms=24.0), report(running=0, step_ms=24.0)
    assert ranked(candidate("busy", busy), candidate("idle", idle)).ids == ("idle", "busy")


def test_without_a_measured_prefill_the_familys_figure_holds() -> None:
    unmeasured, measured = report(prefill_us_per_token=0.0), report(prefill_us_per_token=400.0)
    assert predict(candidate("u", unmeasured), unmeasured, ask()) == predict(candidate("m", measured), measured, ask())


def test_a_full_batch_costs_the_wait_for_a_place() -> None:
    full = report(running=64, kv_used_tokens=0)
    latency = predict(candidate("a", full), full, ask(output=64))
    assert latency is not None
    step = 6 + 0.6 * 64 + 0.5 * 164 / 1000
    assert latency.ttft_ms == pytest.approx(100 * 0.4 + step + 1 * 64 / 64 * step)


def test_every_token_that_the_cache_cannot_hold_costs_a_millisecond() -> None:
    roomy, tight = report(kv_capacity_tokens=500), report(kv_capacity_tokens=499)  # 100 + 100 + 300 spare
    first, second = predict(candidate("r", roomy), roomy, ask()), predict(candidate("t", tight), tight, ask())
    assert first is not None
    assert second is not None
    assert second.ttft_ms - first.ttft_ms == pytest.approx(1.0)


def test_the_least_loaded_replica_that_keeps_the_slo_goes_first() -> None:
    ranking = ranked(candidate("busy", report(running=20)), candidate("idle", report()))
    assert ranking.ids == ("idle", "busy")
    assert len(ranking.keep) == 2
    assert ranking.method == "predicted"
    # idle: step 6 + 0.6 + 0.1 = 6.7 ms, first token 40 + 6.7 ms: 0.0467 + 0.5 * 6.7/25
    assert ranking.reason == "2 predicted to keep the SLO, lowest score 0.18 first"


def test_what_this_router_sent_since_the_report_counts() -> None:
    told = candidate("told", report(), sent=(20, 2000))
    assert ranked(told, candidate("idle", report())).ids == ("idle", "told")


def test_breaking_the_slo_comes_last_and_behind_replicas_nobody_knows() -> None:
    ranking = ranked(
        candidate("broken", report(running=60)),
        candidate("unknown", None),
        candidate("kept", report(running=2)),
    )
    assert ranking.ids == ("kept", "unknown", "broken")
    assert (ranking.method, len(ranking.keep)) == ("mixed", 1)
    assert "1 without a report younger than 2 s, by power of two choices" in ranking.reason
    assert "1 predicted to miss the SLO" in ranking.reason


def test_a_dead_replica_comes_last() -> None:
    dead = replace(candidate("dead", report()), dead=True)
    ranking = ranked(dead, candidate("broken", report(running=60)), candidate("unknown", None))
    assert ranking.ids == ("unknown", "broken", "dead")
    assert ranking.reason.endswith("; 1 dead, last")
    assert ranked(dead).ids == ("dead",)


def test_old_reports_leave_power_of_two_choices_on_the_local_count() -> None:
    ranking = ranked(candidate("a", report(), ongoing=5), candidate("b", report(running=60), ongoing=1), now_s=102.1)
    assert ranking.ids == ("b", "a")
    assert ranking.method == "two_choices"
    assert ranking.reason == "2 without a report younger than 2 s, by power of two choices"


def test_of_three_the_busiest_never_wins_and_the_idlest_wins_twice_in_three_draws() -> None:
    pool = [candidate("low", None, ongoing=0), candidate("mid", None, ongoing=1), candidate("top", None, ongoing=2)]
    rng = Random(7)
    wins = [order(pool, ask(), now_s=0.0, rng=rng).ids[0] for _ in range(3000)]
    assert wins.count("top") == 0
    assert wins.count("low") / 3000 == pytest.approx(2 / 3, abs=0.05)


def test_equal_replicas_share_the_first_place() -> None:
    pool = [candidate(name, report()) for name in "abc"]
    assert {ranked(*pool, seed=seed).ids[0] for seed in range(30)} == {"a", "b", "c"}


def test_no_replica_is_a_ranking_too() -> None:
    assert ranked() == Ranking(ids=())
    assert (ranked().reason, ranked().method) == ("no replica", "none")


@pytest.mark.parametrize("kv_used_tokens", [10**400, sys.float_info.max])
def test_absurd_numbers_make_a_replica_unknown(kv_used_tokens: float) -> None:
    ranking = ranked(candidate("absurd", report(kv_used_tokens=kv_used_tokens, step_ms=1e308, running=1)))
    assert (ranking.ids, ranking.method) == (("absurd",), "two_choices")


numbers = st.integers() | st.sampled_from([0, 1, 10**400, -(10**400)])
floats = st.floats()
reports = st.builds(
    ReplicaReport,
    replica_id=st.text(max_size=3),
    at_s=floats,
    running=numbers,
    waiting=numbers,
    waiting_prefill_tokens=numbers,
    kv_used_tokens=numbers,
    kv_capacity_tokens=numbers,
    step_ms=floats,
    prefill_us_per_token=floats,
)
candidates = st.builds(
    Candidate,
    replica_id=st.text(max_size=3),
    ongoing_requests=numbers,
    report=st.none() | reports,
    sent_requests=numbers,
    sent_prefill_tokens=numbers,
    dead=st.booleans(),
)
asks = st.builds(Ask, prompt_tokens=numbers, expected_output_tokens=numbers, tier=st.just(TURBO))


@given(st.lists(candidates, max_size=8), asks, floats, floats, st.integers())
def test_any_input_ranks_every_replica_once_and_again_alike(
    pool: list[Candidate], asked: Ask, now_s: float, stale_s: float, seed: int
) -> None:
    ranking = order(pool, asked, now_s=now_s, rng=Random(seed), stale_s=stale_s)
    assert sorted(ranking.ids) == sorted(one.replica_id for one in pool)
    assert ranking == order(pool, asked, now_s=now_s, rng=Random(seed), stale_s=stale_s)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 2000), st.integers(0, 2000))
def test_more_of_everything_never_wins(running: int, more: int, queued: int, more_queued: int) -> None:
    less = candidate("less", report(running=running, waiting_prefill_tokens=queued))
    other = candidate("more", report(running=running + more + 1, waiting_prefill_tokens=queued + more_queued))
    assert ranked(other, less).ids == ("less", "more")
