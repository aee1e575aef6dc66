"""Samples become signals: totals over restarts, sums over gateways, and blindness that says why."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaling.parameters import Parameters
from autoscaling.policy import step
from autoscaling.readings import Count, Fleet, Reading, read
from autoscaling.record import Scaling, differing, line
from autoscaling.series import FORGET_S, SETTLE_S, Look, Memory, Sample
from autoscaling.signals import JobSeen, Spec, TierSeen, spec_of
from cluster.family import load

FAMILY = spec_of(load("h200"))
SPEC = Spec(tiers={"mini": FAMILY.tiers["mini"], "pro": FAMILY.tiers["pro"]}, video=FAMILY.video)
FLEET = Fleet(counts={"mini": Count(ready=2, starting=1), "pro": Count(), "video": Count(ready=1)}, gpus=8)
SAID = {
    "arrivals_total": 0.0,
    "arrived_prompt_tokens_total": 0.0,
    "ongoing_requests": 0.0,
    "held_requests": 0.0,
    "held_prompt_tokens": 0.0,
}
JOB = JobSeen(left_gpu_s=3.0, deadline_s=9.0, value_usd=0.1)


def says(instance: str = "a", at_s: float = 0.0, tier: str = "mini", **values: float) -> tuple[Sample, ...]:
    """A gateway of a tier. Names are without `moray_`; kept and missed are outcomes."""
    found = []
    for name, value in (SAID | values).items():
        labels = {"tier": tier}
        if name in ("kept", "missed"):
            labels, name = labels | {"outcome": name}, "promises_total"
        found.append(Sample(name=f"moray_{name}", labels=labels, instance=instance, value=value, at_s=at_s))
    return tuple(found)


def engine(replica: str, name: str, value: float, instance: str = "r", at_s: float = 0.0) -> Sample:
    labels = {"tier": "mini", "replica": replica}
    return Sample(name=f"moray_{name}", labels=labels, instance=instance, value=value, at_s=at_s)


def looked(*samples: tuple[Sample, ...], now_s: float = 0.0) -> Look:
    quiet = says("a", now_s, "pro")
    return Look(now_s=now_s, samples=(*quiet, *(sample for each in samples for sample in each)))


def heard(*looks: Look, fleet: Fleet = FLEET, jobs: tuple[JobSeen, ...] | None = ()) -> Reading:
    memory: Memory | None = None
    for look in looks:
        reading = read(look, fleet, jobs, memory, SPEC, look.now_s)
        memory = reading.memory
    return reading


def mini(reading: Reading) -> TierSeen:
    seen = reading.seen.tiers["mini"]
    assert seen is not None, reading.flaws
    return seen


def faults(reading: Reading) -> Mapping[str, str]:
    for flaw in reading.flaws:
        assert flaw.fault == "skewed" or reading.seen.tiers.get(flaw.tier) is None
    return {flaw.tier: flaw.fault for flaw in reading.flaws}


def test_every_signal_has_its_series() -> None:
    counted: dict[str, Any] = {
        "arrivals_total": 9,
        "arrived_prompt_tokens_total": 900,
        "finished_total": 5,
        "finished_output_tokens_total": 50,
        "context_token_steps_total": 7000,
        "kept": 4,
        "missed": 1,
        "ttft_seconds_sum": 1.5,
        "tpot_seconds_sum": 0.25,
        "request_seconds_sum": 8.5,
    }
    here: dict[str, Any] = {"ongoing_requests": 3, "held_requests": 1, "held_prompt_tokens": 80}
    engines = (
        engine("x", "waiting_prefill_tokens", 20),
        engine("y", "waiting_prefill_tokens", 5),
    )
    seen = mini(heard(looked(says(**counted, **here), says("b", **counted, **here), engines)))
    assert seen == TierSeen(
        ready=2,
        starting=1,
        arrived_requests=18,
        arrived_prompt_tokens=1800,
        finished_requests=10,
        finished_output_tokens=100,
        finished_context_token_steps=14000,
        kept=8,
        missed=2,
        ongoing_requests=6,
        held_requests=2,
        waiting_prefill_tokens=185,
        ttft_s_sum=3.0,
        tpot_s_sum=0.5,
        duration_s_sum=17.0,
    )


def test_zero_demand_is_what_a_fresh_sample_says() -> None:
    reading = heard(looked(says()))
    assert mini(reading) == TierSeen(ready=2, starting=1)
    assert reading.flaws == ()


Story = list[tuple[str, int, bool]]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 1000), st.booleans()), max_size=30))
def test_totals_are_all_that_was_ever_counted(story: Story) -> None:
    """Gateways count, restart, and are gone for a while; the first look is long ago."""
    counts = dict.fromkeys("abc", 0)
    memory = heard(looked(*(says(name) for name in counts))).memory
    total, now_s = 0, SETTLE_S
    for name, arrived, restarts in story:
        # A restarted gateway that has counted more than before cannot be told from one that went on.
        counts[name] = (counts[name] - 1 if counts[name] else 0) if restarts else counts[name] + arrived
        total += (counts[name] if counts[name] else 0) if restarts else arrived
        now_s += 2.0
        others = says("d", now_s)
        reading = read(
            looked(says(name, now_s, arrivals_total=counts[name]), others, now_s=now_s), FLEET, (), memory, SPEC, now_s
        )
        memory = reading.memory
        assert mini(reading).arrived_requests == total


def test_a_gateway_that_is_gone_keeps_what_it_added() -> None:
    first = looked(says("a", arrivals_total=10), says("b", arrivals_total=5))
    later = looked(says("b", 100.0, arrivals_total=7), now_s=100.0)
    assert mini(heard(first, later)).arrived_requests == 17


def test_a_gateway_seen_a_moment_after_the_first_is_not_a_crowd() -> None:
    """It may be hours old: a loop that starts meets its gateways one after the other."""
    first = looked(says("a", arrivals_total=10))
    meets = looked(says("a", 2.0, arrivals_total=11), says("b", 2.0, arrivals_total=1e6), now_s=2.0)
    later = looked(says("a", 4.0, arrivals_total=11), says("b", 4.0, arrivals_total=1e6 + 3), now_s=4.0)
    assert mini(heard(first, meets)).arrived_requests == 11
    assert mini(heard(first, meets, later)).arrived_requests == 14


def test_a_gateway_that_starts_later_counts_from_zero() -> None:
    later = looked(says("a", 60.0), says("b", 60.0, arrivals_total=8), now_s=60.0)
    assert mini(heard(looked(says()), later)).arrived_requests == 8


def test_a_replica_counts_once_through_however_many_gateways() -> None:
    pages = [(engine("x", "waiting_prefill_tokens", value, via, at_s),) for via, value, at_s in
             (("a", 30, -1.0), ("b", 40, 0.0), ("x", 20, -2.0))]  # fmt: skip
    assert mini(heard(looked(says(), *pages))).waiting_prefill_tokens == 40


def test_a_lost_page_leaves_what_it_said_for_a_while() -> None:
    first = looked(says("a"), says("b", ongoing_requests=5))
    for now_s, ongoing in ((4.0, 5), (8.0, 0)):
        assert mini(heard(first, looked(says("a", now_s), now_s=now_s))).ongoing_requests == ongoing


def test_instances_of_long_ago_are_forgotten() -> None:
    now_s = FORGET_S + 1
    memory = heard(looked(says("a"), says("b")), looked(says("a", now_s), now_s=now_s)).memory
    assert memory is not None
    assert {instance for _, _, instance in memory.series} == {"a"}


@pytest.mark.parametrize(
    ("look", "fault"),
    [
        (Look(now_s=10.0, fault="no route"), "unreachable"),
        (looked(says(at_s=3.9), now_s=10.0), "stale"),
        (looked(says(at_s=15.1), now_s=10.0), "stale"),
        (looked(says(at_s=9.0)[1:], now_s=10.0), "missing"),
        (looked(says(at_s=9.0), says("b", 9.0)[:-1], now_s=10.0), "missing"),
        (looked(now_s=10.0), "contradictory"),
        (looked(says(at_s=9.0, arrivals_total=math.nan), now_s=10.0), "contradictory"),
        (looked(says(at_s=9.0, arrivals_total=math.inf), now_s=10.0), "contradictory"),
        (looked(says(at_s=9.0, finished_total=-1), now_s=10.0), "contradictory"),
        (looked(says(at_s=9.0, arrivals_total=1e300), now_s=10.0), "contradictory"),
    ],
)
def test_what_cannot_be_believed_makes_a_tier_blind(look: Look, fault: str) -> None:
    reading = heard(look)
    assert faults(reading)["mini"] == fault
    assert reading.seen.tiers["mini"] is None
    if fault != "unreachable":
        assert reading.seen.tiers["pro"] is not None
        assert reading.ages_s.keys() == {"pro"}


def test_a_tier_without_replicas_or_gateway_is_missing() -> None:
    idle = replace(FLEET, counts={**(FLEET.counts or {}), "mini": Count()})
    assert faults(heard(looked(), fleet=idle)) == {"mini": "missing"}


def test_a_cluster_that_could_not_be_asked_blinds_everything() -> None:
    reading = heard(looked(says()), fleet=Fleet(counts=None, gpus=8))
    assert faults(reading) == dict.fromkeys(("mini", "pro", "video"), "unreachable")
    assert reading.seen.gpus == 8


def test_more_answers_than_requests_are_not_believed_nor_counted() -> None:
    impossible = looked(says(at_s=2.0, finished_total=500), now_s=2.0)
    after = looked(says(at_s=4.0, finished_total=505, arrivals_total=5), now_s=4.0)
    assert faults(heard(looked(says()), impossible)) == {"mini": "contradictory"}
    assert mini(heard(looked(says()), impossible, after)).finished_requests == 5


def test_answers_to_what_was_there_or_asked_for_elsewhere_are_believed() -> None:
    busy = looked(says(ongoing_requests=200, held_requests=200))
    assert mini(heard(busy, looked(says(at_s=2.0, finished_total=400), now_s=2.0))).finished_requests == 400
    spilled = Look(now_s=2.0, samples=(*says("a", 2.0, "pro", arrivals_total=400), *says(at_s=2.0, finished_total=400)))
    assert mini(heard(looked(says()), spilled)).finished_requests == 400


def test_a_skewed_clock_is_named_and_its_samples_are_used() -> None:
    look = looked(says(at_s=999.0), now_s=1000.0)
    for now_s, named in ((1004.0, {}), (1006.0, dict.fromkeys(("mini", "pro"), "skewed"))):
        reading = read(look, FLEET, (), None, SPEC, now_s)
        assert reading.seen.now_s == now_s
        assert reading.ages_s == {"mini": 1.0, "pro": 0.0}
        assert faults(reading) == named
        assert mini(reading).ready == 2


def test_jobs_that_nobody_says_are_not_none() -> None:
    for jobs in ((), (JOB,)):
        video = heard(looked(says()), jobs=jobs).seen.video
        assert video is not None
        assert (video.ready, video.jobs) == (1, jobs)
    assert faults(heard(looked(says()), jobs=None)) == {"video": "missing"}
    assert heard(looked(says()), jobs=None).seen.video is None


def test_a_blind_look_loses_nothing() -> None:
    dark = Look(now_s=2.0, fault="no route")
    after = looked(says(at_s=4.0, arrivals_total=9), now_s=4.0)
    assert mini(heard(looked(says(arrivals_total=2)), dark, after)).arrived_requests == 9
    assert heard(dark).memory is None


def test_a_decision_from_readings_survives_its_line() -> None:
    seen = heard(looked(says(arrivals_total=9, ttft_seconds_sum=0.1)), jobs=(JOB,)).seen
    decision, after = step(seen, None, SPEC, Parameters())
    record = Scaling(seen=seen, memory=None, spec=SPEC, parameters=Parameters(), decision=decision, after=after)
    assert not differing([line(record)])


garbage = st.builds(
    Sample,
    name=st.sampled_from(["moray_arrivals_total", "moray_promises_total", "up"]),
    labels=st.dictionaries(st.sampled_from(["tier", "outcome", "replica"]), st.sampled_from(["mini", "kept", ""])),
    instance=st.sampled_from(["", "a"]),
    value=st.floats(),
    at_s=st.floats(),
)


@given(st.lists(st.lists(garbage), min_size=1, max_size=2))
def test_no_sample_is_too_strange(pages: list[list[Sample]]) -> None:
    reading = heard(*(Look(now_s=0.0, samples=tuple(page)) for page in pages))
    assert reading.seen.tiers["mini"] is None
