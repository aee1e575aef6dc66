"""A decision survives its line bit for bit, and is taken again from it."""

import json
import math
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaling.parameters import Parameters
from autoscaling.policy import Memory, step
from autoscaling.record import (
    Admission,
    Record,
    Refused,
    Routing,
    Scaling,
    Tick,
    Tiering,
    again,
    differing,
    line,
    outcome,
    parse,
)
from autoscaling.signals import JobSeen, Seen, TierSeen, VideoSeen, spec_of
from cluster.admission import Due, Verdict, decide
from cluster.cost import service
from cluster.errors import ConfigurationError
from cluster.family import Plan, load
from cluster.loads import Ask, Choice, Loads
from cluster.routing import choose
from cluster.tiering import Range, Wish

H200 = load("h200")
SPEC = spec_of(H200)
PRO = service(H200.tiers["pro"], "pro")

numbers = st.floats(allow_nan=True, allow_infinity=True)
amounts = st.floats(0, 1e6)


def scaling(seen: Seen, memory: Memory | None = None) -> Scaling:
    decision, after = step(seen, memory, SPEC, Parameters())
    return Scaling(seen=seen, memory=memory, spec=SPEC, parameters=Parameters(), decision=decision, after=after)


def look(now_s: float = 0.0, requests: int = 0) -> Seen:
    tiers = {
        name: TierSeen(ready=1, arrived_requests=requests, arrived_prompt_tokens=7 * requests) for name in SPEC.tiers
    }
    jobs = (JobSeen(left_gpu_s=60.1, deadline_s=now_s + 1000, value_usd=0.3),)
    return Seen(now_s=now_s, gpus=16, tiers={**tiers, "mini": None}, video=VideoSeen(ready=0, jobs=jobs))


