"""The choice over columns; and the columns made from what live replicas report."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.batching import LEAST_TOKENS, SLACK_SHARE
from cluster.cost import Service, service
from cluster.family import Tier, load
from cluster.fleet import Candidate, ReplicaReport
from cluster.loads import Ask, Choice, Loads
from cluster.routing import PACKED_SHARE, attainable, choose, idle, least_correction, reported

# pro of h200: TTFT 2 s, TPOT 50 ms; step = 8.52 + 0.0309*B + 0.0117*K + 11.88*touched; 256 places, 3 M KV tokens
PRO: Service = service(load("h200").tiers["pro"], "pro")
NOW_S = 100.0
COLUMNS = ("sequences", "kv_tokens", "prefill_done_s", "correction", "heard_s", "ongoing")


def loads(*replicas: dict[str, float]) -> Loads:
    idle = {
        "sequences": 0.0,
        "kv_tokens": 0.0,
        "kv_capacity_tokens": 3e6,
        "prefill_tokens": 0.0,
        "prefill_done_s": NOW_S,
        "correction": 1.0,
        "heard_s": NOW_S - 1,
        "ongoing": 0.0,
        "open": 1.0,
    }
    columns = {name: np.array([(idle | one)[name] for one in replicas]) for name in idle}
    return Loads(**(columns | {"open": columns["open"] > 0}))


def busy(sequences: int, **given_fields: float) -> dict[str, float]:
    return {"sequences": sequences, "kv_tokens": 1000.0 * sequences} | given_fields


def ask(
    prompt: int = 1000, output: float = 200, draw: float = 0.5, waited_s: float = 0.0, hits: list[float] | None = None
) -> Ask:
    return Ask(
        prompt_tokens=prompt,
        expected_output_tokens=output,
        us_per_token=60.0,
        draw=draw,
        waited_s=waited_s,
        hit_tokens=None if hits is None else np.array(hits),
    )


def chosen(*replicas: dict[str, float], asked: Ask | None = None, packing: bool = False, of: Service = PRO) -> Choice:
    return choose(loads(*replicas), asked or ask(), of, NOW_S, packing)


def step_of(sequences: int, kv_tokens: float) -> float:
    touched = 1 - (1 - 8 / 128) ** sequences
    return 8.52 + 0.0309 * sequences + 0.0117 * kv_tokens / 1000 + 11.88 * touched


def test_an_idle_replica_answers_after_its_prefill_and_one_step() -> None:
    choice = chosen({})
    step = step_of(1, 1100)  # the prompt and half the output
    assert (choice.index, choice.feasible, choice.method) == (0, True, "predicted")
    assert choice.ttft_s == pytest.approx((60 + step) / 1000)
    assert choice.own_s == pytest.approx(0.060)
    assert choice.tpot_ms == pytest.approx(step)


def test_beside_others_a_prompt_rides_on_their_steps_in_chunks_of_what_the_pace_leaves() -> None:
    step = step_of(41, 41_100)
    chunk = (SLACK_SHARE * 50 - step) / 0.060
    choice = chosen(busy(40, prefill_done_s=NOW_S + 0.3))
    assert choice.ttft_s == pytest.approx(0.3 + (60 + 1000 / chunk * step + step) / 1000)
    assert choice.tpot_ms == pytest.approx(step)


def test_a_chunk_is_never_smaller_than_the_least() -> None:
    step = 2.0 * step_of(41, 41_100)  # 44 ms of 45: 17 tokens would fit
    assert chosen(busy(40, correction=2.0)).ttft_s == pytest.approx((60 + 1000 / LEAST_TOKENS * step + step) / 1000)


def test_an_engine_of_fixed_chunks_is_predicted_with_them() -> None:
    fixed = replace(PRO, chunking="fixed")  # 2048 tokens
    step = step_of(41, 41_100)
    assert chosen(busy(40), of=fixed).ttft_s == pytest.approx((60 + 1000 / 2048 * step + step) / 1000)


def test_a_measured_replica_is_predicted_as_slow_as_it_is() -> None:
    assert chosen(busy(10, correction=1.5)).tpot_ms == pytest.approx(1.5 * chosen(busy(10)).tpot_ms)


def test_beyond_the_last_place_a_request_waits_until_enough_have_finished() -> None:
    step = step_of(256, 259_100)
    chunk = (SLACK_SHARE * 50 - step) / 0.060
    choice = chosen(busy(258), asked=ask(output=200))
    # 259 with this one: 3 must finish, and every 200/256 steps one does
    assert choice.ttft_s == pytest.approx((60 + 1000 / chunk * step + step + 3 * 200 / 256 * step) / 1000)
    assert choice.feasible


def test_where_kv_is_short_a_request_waits_for_it_and_the_promise_counts_as_broken() -> None:
    # 21 sequences to their last token: 20 * 1000 + 1100 + 21 * 100 = 23,200
    room, short = busy(20, kv_capacity_tokens=23_200), busy(20, kv_capacity_tokens=23_199)
    assert chosen(room).feasible
    assert not chosen(short).feasible
    assert chosen(short).ttft_s > chosen(room).ttft_s
    assert chosen(short, room).index == 1


def test_where_answers_vary_those_that_run_are_taken_to_go_on_for_longer() -> None:
    varied = replace(ask(), left_tokens=500.0)
    assert chosen(busy(20, kv_capacity_tokens=31_600), asked=varied).feasible  # 20 * 1000 + 1100 + 21 * 500
    assert not chosen(busy(20, kv_capacity_tokens=31_599), asked=varied).feasible


@pytest.mark.parametrize(
    "broken",
    [
        {"prefill_done_s": NOW_S + 2.0},  # the first token after 2 s
        busy(20, correction=2.5),  # 2.5 * 17.6 ms and the least chunk: over 50 ms
        busy(20, kv_capacity_tokens=20_000),
    ],
)
def test_a_replica_that_keeps_all_goes_before_one_that_breaks_a_promise(broken: dict[str, float]) -> None:
    kept = busy(60, prefill_done_s=NOW_S + 0.5)
    assert chosen(broken, kept).index == 1
    alone = chosen(broken)
    assert (alone.index, alone.feasible, alone.method) == (0, False, "predicted")


def test_where_all_break_a_promise_the_one_that_breaks_it_least_goes() -> None:
    late = [{"prefill_done_s": NOW_S + seconds} for seconds in (9.0, 3.0, 6.0)]
    assert chosen(*late) == replace_index(chosen(late[1]), 1)


def test_a_request_that_has_waited_fits_only_where_the_rest_of_the_promise_is_kept() -> None:
    hurried = replace(PRO, ttft_s=1.0)  # 0.1 s is left after 0.9 s
    first_s = chosen({}, of=hurried).ttft_s
    brim, over = (busy(0, prefill_done_s=NOW_S + 0.1 - first_s + more_s) for more_s in (-1e-6, 1e-6))
    assert chosen(brim, asked=ask(waited_s=0.9), of=hurried).feasible
    assert not chosen(over, asked=ask(waited_s=0.9), of=hurried).feasible
    assert chosen(over, of=hurried).feasible
    assert chosen(over, asked=ask(waited_s=0.9), of=hurried).ttft_s == chosen(over, of=hurried).ttft_s  # from now
    assert chosen(over, brim, asked=ask(waited_s=0.9), of=hurried).index == 1


def test_packing_leaves_its_part_of_the_promise_to_one_that_has_waited_too() -> None:
    replicas = [busy(15), {}]
    assert chosen(*replicas, packing=True).index == 0
    assert chosen(*replicas, asked=ask(waited_s=PACKED_SHARE * PRO.ttft_s), packing=True).index == 1


def test_how_far_a_promise_breaks_counts_from_the_arrival() -> None:
    slow, later = busy(20, correction=3.0), {"prefill_done_s": NOW_S + 1.5}  # 55 of 50 ms; 1.6 of 2 s
    assert not chosen(slow).feasible
    assert chosen(later).feasible
    assert chosen(slow, later, asked=ask(waited_s=0.5)).index == 1  # 0.1 s late
    assert chosen(slow, later, asked=ask(waited_s=1.8)).index == 0  # 1.4 s late instead of 0.5 s


def replace_index(choice: Choice, index: int) -> Choice:
    return replace(choice, index=index)


def test_a_cached_prefix_is_prefill_that_is_not_done() -> None:
    asked = ask(prompt=8000, hits=[0, 7168])
    choice = chosen({}, {"prefill_done_s": NOW_S + 0.2}, asked=asked)
    assert choice.index == 1
    assert choice.ttft_s == pytest.approx(0.2 + (832 * 0.060 + step_of(1, 8100)) / 1000)


def test_of_a_prompt_that_is_cached_whole_the_last_token_is_computed() -> None:
    assert chosen({}, asked=ask(hits=[1024])).ttft_s == pytest.approx((0.060 + step_of(1, 1100)) / 1000)


def test_a_prefix_is_worth_a_longer_wait_since_the_next_wait_for_its_prefill_too() -> None:
    asked = ask(prompt=8000, hits=[0, 7168])  # 430 ms less work; 600 ms longer to wait
    assert chosen({}, {"prefill_done_s": NOW_S + 0.6}, asked=asked).index == 1
    assert chosen({}, {"prefill_done_s": NOW_S + 0.9}, asked=asked).index == 0


def test_while_the_tier_scales_in_the_fullest_that_still_fits_goes_first() -> None:
    replicas = [busy(5), busy(15), {}, busy(12, prefill_done_s=NOW_S + 3)]
    assert chosen(*replicas).index == 2
    assert chosen(*replicas, packing=True).index == 1


def test_packing_leaves_a_part_of_each_promise_unused() -> None:
    brim = busy(15, prefill_done_s=NOW_S + PACKED_SHARE * PRO.ttft_s)
    assert chosen(brim).feasible
    assert chosen(brim, busy(5), packing=True).index == 1
    assert chosen(brim, packing=True).index == 0  # better full than refused


def test_a_closed_replica_gets_nothing() -> None:
    assert chosen({"open": 0}, busy(50)).index == 1
    assert chosen({"open": 0}) == Choice(None, math.inf, math.inf, False, "none")
    assert chosen() == Choice(None, math.inf, math.inf, False, "none")


def test_silence_for_two_seconds_leaves_the_choice_to_two_draws() -> None:
    silent = {"heard_s": NOW_S - 2.1}
    choice = chosen(silent | {"ongoing": 5}, silent | {"ongoing": 1})
    # nothing is known, so nothing is refused or held for it
    assert choice == Choice(1, PRO.ttft_s, PRO.tpot_ms, True, "two_choices")
    assert chosen(silent).index == 0


def test_a_silent_replica_goes_after_one_that_keeps_all_and_before_one_that_does_not() -> None:
    silent, kept, broken = {"heard_s": 0.0}, busy(60), {"prefill_done_s": NOW_S + 5}
    assert chosen(silent, kept, broken).index == 1
    assert chosen(silent, broken).index == 0


@pytest.mark.parametrize("column", COLUMNS[:4])
def test_a_replica_whose_numbers_make_no_sense_counts_as_silent(column: str) -> None:
    choice = chosen({column: math.nan})
    assert (choice.index, choice.method) == (0, "two_choices")


def test_of_three_silent_ones_the_busiest_never_goes_and_the_idlest_in_two_of_three_draws() -> None:
    pool = [{"heard_s": 0.0, "ongoing": float(count)} for count in range(3)]
    wins = [chosen(*pool, asked=ask(draw=(k + 0.5) / 600)).index for k in range(600)]
    assert (wins.count(0), wins.count(1), wins.count(2)) == (400, 200, 0)


def test_equal_replicas_are_drawn_alike() -> None:
    wins = [chosen({}, {}, {}, asked=ask(draw=(k + 0.5) / 30)).index for k in range(30)]
    assert [wins.count(index) for index in range(3)] == [10, 10, 10]


counts = st.integers(0, 400).map(float)
states = st.builds(
    lambda sequences, context, ahead_s: {
        "sequences": sequences,
        "kv_tokens": sequences * context,
        "prefill_done_s": NOW_S + ahead_s,
        "kv_capacity_tokens": 300_000.0,
    },
    counts,
    st.floats(1, 4000),
    st.floats(-1, 5),
)
asks = st.builds(ask, st.integers(1, 100_000), st.floats(1, 4000), st.floats(0, 1, exclude_max=True))
services = st.sampled_from([PRO, replace(PRO, chunking="fixed")])


def worth(choice: Choice) -> tuple[bool, float, float]:
    return (not choice.feasible, choice.ttft_s, choice.tpot_ms)


@given(states, asks, services, st.sampled_from(["sequences", "kv_tokens", "prefill_done_s"]), st.floats(0, 500))
def test_more_load_never_looks_better(
    state: dict[str, float], asked: Ask, of: Service, column: str, more: float
) -> None:
    added = math.floor(more) if column == "sequences" else more
    light, heavy = (
        chosen(state, asked=asked, of=of),
        chosen(state | {column: state[column] + added}, asked=asked, of=of),
    )
    assert light.feasible or not heavy.feasible
    assert light.ttft_s <= heavy.ttft_s + 1e-9
    assert light.tpot_ms <= heavy.tpot_ms + 1e-9


@given(states, asks, services, counts, st.floats(0, 1e5), st.floats(0.01, 5))
def test_of_two_the_strictly_less_loaded_is_chosen(
    state: dict[str, float], asked: Ask, of: Service, sequences: float, kv: float, ahead_s: float
) -> None:
    heavy = state | {
        "sequences": state["sequences"] + sequences,
        "kv_tokens": state["kv_tokens"] + kv,
        "prefill_done_s": max(NOW_S, state["prefill_done_s"]) + ahead_s,
    }
    assert chosen(heavy, state, asked=asked, of=of).index == 1


@given(st.lists(states, min_size=1, max_size=6), asks, st.booleans())
def test_the_choice_keeps_its_promise_wherever_any_replica_can(
    replicas: list[dict[str, float]], asked: Ask, packing: bool
) -> None:
    choice = chosen(*replicas, asked=asked, packing=packing)
    alone = [chosen(one, asked=asked) for one in replicas]
    assert choice.feasible == any(one.feasible for one in alone)
    assert choice.index is not None
    assert worth(choice) == worth(alone[choice.index])
    assert choice == chosen(*replicas, asked=asked, packing=packing)


columns = st.lists(st.tuples(*[st.floats()] * 9, st.floats(), st.booleans()), max_size=6)


extremes = st.sampled_from([0.0, 1e-320, 1.0, 1e300]) | st.floats(0, 1e300)


@given(columns, st.integers(1, 10**9), extremes, extremes, st.tuples(st.booleans(), st.booleans()), services)
def test_no_load_makes_it_raise(
    rows: list[tuple[float, ...]], prompt: int, output: float, us: float, flags: tuple[bool, bool], of: Service
) -> None:
    table = np.array(rows, dtype=float).reshape(-1, 11).T
    names = (*COLUMNS, "kv_capacity_tokens", "prefill_tokens")
    seen = Loads(**dict(zip(names, table, strict=False)), open=table[10] > 0)
    hits = table[9] if flags[0] else None
    asked = Ask(prompt_tokens=prompt, expected_output_tokens=output, us_per_token=us, draw=0.99, hit_tokens=hits)
    choice = choose(seen, asked, of, NOW_S, flags[1])
    assert (choice.index is None) == (not seen.open.any())
    assert choice.index is None or seen.open[choice.index]


# turbo of the laptop, alive: TTFT 1 s, TPOT 25 ms; step = 6 + 0.6*B + 0.5*K ms; prefill 400 us/token in chunks of 256
TURBO_TIER: Tier = load("laptop").tiers["turbo"]
TURBO = service(TURBO_TIER, "turbo", chunking="fixed")


def report(**given_fields: float) -> ReplicaReport:
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
    return ReplicaReport(replica_id="any", **(fields | given_fields))  # type: ignore[arg-type]


def candidate(name: str, seen: ReplicaReport | None, ongoing: int = 0, sent: tuple[int, int] = (0, 0)) -> Candidate:
    return Candidate(
        replica_id=name, ongoing_requests=ongoing, report=seen, sent_requests=sent[0], sent_prefill_tokens=sent[1]
    )


def asked_live(prompt: int = 100, output: int = 100, draw: float = 0.5, waited_s: float = 0.0) -> Ask:
    return Ask(
        prompt_tokens=prompt, expected_output_tokens=output, us_per_token=400.0, draw=draw, waited_s=waited_s
    )  # fmt: skip


def live(*candidates: Candidate, asked: Ask | None = None, now_s: float = 100.0, of: Service = TURBO) -> Choice:
    seen, ask = reported(candidates, asked or asked_live(), of)
    return choose(seen, ask, of, now_s, False)


def test_a_report_is_predicted_by_the_formula() -> None:
    seen = report(running=9, waiting=1, waiting_prefill_tokens=400, kv_used_tokens=1500, prefill_us_per_token=200.0)
    before = 6 + 0.6 * 9 + 0.5 * 1.5
    step = 6 + 0.6 * 11 + 0.5 * (1500 + 400 + 150) / 1000  # B = 9 + 1 + this one
    queued, own = 400 * 0.2 + 400 / 256 * before, 100 * 0.2 + 100 / 256 * step
    choice = live(candidate("a", seen))
    assert choice.feasible
    assert choice.tpot_ms == pytest.approx(step)
    assert choice.ttft_s == pytest.approx((queued + own + step) / 1000)


def test_what_was_queued_when_it_was_reported_is_computed_as_time_passes() -> None:
    behind = candidate("behind", report(waiting=1, waiting_prefill_tokens=1000))
    firsts_s = [live(behind, now_s=100 + later_s).ttft_s for later_s in (0.0, 0.3, 0.9)]
    assert [firsts_s[0] - firsts_s[1], firsts_s[0] - firsts_s[2]] == pytest.approx([0.3, 0.4])


def test_a_replica_twice_as_slow_as_the_model_goes_after_one_that_is_not() -> None:
    slow = report(running=10, step_ms=24.0)  # the model says 6 + 0.6*10 = 12
    assert live(candidate("slow", slow), candidate("model", report(running=10))).index == 1


def test_an_idle_replica_is_not_judged_by_the_batch_it_had() -> None:
    busy_one, idle_one = report(running=25, step_ms=21.0), report(running=0, step_ms=24.0)
    assert live(candidate("busy", busy_one), candidate("idle", idle_one)).index == 1


def test_a_prompt_costs_what_the_middle_replica_measured_and_otherwise_the_familys_figure() -> None:
    pool = [candidate(str(us), report(prefill_us_per_token=us)) for us in (0.0, 900.0, 500.0, 600.0)]
    assert reported(pool, asked_live(), TURBO)[1].us_per_token == 600
    for unmeasured in ([], [candidate("new", None)], [candidate("idle", report(prefill_us_per_token=0.0))]):
        assert reported(unmeasured, asked_live(), TURBO)[1].us_per_token == 400


def test_what_was_sent_since_the_report_counts() -> None:
    sent = replace(candidate("told", report(), ongoing=3, sent=(3, 300)), sent_done_s=100.5)
    (seen, _), choice = reported([sent], asked_live(), TURBO), live(sent)
    assert (seen.sequences[0], seen.kv_tokens[0], seen.prefill_tokens[0]) == (3, 300 + 3 * 50, 300)
    assert choice.ttft_s - choice.own_s - choice.tpot_ms / 1000 == pytest.approx(0.5)
    assert live(sent, candidate("idle", report())).index == 1


def test_what_has_finished_since_the_report_is_gone_but_never_what_is_ongoing_from_here() -> None:
    ended = replace(candidate("a", report(running=5, kv_used_tokens=900)), ended_requests=2, ended_kv_tokens=300)
    seen, _ = reported([ended, replace(ended, ongoing_requests=4)], asked_live(), TURBO)
    assert (seen.sequences.tolist(), seen.kv_tokens.tolist()) == ([3, 4], [600, 600])
    assert seen.correction.tolist() == [1, 1]


def test_a_replica_that_takes_nothing_is_not_chosen() -> None:
    closed = replace(candidate("closed", report()), open=False)
    assert live(closed, candidate("busy", report(running=60))).index == 1
    assert live(closed).index is None


def test_old_reports_leave_power_of_two_choices_on_the_local_count() -> None:
    choice = live(candidate("a", report(), ongoing=5), candidate("b", report(running=60), ongoing=1), now_s=102.1)
    assert (choice.index, choice.method, choice.feasible) == (1, "two_choices", True)


@pytest.mark.parametrize("absurd", [{"step_ms": 1e308, "running": 1}, {"waiting_prefill_tokens": sys.float_info.max}])
def test_absurd_numbers_make_a_replica_unknown(absurd: dict[str, float]) -> None:
    choice = live(candidate("absurd", report(**absurd)))
    assert (choice.index, choice.method) == (0, "two_choices")


def test_where_an_idle_replica_keeps_the_pace_it_is_what_was_promised() -> None:
    assert attainable(TURBO, 1.0) is TURBO  # 2 * 6.6 of 25 ms
    assert attainable(TURBO, 3.0).tpot_ms == pytest.approx(2 * 3 * 6.6)


@pytest.mark.parametrize("absurd", [math.nan, math.inf, -1.0, 0.0])
def test_an_absurd_correction_leaves_the_promise(absurd: float) -> None:
    assert attainable(TURBO, absurd) is TURBO


def test_a_slow_machine_takes_more_than_one_request() -> None:
    slow = candidate("slow", report(running=1, step_ms=5 * 6.6))
    seen, ask = reported([slow], asked_live(), TURBO)
    assert least_correction(seen) == pytest.approx(5)
    assert not choose(seen, ask, TURBO, 100.0, False).feasible
    assert choose(seen, ask, attainable(TURBO, least_correction(seen)), 100.0, False).feasible


def test_only_open_replicas_that_were_heard_of_tell_how_slow_the_machine_is() -> None:
    slow, worse = report(running=1, step_ms=5 * 6.6), report(running=1, step_ms=9 * 6.6)
    quick = replace(candidate("quick", report(running=1, step_ms=6.6)), open=False)
    seen, _ = reported(
        [candidate("slow", slow), candidate("worse", worse), quick, candidate("new", None)], ask(), TURBO
    )
    assert least_correction(seen) == pytest.approx(5)
    assert least_correction(reported([candidate("new", None)], ask(), TURBO)[0]) == 1


def test_idle_ones_have_nothing_to_do_and_take_requests() -> None:
    seen = idle(loads(busy(1), {}, {"open": 0}))
    assert seen is not None
    assert seen.open.tolist() == [False, True, False]
    assert idle(loads(busy(1), {"open": 0})) is None


numbers = st.integers(0, 10**300) | st.integers(0, 1000)
floats = st.floats()
candidates = st.builds(
    Candidate,
    replica_id=st.text(max_size=3),
    ongoing_requests=numbers,
    report=st.none()
    | st.builds(
        ReplicaReport,
        replica_id=st.just("any"),
        at_s=floats | st.floats(99, 101),
        running=numbers,
        waiting=numbers,
        waiting_prefill_tokens=numbers,
        kv_used_tokens=numbers,
        kv_capacity_tokens=numbers,
        step_ms=floats,
        prefill_us_per_token=floats,
    ),
    sent_requests=numbers,
    sent_prefill_tokens=numbers,
    sent_done_s=floats,
    ended_requests=numbers,
    ended_kv_tokens=numbers,
    open=st.booleans(),
)
live_asks = st.builds(asked_live, numbers, numbers, st.floats(0, 1, exclude_max=True))


@given(st.lists(candidates, max_size=8), live_asks, floats | st.floats(99, 103))
def test_whatever_is_reported_an_open_replica_is_found_and_again_the_same(
    pool: list[Candidate], asked: Ask, now_s: float
) -> None:
    choice = live(*pool, asked=asked, now_s=now_s)
    assert (choice.index is None) == (not any(one.open for one in pool))
    assert choice.index is None or pool[choice.index].open
    again = live(*pool, asked=asked, now_s=now_s)
    assert (choice.index, choice.feasible, choice.method) == (again.index, again.feasible, again.method)
    seen, _ = reported(pool, asked, TURBO)
    assert attainable(TURBO, least_correction(seen)).tpot_ms >= TURBO.tpot_ms


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 2000), st.integers(0, 2000))
def test_more_of_everything_never_wins(running: int, more: int, queued: int, more_queued: int) -> None:
    less = candidate("less", report(running=running, waiting_prefill_tokens=queued))
    other = candidate("more", report(running=running + more + 1, waiting_prefill_tokens=queued + more_queued))
    assert live(other, less).index == 1
