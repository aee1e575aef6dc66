"""How many replicas one tier needs, from the work that arrives. Times in seconds, loads in busy replicas (erlangs).

    load   = work arrived in a window / window               a short and a long window
    trend  = slope between the windows * (cold start + tick) what will have been added when a new replica is ready
    ahead  = what the load is expected to be by then, and error by how much it may exceed that (autoscaling.outlook)
    need   = ahead + backlog/cold start                      backlog: work of held requests and of waiting prefill
    wanted = ceil(need/rho + z*error)                        z follows the share of broken promises
    target = the most that was wanted, each demand fading     at once up, slowly down (autoscaling.cooldown)

Law: with memory and all else equal, more arrived requests of the same mean prompt, more held requests or more waiting
prefill never give fewer replicas; and a history in which every demand is at least as large never has the lower target.
The work of a request comes from the latency model at the mean lengths seen. Ignored: prefix hits, but in arrivals.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass, replace

from autoscaling.cooldown import Demand, faded, remembered
from autoscaling.outlook import Look, Outlook, error, first, forecast, learnt
from autoscaling.parameters import Parameters
from autoscaling.signals import TierSeen, TierSpec
from cluster.batching import SLACK_SHARE
from cluster.cost import slo_batch, work_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a tier needs, and why. `replicas`: its target without the GPU budget. `wanted`: by this look alone.

    The loads, `trend`, `ahead`, `backlog`, `erlangs` (the last two together) and `margin` are in replicas.
    `usd_per_busy_s`: what a replica earns in a second of work. `awake`: a request came within idle_s. `blind`: no
    signal, so these are the last figures.
    """

    replicas: int
    wanted: int
    load_short: float = 0.0
    load_long: float = 0.0
    trend: float = 0.0
    ahead: float = 0.0
    backlog: float = 0.0
    erlangs: float = 0.0
    margin: float = 0.0
    z: float = 0.0
    usd_per_busy_s: float = 0.0
    awake: bool = True
    blind: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Replica-seconds of work that had arrived by then, since the first look."""

    at_s: float
    work_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """A mean, with the number of requests or of tokens that it is worth."""

    value: float
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TierMemory:
    """`context`: tokens of a running sequence, weighed in output tokens. `kept`, `missed`: recent requests, fading.

    `demands`: the oldest first; each wants more than the later ones, or for longer.
    """

    seen: TierSeen
    samples: tuple[Sample, ...]
    outlook: Outlook
    prompt: Mean
    output: Mean
    context: Mean
    kept: float
    missed: float
    z: float
    active_s: float | None
    demands: tuple[Demand, ...]
    need: Need


def need(
    seen: TierSeen | None, memory: TierMemory | None, spec: TierSpec, parameters: Parameters, now_s: float
) -> tuple[Need, TierMemory | None]:
    """The need now, and the memory for the next look. Blind from the start: the minimum, and still no memory."""
    if seen is None:
        return _blind(memory, spec, parameters, now_s)
    before = memory or _first(seen, spec, parameters, now_s)
    after = _learnt(seen, before, parameters, now_s)
    # The mean prompt of before: were it that of now, a crowd of short prompts would make a backlog look smaller.
    prompt, output = before.prompt.value, after.output.value
    context = after.context.value
    batch = slo_batch(spec, prompt, output, context, SLACK_SHARE)
    work = _Work(spec=spec, batch=batch, output_tokens=output, context_tokens=context)
    after = replace(after, samples=_samples(seen, before, work, parameters, now_s))
    found = _figures(after, work, prompt, parameters)
    lead_s = _cold_start_s(seen, spec) + parameters.tick_s
    # Until a whole window was seen the load is not known, and what looks like its growth is only that of the window.
    if now_s - after.samples[0].at_s < parameters.short_s:
        outlook = first(found.load_short, found.trend, now_s)
    else:
        look = Look(at_s=now_s, load=found.load_short, trend=found.trend, mean=0.0)
        outlook = learnt(after.outlook, look, lead_s, parameters)
    after = replace(after, outlook=outlook)
    awake = after.active_s is not None and now_s - after.active_s < spec.idle_s
    least = max(spec.min, int(awake))
    if least == 0:
        found = replace(found, replicas=0, wanted=0, awake=False)
        return found, replace(after, demands=(Demand(wanted=0, until_s=now_s),), need=found)
    wanted = min(spec.max, max(least, found.wanted))
    demand = Demand(wanted=wanted, until_s=_until_s(seen, spec, parameters, now_s))
    demands = remembered(before.demands, demand, parameters, now_s)
    target = min(spec.max, max(faded(each, parameters, now_s) for each in demands))
    found = replace(found, replicas=target, wanted=wanted, awake=awake)
    return found, replace(after, demands=demands, need=found)


def _blind(
    memory: TierMemory | None, spec: TierSpec, parameters: Parameters, now_s: float
) -> tuple[Need, TierMemory | None]:
    """Nobody knows that less would do, so the last target counts as wanted until now."""
    if memory is None:
        return Need(replicas=spec.min, wanted=spec.min, blind=True), None
    last = replace(memory.need, blind=True)
    demand = Demand(wanted=last.replicas, until_s=_until_s(memory.seen, spec, parameters, now_s))
    return last, replace(memory, demands=remembered(memory.demands, demand, parameters, now_s), need=last)


def _first(seen: TierSeen, spec: TierSpec, parameters: Parameters, now_s: float) -> TierMemory:
    """As if what is there had been wanted until now. What arrived before is no load, but tells the lengths."""
    requests = parameters.prior_requests
    prompt = Mean(value=parameters.prompt_prior_tokens, weight=requests)
    output = Mean(value=parameters.output_prior_tokens, weight=requests)
    context = Mean(value=prompt.value + output.value / 2, weight=requests * output.value)
    there = seen.ready + seen.starting
    until_s = max(now_s + parameters.start_s - parameters.calm_s, _until_s(seen, spec, parameters, now_s))
    return TierMemory(
        seen=seen,
        samples=(Sample(at_s=now_s, work_s=0.0),),
        outlook=first(0.0, 0.0, now_s),
        prompt=_mixed(prompt, seen.arrived_prompt_tokens, seen.arrived_requests),
        output=_mixed(output, seen.finished_output_tokens, seen.finished_requests),
        context=_mixed(context, seen.finished_context_token_steps, seen.finished_output_tokens),
        kept=0.0,
        missed=0.0,
        z=parameters.z,
        active_s=now_s if there else None,
        demands=(Demand(wanted=there, until_s=until_s),),
        need=Need(replicas=there, wanted=there),
    )


def _mixed(mean: Mean, total: int, count: int) -> Mean:
    """The mean with `count` more of that total."""
    weight = mean.weight + count
    return Mean(value=(mean.value * mean.weight + total) / weight, weight=weight)


def _older(mean: Mean, least: float, parameters: Parameters, elapsed_s: float) -> Mean:
    """The same mean, which weighs the less, the longer ago; never less than the prior did."""
    return replace(mean, weight=max(least, mean.weight * math.exp(-elapsed_s / parameters.lengths_s)))


def _grown(seen: TierSeen, before: TierSeen, counter: str) -> int:
    """Since the last look. A counter that restarted counts as not grown."""
    return max(0, int(getattr(seen, counter)) - int(getattr(before, counter)))


def _learnt(seen: TierSeen, before: TierMemory, parameters: Parameters, now_s: float) -> TierMemory:
    """Lengths, margin and activity as of now."""
    last, elapsed_s = before.seen, max(0.0, now_s - before.samples[-1].at_s)
    arrived, prompts = _grown(seen, last, "arrived_requests"), _grown(seen, last, "arrived_prompt_tokens")
    finished, outputs = _grown(seen, last, "finished_requests"), _grown(seen, last, "finished_output_tokens")
    steps, requests = _grown(seen, last, "finished_context_token_steps"), parameters.prior_requests
    prompt = _older(before.prompt, requests, parameters, elapsed_s)
    output = _older(before.output, requests, parameters, elapsed_s)
    context = _older(before.context, requests * parameters.output_prior_tokens, parameters, elapsed_s)
    fade = math.exp(-elapsed_s / parameters.attain_s)
    kept = before.kept * fade + _grown(seen, last, "kept")
    missed = before.missed * fade + _grown(seen, last, "missed")
    share = missed / (kept + missed + parameters.doubt_requests)
    busy = (
        arrived + seen.ongoing_requests + seen.held_requests > 0
    )  # what only replicas know of runs on what is left over
    return replace(
        before,
        seen=seen,
        prompt=_mixed(prompt, prompts, arrived),
        output=_mixed(output, outputs, finished),
        context=_mixed(context, steps, outputs),
        kept=kept,
        missed=missed,
        z=_corrected(before.z, share, seen, parameters, elapsed_s),
        active_s=now_s if busy else before.active_s,
    )


def _corrected(z: float, share: float, seen: TierSeen, parameters: Parameters, elapsed_s: float) -> float:
    """Quickly up while more than the target is missed, slowly down while less is.

    While replicas are starting, what is missed is in part being mended, so it counts for less.
    """
    excess = min(1.0, share / parameters.miss_target - 1)
    rate_per_min = parameters.z_fall_per_min
    if excess > 0:
        rate_per_min = parameters.z_rise_per_min * (seen.ready + 1) / (seen.ready + seen.starting + 1)
    return min(parameters.z_max, max(parameters.z_min, z + excess * rate_per_min * elapsed_s / 60))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """Replica-seconds of requests, whose steps are shared by the batch that keeps the promised pace."""

    spec: TierSpec
    batch: int
    output_tokens: float
    context_tokens: float

    def of(self, prompt_tokens: float) -> float:
        return float(work_s(self.spec.cost, self.batch, prompt_tokens, self.output_tokens, self.context_tokens))

    def prefill(self, prompt_tokens: float) -> float:
        return float(work_s(self.spec.cost, self.batch, prompt_tokens, 0.0))


def _samples(
    seen: TierSeen, before: TierMemory, work: _Work, parameters: Parameters, now_s: float
) -> tuple[Sample, ...]:
    """With the work that arrived since the last look, back to where the long window begins."""
    arrived = _grown(seen, before.seen, "arrived_requests")
    prompts = _grown(seen, before.seen, "arrived_prompt_tokens")
    added_s = arrived * work.of(prompts / arrived) if arrived else 0.0
    samples = (*before.samples, Sample(at_s=now_s, work_s=before.samples[-1].work_s + added_s))
    return samples[_base(samples, parameters.long_s) :]


def _base(samples: tuple[Sample, ...], window_s: float) -> int:
    """The latest sample that is at least a window old, else the first."""
    return max(0, bisect_right(samples, samples[-1].at_s - window_s, key=lambda sample: sample.at_s) - 1)


def _load(samples: tuple[Sample, ...], window_s: float, settle_s: float) -> float:
    base, now = samples[_base(samples, window_s)], samples[-1]
    return (now.work_s - base.work_s) / max(now.at_s - base.at_s, settle_s)


def _cold_start_s(seen: TierSeen, spec: TierSpec) -> float:
    return spec.cold_start_s if seen.cold_start_s is None else seen.cold_start_s


def _figures(after: TierMemory, work: _Work, prompt_tokens: float, parameters: Parameters) -> Need:
    """By what was learnt before this look, so that more load now never looks like less to come."""
    seen, spec, outlook = after.seen, work.spec, after.outlook
    cold_start_s = _cold_start_s(seen, spec)
    short = _load(after.samples, parameters.short_s, parameters.settle_s)
    long = _load(after.samples, parameters.long_s, parameters.settle_s)
    trend = backlog = 0.0
    each_s, prefill_s = work.of(prompt_tokens), work.prefill(prompt_tokens)
    if parameters.trend:
        slope = max(0.0, short - long) / ((parameters.long_s - parameters.short_s) / 2)  # between their midpoints
        trend = slope * min(parameters.trend_most_s, cold_start_s + parameters.tick_s)
    if parameters.backlog:
        held_s = seen.held_requests * (each_s - prefill_s)
        waiting_s = seen.waiting_prefill_tokens / prompt_tokens * prefill_s
        backlog = (held_s + waiting_s) / max(parameters.backlog_least_s, cold_start_s)
    ahead = forecast(outlook, short, trend)
    erlangs = ahead + backlog
    margin = 0.0
    if parameters.margin:
        margin = erlangs / parameters.rho - erlangs + after.z * error(outlook, ahead, parameters.doubt_share)
    wanted = math.ceil(erlangs + margin)
    price = spec.price
    usd = (price.input_usd_per_mtok * prompt_tokens + price.output_usd_per_mtok * work.output_tokens) / 1e6
    return Need(
        replicas=wanted,
        wanted=wanted,
        load_short=short,
        load_long=long,
        trend=trend,
        ahead=ahead,
        backlog=backlog,
        erlangs=erlangs,
        margin=margin,
        z=after.z,
        usd_per_busy_s=usd / each_s,
    )


def _until_s(seen: TierSeen, spec: TierSpec, parameters: Parameters, now_s: float) -> float:
    """Of a demand of now, so that it lasts a cold start: an order taken back before it is ready is paid for in vain."""
    return now_s + max(0.0, _cold_start_s(seen, spec) - parameters.calm_s)