def loads(columns: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> Loads:
    names = [field.name for field in fields(Loads) if field.name != "open"]
    return Loads(**dict(zip(names, columns, strict=True)), open=columns[0] < 1e5)


def admission(best: Choice | None, now_s: float, ttft_s: float, wait_s: float) -> Admission:
    due = Due(now_s=now_s, arrived_s=0.0, ttft_s=ttft_s, tpot_ms=50.0, patience_s=30.0, wait_s=wait_s)
    return Admission(best=best, due=due, verdict=decide(best, due))


def tiering(wish: Wish, plan: Plan | None = None) -> Tiering:
    return Tiering(wish=wish, plan=plan, family=H200, outcome=outcome(wish, plan, H200))


def test_a_line_is_one_json_object_that_says_its_kind() -> None:
    text = line(scaling(look()))
    assert "\n" not in text
    assert list(json.loads(text)) == ["kind", "seen", "memory", "spec", "parameters", "decision", "after"]


def test_a_chain_of_scaling_decisions_is_taken_again() -> None:
    memory: Memory | None = None
    for tick in range(40):
        record = scaling(look(2.0 * tick, 31 * tick), memory)
        text = line(record)
        assert parse(text, 1) == record
        assert not differing([text])
        memory = record.after
    assert memory is not None
    assert list(memory.tiers) == ["ultra", "pro", "turbo"]  # mini was never seen


def test_a_tick_goes_on_from_the_decision_before_it() -> None:
    before = scaling(look())
    after = scaling(look(2.0, 31), before.after)
    last = scaling(look(4.0, 99), after.after)
    ticks = [Tick(seen=each.seen, decision=each.decision) for each in (after, last)]
    assert all(again(tick) == tick for tick in ticks)
    assert not differing([line(before), *map(line, ticks)])
    target = ticks[1].decision.tiers["pro"]
    assert target is not None
    tiers = {**ticks[1].decision.tiers, "pro": replace(target, replicas=target.replicas + 1)}
    other = replace(ticks[1], decision=replace(ticks[1].decision, tiers=tiers))
    assert differing([line(before), line(ticks[0]), line(other)]) == [3]
    with pytest.raises(ConfigurationError, match="line 1: a tick"):
        differing([line(ticks[0])])


def test_a_decision_that_was_another_is_noticed() -> None:
    record = scaling(look())
    video = record.decision.video
    assert video is not None
    changed = replace(record, decision=replace(record.decision, video=replace(video, replicas=video.replicas + 1)))
    assert differing([line(changed)])
    assert again(changed) == record
    assert differing([line(replace(record, after=replace(record.after, targets={})))])


@settings(deadline=None)
@given(
    st.lists(st.lists(amounts, min_size=8, max_size=8), max_size=5),
    st.none() | amounts,
    st.floats(0, 1, exclude_max=True),
    st.booleans(),
)
def test_routing_is_taken_again(rows: list[list[float]], hit: float | None, draw: float, packing: bool) -> None:
    columns = loads(np.array(rows, dtype=float).reshape(-1, 8).T)
    hits = None if hit is None else np.full(len(rows), hit)
    ask = Ask(prompt_tokens=100, expected_output_tokens=50.5, us_per_token=40.0, draw=draw, hit_tokens=hits)
    choice = choose(columns, ask, PRO, 1e6, packing)
    text = line(Routing(loads=columns, ask=ask, service=PRO, now_s=1e6, packing=packing, choice=choice))
    assert not differing([text])
    read = parse(text, 1)
    assert isinstance(read, Routing)
    assert read.loads.kv_tokens.dtype == np.float64
    assert read.loads.open.dtype == np.bool_
    assert read.loads.kv_tokens.tobytes() == columns.kv_tokens.tobytes()


def test_another_choice_is_noticed() -> None:
    columns = loads(np.ones((8, 2)))
    ask = Ask(prompt_tokens=100, expected_output_tokens=50.0, us_per_token=40.0, draw=0.0)
    choice = replace(choose(columns, ask, PRO, 1.0, False), index=7)
    assert differing([line(Routing(loads=columns, ask=ask, service=PRO, now_s=1.0, packing=False, choice=choice))])


choices = st.builds(Choice, st.none() | st.integers(0, 9), amounts, amounts, st.booleans(), st.just("peer"), amounts)


@given(st.none() | choices, amounts, amounts, amounts | st.just(math.inf))
def test_admission_is_taken_again(best: Choice | None, now_s: float, ttft_s: float, wait_s: float) -> None:
    record = admission(best, now_s, ttft_s, wait_s)
    assert not differing([line(record)])
    assert differing([line(replace(record, verdict=Verdict("hold", "for no reason")))])


def test_the_choice_of_a_tier_is_taken_again_and_so_is_its_refusal() -> None:
    served = tiering(Wish(model="gpt-5.2-pro", prompt_tokens=10))
    refused = tiering(Wish(model="gpt-5.2-pro", prompt_tokens=10), Plan(tiers=("mini",)))
    assert isinstance(served.outcome, Range)
    assert isinstance(refused.outcome, Refused)
    assert refused.outcome.message.startswith("model: 'gpt-5.2-pro' is tier pro; the plan allows mini;")
    assert not differing([line(served)])
    assert not differing([line(refused)])
    assert parse(line(served), 1) == served
    assert differing([line(replace(served, outcome=refused.outcome))])


@given(st.lists(numbers, min_size=8, max_size=8))
def test_numbers_keep_every_bit(row: list[float]) -> None:
    columns = loads(np.array([row]).T)
    ask = Ask(prompt_tokens=10**30, expected_output_tokens=row[0], us_per_token=row[1], draw=row[2])
    choice = Choice(None, row[3], row[4], False, "none")
    text = line(Routing(loads=columns, ask=ask, service=PRO, now_s=row[5], packing=True, choice=choice))
    read = parse(text, 1)
    assert isinstance(read, Routing)
    assert line(read) == text
    kept = np.array([read.ask.expected_output_tokens, read.ask.us_per_token, read.ask.draw, read.choice.ttft_s])
    expected = np.array(row[:4])
    assert np.array_equal(kept, expected, equal_nan=True)
    assert np.array_equal(np.signbit(kept[~np.isnan(kept)]), np.signbit(expected[~np.isnan(expected)]))


def edited(record: Record, *path: str, value: object) -> str:
    document = json.loads(line(record))
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(document)


WHOLE = line(scaling(look()))
BAD = [
    ("", "(top): Invalid JSON: EOF while parsing a value"),
    (WHOLE[:-20], "(top): Invalid JSON: EOF while parsing"),
    (WHOLE + WHOLE, "(top): Invalid JSON: trailing characters"),
    ("[]", "(top): Input should be an object"),
    ('{"kind": "weather"}', "(top): Input tag 'weather' found using 'kind' does not match any of the expected tags"),
    ('{"kind": "admission"}', "admission.best: Field required"),
    (edited(scaling(look()), "seen", "gpus", value="16"), "scaling.seen.gpus: Input should be a valid integer"),
    (edited(scaling(look()), "seen", "now_s", value=None), "scaling.seen.now_s: Input should be a valid number"),
    (edited(scaling(look()), "seen", "colour", value=1), "scaling.seen.colour: Unexpected keyword argument"),
    (edited(scaling(look()), "parameters", "rho", value=2.0), "scaling.parameters: Value error, rho is 2;"),
    (
        edited(admission(None, 0.0, 1.0, 0.0), "verdict", "action", value="wait"),
        "admission.verdict.action: Input should be 'dispatch', 'hold', 'postpone' or 'refuse'",
    ),
]


@pytest.mark.parametrize(("text", "fault"), BAD, ids=[fault for _, fault in BAD])
def test_a_bad_line_is_refused_with_its_number_and_place(text: str, fault: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(text, 7)
    assert caught.value.message.startswith(f"line 7: {fault}")
    assert caught.value.message.endswith("; one recorded decision is allowed; take the line out")


def test_a_column_of_something_else_is_refused() -> None:
    columns = loads(np.ones((8, 2)))
    ask = Ask(prompt_tokens=100, expected_output_tokens=50.0, us_per_token=40.0, draw=0.0)
    choice = choose(columns, ask, PRO, 1.0, False)
    record = Routing(loads=columns, ask=ask, service=PRO, now_s=1.0, packing=False, choice=choice)
    with pytest.raises(
        ConfigurationError, match=r"^line 3: routing\.loads\.ongoing\.1: Input should be a valid number"
    ):
        parse(edited(record, "loads", "ongoing", value=[1.0, "many"]), 3)
    with pytest.raises(ConfigurationError, match=r"^line 3: routing\.loads\.weight: Extra inputs are not permitted"):
        parse(edited(record, "loads", "weight", value=[]), 3)
