"""What the series of gateways and replicas have added up to, over restarts of their processes.

Every process counts from its own start, so running totals are kept here: a tier's counters grow by what each of its
series has grown. A fall is a restart: all that the new process counted is new. What a process that is gone had counted
stays. A value counts until it is STALE_S old, though its process was not reached in this look.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

Key = tuple[str, tuple[tuple[str, str], ...], str]  # name, labels, and the instance of what is not a replica's

STALE_S = 6.0
SKEW_S = 5.0
SETTLE_S = 15.0  # a gateway first heard of so soon after the first look may be old: what it has counted is no news
FORGET_S = 3600.0
LARGEST = 2.0**53  # a counter beyond it would no longer grow by one
SLACK_REQUESTS = 20  # pages of several processes are not of one instant

PROMISES = "moray_promises_total"
COUNTERS = {
    "moray_arrivals_total": "arrived_requests",
    "moray_arrived_prompt_tokens_total": "arrived_prompt_tokens",
    "moray_finished_total": "finished_requests",
    "moray_finished_output_tokens_total": "finished_output_tokens",
    "moray_context_token_steps_total": "finished_context_token_steps",
    "moray_ttft_seconds_sum": "ttft_s_sum",
    "moray_tpot_seconds_sum": "tpot_s_sum",
    "moray_request_seconds_sum": "duration_s_sum",
}
GAUGES = {
    "moray_ongoing_requests": "ongoing_requests",
    "moray_held_requests": "held_requests",
    "moray_held_prompt_tokens": "waiting_prefill_tokens",
    "moray_waiting_prefill_tokens": "waiting_prefill_tokens",
}
OF_REPLICAS = ("moray_waiting_prefill_tokens",)
NAMES = (*COUNTERS, PROMISES, *GAUGES)
# A gateway says these of every tier from its start on; the others are there once something has ended.
REQUIRED = (
    *("moray_arrivals_total", "moray_arrived_prompt_tokens_total"),
    *("moray_ongoing_requests", "moray_held_requests", "moray_held_prompt_tokens"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One value of one series of one exposition (`instance`), taken at `at_s` on the clock of the look."""

    name: str
    labels: Mapping[str, str]
    instance: str
    value: float
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Everything that a source knew. `now_s`: on the source's clock, which need not be ours. `fault`: why there is

    nothing, in words.
    """

    now_s: float
    samples: tuple[Sample, ...] = ()
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Last:
    """A series' last value, `at_s` on the source's clock."""

    value: float
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """`first_s`: of the first look, on the source's clock. `totals`: by tier and counter."""

    first_s: float
    series: Mapping[Key, Last] = field(default_factory=dict)
    totals: Mapping[tuple[str, str], float] = field(default_factory=dict)


class View:
    """The last values of one tier, or of all."""

    def __init__(self, tier: str | None, memory: Memory | None, now_s: float) -> None:
        self.tier = tier or ""
        series = {} if memory is None else memory.series
        mine = {key: last for key, last in series.items() if tier is None or ("tier", tier) in key[1]}
        self.gateways = {key: last for key, last in mine.items() if key[0] not in OF_REPLICAS}
        self._mine = mine
        self._now_s = now_s

    def fresh(self, last: Last) -> bool:
        return -SKEW_S <= self._now_s - last.at_s <= STALE_S

    def last(self, name: str) -> list[float]:
        return [last.value for key, last in self._mine.items() if key[0] == name]

    def sum(self, name: str) -> float:
        return sum(last.value for key, last in self._mine.items() if key[0] == name and self.fresh(last))

    @property
    def age_s(self) -> float:
        return max(0.0, *(self._now_s - last.at_s for last in self.gateways.values() if self.fresh(last)))

    def missing(self) -> list[str]:
        """Names that a gateway that is heard does not say of this tier."""
        said = {(key[0], key[2]) for key, last in self.gateways.items() if self.fresh(last)}
        return [name for name in REQUIRED for instance in {each for _, each in said} if (name, instance) not in said]


def _key(sample: Sample) -> Key:
    """Pages of replicas may come through several gateways."""
    labels = tuple(sorted(sample.labels.items()))
    merged = sample.name in OF_REPLICAS and "replica" in sample.labels
    return sample.name, labels, "" if merged else sample.instance


def _newest(samples: Iterable[Sample], wrong: dict[str, str]) -> dict[Key, Sample]:
    """One sample per series. Values that cannot be are left out, and named in `wrong`, by tier."""
    newest: dict[Key, Sample] = {}
    for sample in samples:
        tier = sample.labels.get("tier")
        if tier is None or sample.name not in NAMES or not math.isfinite(sample.at_s):
            continue
        if not 0 <= sample.value <= LARGEST:  # nor is it true of NaN
            wrong[tier] = f"{sample.name} of {sample.instance} is {sample.value:g}"
            continue
        key = _key(sample)
        if key not in newest or sample.at_s >= newest[key].at_s:
            newest[key] = sample
    return newest


def taken(look: Look, memory: Memory | None) -> tuple[Memory, dict[str, str]]:
    """The memory with this look, and what is wrong, by tier. What contradicts itself adds nothing to the totals."""
    before = memory or Memory(first_s=look.now_s)
    wrong: dict[str, str] = {}
    newest = _newest(look.samples, wrong)
    known = {key[2] for key in before.series}
    young = memory is not None and look.now_s - before.first_s < SETTLE_S
    grown: dict[tuple[str, str], float] = {}
    for key, sample in newest.items():
        counter = _counter(sample)
        if counter is not None and not (young and key[2] not in known):
            last = before.series.get(key)
            less = 0.0 if last is None or sample.value < last.value else last.value
            grown[counter] = grown.get(counter, 0.0) + sample.value - less
    if memory is not None:
        wrong |= _impossible(grown, View(None, before, look.now_s))
    totals = dict(before.totals)
    for (tier, name), growth in grown.items():
        if tier not in wrong:
            totals[tier, name] = totals.get((tier, name), 0.0) + growth
    series = {key: last for key, last in before.series.items() if look.now_s - last.at_s < FORGET_S}
    series |= {key: Last(value=sample.value, at_s=sample.at_s) for key, sample in newest.items()}
    return replace(before, series=series, totals=totals), wrong


def _counter(sample: Sample) -> tuple[str, str] | None:
    """Tier and field of TierSeen that a series counts for."""
    if sample.name == PROMISES:
        outcome = sample.labels.get("outcome", "")
        return (sample.labels["tier"], outcome) if outcome in ("kept", "missed") else None
    name = COUNTERS.get(sample.name)
    return None if name is None else (sample.labels["tier"], name)


def _impossible(grown: Mapping[tuple[str, str], float], before: View) -> dict[str, str]:
    """Tiers that have finished far more than all that had arrived anywhere: requests may be spilled."""
    arrived = sum(count for (_, name), count in grown.items() if name == "arrived_requests")
    there = sum(before.last("moray_ongoing_requests")) + sum(before.last("moray_held_requests"))
    return {
        tier: f"{count:g} finished, but only {arrived:g} arrived and {there:g} were there"
        for (tier, name), count in grown.items()
        if name == "finished_requests" and count > 2 * (arrived + there) + SLACK_REQUESTS
    }
