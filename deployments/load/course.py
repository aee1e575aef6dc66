"""What is sent: a trace, a synthetic mix or a scenario becomes requests, orders of videos and actions, each with its
second of the run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cluster.errors import ConfigurationError
from cluster.synthetic import Lengths, poisson
from cluster.workload import Floats, Workload, assign_tenants, merge, window
from deployments.load.actions import Acted
from deployments.load.options import Options
from deployments.load.plan import Request, requests
from deployments.load.scenario import Rate, Scenario, Stream
from deployments.load.videos import Order
from deployments.simulate_work import workload

Listed = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    requests: tuple[Request, ...]
    orders: tuple[Order, ...]
    actions: tuple[Acted, ...]


def course(asked: Options, work: Workload, listed: Listed) -> Plan:
    """`listed`: what the server says of its models. Raises ConfigurationError."""
    work = _named(assign_tenants(work, asked.tenants, asked.work.seed), asked, listed)
    planned = tuple(requests(work, asked.speed, _shares(asked, listed), asked.work.seed))
    actions = asked.scenario.actions if asked.scenario else ()
    end_s = asked.work.duration_s or float("inf")
    return Plan(
        requests=planned,
        orders=_orders(asked, planned),
        actions=tuple(
            Acted(name=one.name, do=one.do, due_s=one.at_s / asked.speed, ran=one.name in asked.commands)
            for one in actions
            if one.at_s < end_s
        ),
    )


def work(asked: Options) -> Workload:
    """In its own time and with its own names. Raises ConfigurationError where a trace is missing or wrong."""
    made = asked.synthetic
    if asked.scenario is not None:
        return _streams(asked.scenario, asked)
    if made is None:
        return workload(asked.work)
    prompt, output = Lengths(median_tokens=made.prompt_tokens), Lengths(median_tokens=made.output_tokens)
    rate_rps = made.rate_rps * asked.work.scale
    return poisson(rate_rps, asked.work.duration_s or 0.0, prompt, output, asked.work.seed, model="")


def _streams(scenario: Scenario, asked: Options) -> Workload:
    if not scenario.streams:
        return workload(asked.work)  # of no traces: none
    parts = [_stream(stream, scenario, asked, index) for index, stream in enumerate(scenario.streams)]
    whole = merge(*parts)
    return window(whole, 0.0, asked.work.duration_s) if asked.work.duration_s and len(whole) else whole


def _stream(stream: Stream, scenario: Scenario, asked: Options, index: int) -> Workload:
    """Poisson at rate 1, on a clock that runs as the stream's rate does."""
    rate = Rate(stream.rps, scenario.duration_s, asked.work.scale)
    prompt, output = (Lengths(median_tokens=one.median, sigma=one.sigma) for one in (stream.prompt, stream.output))
    made = poisson(1.0, rate.expected, prompt, output, asked.work.seed + index, model=stream.model)
    return replace(made, arrival_s=rate.moments(made.arrival_s))


def _named(work: Workload, asked: Options, listed: Listed) -> Workload:
    """Tiers become model names. Other names of traces are the server's to judge; a scenario's must be served."""
    of_tier = {model["tier"]: model["id"] for model in reversed(listed) if "tier" in model}
    known = {model["id"] for model in listed} | set(asked.names.values()) | {""}
    names = tuple(asked.names.get(name, of_tier.get(name, name)) for name in work.models)
    for name in names if asked.scenario is not None and listed else ():
        if name not in known:
            raise ConfigurationError(
                f"--scenario: model {name!r}; {', '.join(sorted(known - {''}))} are served; add --map {name}=MODEL"
            )
    return replace(work, models=names)


def _shares(asked: Options, listed: Listed) -> dict[str, float]:
    """Of the models, for requests that name none."""
    if asked.shares:
        return {asked.names.get(name, name): share for name, share in asked.shares.items()}
    if not listed:
        raise ConfigurationError(f"--models: none, and {asked.url} lists none; one is needed; add --models NAME")
    return {next((model["id"] for model in listed if model.get("tier") != "video"), listed[0]["id"]): 1.0}


def _orders(asked: Options, planned: Sequence[Request]) -> tuple[Order, ...]:
    """Poisson, by the server's clock; of a scenario by the scenario's."""
    rng = np.random.default_rng((asked.work.seed, 1))
    videos = asked.scenario.videos if asked.scenario else None
    if asked.scenario is not None and videos is not None:
        rate = Rate(videos.per_hour, asked.scenario.duration_s, asked.work.scale / 3600)
        at_s = rate.moments(np.sort(rng.uniform(0.0, rate.expected, rng.poisson(rate.expected))))
        at_s = at_s[at_s < (asked.work.duration_s or np.inf)] / asked.speed
    else:
        span_s = (asked.work.duration_s or 0.0) / asked.speed or (planned[-1].at_s if planned else 0.0)
        at_s = np.sort(rng.uniform(0.0, span_s, rng.poisson(asked.videos_per_hour / 3600 * span_s)))
    body = _body(asked, videos.body) if videos is not None else {"prompt": "a red ball"}
    who = _who(asked, at_s, rng)
    return tuple(Order(at_s=at, tenant=tenant, body=body) for at, tenant in zip(at_s.tolist(), who, strict=True))


def _who(asked: Options, at_s: Floats, rng: np.random.Generator) -> list[str]:
    share = np.array(list(asked.tenants.values()))
    names = list(asked.tenants)
    return [names[index] for index in rng.choice(len(names), len(at_s), p=share / share.sum()).tolist()]


def _body(asked: Options, body: dict[str, str]) -> dict[str, str]:
    model = body.get("model")
    return body | {"model": asked.names.get(model, model)} if model else body
