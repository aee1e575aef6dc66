"""Could routing gain by grouping domains? The twin with replicas that read only the experts which their batch touches.

One tier of h200 alone on constant replicas. Four domains; a request keeps the domain of the one before it with
probability STICKY, else draws one evenly. A replica's step costs d times the share of specialists_model.touched for
those that decode there; the router sees measured steps (the correction) and, where it asks, how many of each domain are
on each replica, all of them known. That flatters grouping: live, a domain is known only where a hint or persona names
it. A step on which a chunk of a prompt rides saves nothing: the chunk's tokens touch nearly every expert anyway.

    as_is      cluster.routing
    predicted  the same, its predicted step with the experts that the newcomer's domain would touch there
    grouped    that, and what the newcomer costs those already there: OTHERS*B*d*(more share)/TPOT joins the score
    home       a replica or two for each domain as long as promises hold there, the whole tier else

`loads`: figures at shares of the fluid bound. `capacity`: the highest rate with which 99 % of the requests keep their
promises, found by bisection, over that of as_is: on constant replicas the reciprocal of GPU-seconds per request kept.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
from bench.specialists_model import DOMAINS, touched
from bench.twin_summary import interval

from autoscaling.peers import StaticParameters, static
from autoscaling.report import Figures
from autoscaling.signals import spec_of
from autoscaling.twin import Scenario, rehearse
from autoscaling.twin_desk import Desk
from autoscaling.twin_pool import Pool
from autoscaling.twin_replica import Replica, Request
from autoscaling.twin_scenario import Route
from cluster import routing
from cluster.cost import Service, fluid_rps
from cluster.family import Family, Replicas, load
from cluster.loads import Ask, Choice, Loads
from cluster.workload import Floats, Workload

STICKY = 0.5
OTHERS = 0.3  # of 0.1, 0.3, 1 and 3 the largest that costs no time to first token at concentration 0.8
CONCENTRATIONS = (0.25, 0.5, 0.8, 0.9, 0.95)
LOADS = (0.4, 0.7, 0.9)
SECONDS = 180.0
GOAL = 0.99
RANGE, FINEST = (0.85, 1.25), 0.0125  # searched, in shares of the fluid bound
LENGTHS = {"chat": (800, 300), "long answers": (300, 1500)}  # means of lognormal prompts and answers
SPREAD = {"chat": (1.0, 0.8), "long answers": (0.8, 0.6)}  # sigma of the logarithm
ROUTERS = ("as_is", "predicted", "grouped", "home")

Routed = Callable[["Domains", Loads, Ask, Service, float, bool], Choice]


@dataclass(slots=True, kw_only=True)
class Domains:
    """`of`: each request's domain. `prompts_read_all`: a step with a chunk of a prompt saves nothing.

    `there` [slots, DOMAINS]: of all that are on a replica. What follows are sums over steps.
    """

    of: list[int]
    concentration: float
    prompts_read_all: bool = True
    asked: int = 0
    there: Floats = field(default_factory=lambda: np.zeros((64, DOMAINS)))
    steps: int = 0
    step_ms: float = 0.0
    batch: int = 0
    shares: float = 0.0

    def share(self, service: Service, counts: Floats) -> Floats:
        return touched(service.cost, counts, self.concentration)

    def counted(self, requests: Iterator[Request]) -> Floats:
        domains = [self.of[request.index] for request in requests]
        return np.bincount(domains, minlength=DOMAINS).astype(float)


class DomainReplica(Replica):
    """One whose experts are read as the domains of its batch touch them."""

    def __init__(self, domains: Domains, service: Service, slot: int, now_s: float, imbalance: float) -> None:
        super().__init__(service, slot, now_s, imbalance)
        self.domains, self.share = domains, 0.0

    def plan(self) -> None:
        self._completing = []
        if self.domains.prompts_read_all and self.queue and (self.left_tokens > 0 or self._fits(self.queue[0])):
            self.share = float(self.service.touched[self.decoding])
        else:
            counts = self.domains.counted(request for _, _, request in self.finish)
            self.share = float(self.domains.share(self.service, counts)) if self.decoding else 0.0
        self._touched_ms[self.decoding] = self.service.d_ms * self.share
        super().plan()

    def complete(self) -> tuple[list[Request], list[Request]]:
        if self.decoding:
            seen = self.domains
            seen.steps += self._steps
            seen.step_ms += self._duration_ms(self._steps)
            seen.batch += self._steps * self.decoding
            seen.shares += self._steps * self.share
        return super().complete()


class DomainPool(Pool):
    def __init__(self, domains: Domains, service: Service, block_tokens: int | None) -> None:
        super().__init__(service, block_tokens)
        self.domains = domains

    def show(self, replica: Replica) -> None:
        super().show(replica)
        assert isinstance(replica, DomainReplica)
        service, batch = self.service, replica.decoding
        there = [*(request for _, _, request in replica.finish), *replica._completing, *replica.queue]
        self.domains.there[replica.slot] = self.domains.counted(iter(there))
        modelled = float(service.batch_ms[batch]) + service.c_ms_per_token * replica.kv_tokens
        more = service.d_ms * (replica.share - float(service.touched[batch])) if batch else 0.0
        self.loads.correction[replica.slot] = 1 + more / modelled


# --- routers


def as_is(domains: Domains, loads: Loads, ask: Ask, service: Service, now_s: float, packing: bool) -> Choice:
    return routing.choose(loads, ask, service, now_s, packing)


def predicted(domains: Domains, loads: Loads, ask: Ask, service: Service, now_s: float, packing: bool) -> Choice:
    return routing.choose(_foreseen(domains, loads, ask, service)[0], ask, service, now_s, packing)


def grouped(domains: Domains, loads: Loads, ask: Ask, service: Service, now_s: float, packing: bool) -> Choice:
    loads, more_ms = _foreseen(domains, loads, ask, service)
    seen = routing.predict(loads, ask, service, now_s, ask.us_per_token)
    keep = (loads.open & routing._kept(seen, service, ask.us_per_token, ask.waited_s)).nonzero()[0]
    if not keep.size:
        return routing.choose(loads, ask, service, now_s, packing)
    score = routing._score(seen, service) + OTHERS * loads.sequences * more_ms / service.tpot_ms
    return routing._choice(routing._drawn(keep, score[keep], ask.draw), seen, True)


def home(domains: Domains, loads: Loads, ask: Ask, service: Service, now_s: float, packing: bool) -> Choice:
    loads = _foreseen(domains, loads, ask, service)[0]
    replicas = len(loads.open)
    slots = np.arange(replicas)
    own = slots % DOMAINS == domains.asked if replicas >= DOMAINS else slots == domains.asked % replicas
    choice = routing.choose(replace(loads, open=loads.open & own), ask, service, now_s, packing)
    return choice if choice.feasible else routing.choose(loads, ask, service, now_s, packing)


def _foreseen(domains: Domains, loads: Loads, ask: Ask, service: Service) -> tuple[Loads, Floats]:
    """The loads corrected to the step with the newcomer on each, and the ms that its experts add to it there."""
    before = domains.there[: len(loads.open)]
    after = before.copy()
    after[:, domains.asked] += 1.0
    share = domains.share(service, after)
    batch = np.minimum(after.sum(-1), service.max_running).astype(int)
    context_ms = service.c_ms_per_token * (loads.kv_tokens + ask.prompt_tokens + ask.expected_output_tokens / 2)
    blind = service.batch_ms[batch] + context_ms
    correction = 1 + service.d_ms * (share - service.touched[batch]) / blind
    return replace(loads, correction=correction), service.d_ms * (share - domains.share(service, before))


# --- one run


@contextmanager
def _domains(domains: Domains) -> Iterator[None]:
    """The twin's replicas know domains, and the router hears the domain of the request that it is asked for."""
    choose = Desk._choose

    def noted(self: Desk, index: int, request: Request, route: Route, now_s: float) -> tuple[Choice, Ask]:
        domains.asked = domains.of[request.index]
        return choose(self, index, request, route, now_s)

    with (
        patch("autoscaling.twin_tier.Replica", partial(DomainReplica, domains)),
        patch("autoscaling.twin.Pool", partial(DomainPool, domains)),
        patch.object(Desk, "_choose", noted),
    ):
        yield


def drawn(tier: str, kind: str, rps: float, seed: int) -> tuple[Workload, list[int]]:
    """Poisson arrivals for SECONDS, and the domain of each."""
    rng = np.random.default_rng(seed)
    count = int(rng.poisson(rps * SECONDS))
    prompt, output = (
        np.maximum(1, rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, count)).astype(np.int64)
        for mean, sigma in zip(LENGTHS[kind], SPREAD[kind], strict=True)
    )
    fresh, stays = rng.integers(DOMAINS, size=count), rng.random(count) < STICKY
    of = fresh[np.maximum.accumulate(np.where(stays, 0, np.arange(count)))]
    nothing = np.zeros(count, dtype=np.int64)
    workload = Workload(
        arrival_s=np.sort(rng.uniform(0, SECONDS, count)),
        prompt_tokens=prompt,
        output_tokens=output,
        model=nothing,
        tenant=nothing,
        models=(tier,),
    )
    return workload, of.tolist()


def alone(tier: str, replicas: int) -> Family:
    family = load("h200")
    bounds = Replicas(min=replicas, max=replicas, initial=replicas)
    only = family.tiers[tier].model_copy(update={"replicas": bounds})
    return family.model_copy(update={"tiers": {tier: only}, "video": None, "auto": None, "plans": {}})


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    tier: str
    kind: str
    replicas: int
    concentration: float

    def __str__(self) -> str:
        return f"{self.tier} x{self.replicas}/{self.kind}/{self.concentration:g}"


def play(world: World, name: str, load_share: float, seed: int) -> dict[str, float]:
    family = alone(world.tier, world.replicas)
    rps = load_share * world.replicas * fluid_rps(family.tiers[world.tier], *LENGTHS[world.kind])
    workload, of = drawn(world.tier, world.kind, rps, seed)
    domains = Domains(of=of, concentration=world.concentration)
    scaler = static(spec_of(family), StaticParameters(replicas=world.replicas))
    with _domains(domains):
        router: Routed = {"as_is": as_is, "predicted": predicted, "grouped": grouped, "home": home}[name]
        scenario = Scenario(family=family, seed=seed)
        figures = rehearse(scenario, workload, None, scaler, partial(router, domains)).figures
    return _row(figures, domains)


def _row(figures: Figures, domains: Domains) -> dict[str, float]:
    return {
        "attainment": figures.attainment,
        "ttft_p99_s": figures.ttft_p99_s,
        "tpot_p50_ms": figures.tpot_p50_ms,
        "tpot_p99_ms": figures.tpot_p99_ms,
        "step_ms": domains.step_ms / domains.steps,
        "batch": domains.batch / domains.steps,
        "share": domains.shares / domains.steps,
    }


def capacity(world: World, name: str, seed: int) -> float:
    """As a share of the fluid bound."""
    low, high = RANGE
    while high - low > FINEST:
        middle = (low + high) / 2
        low, high = (middle, high) if play(world, name, middle, seed)["attainment"] >= GOAL else (low, middle)
    return low


# --- all


def _world(tier: str, concentration: float = 0.8, kind: str = "chat", replicas: int = 4) -> World:
    return World(tier=tier, kind=kind, replicas=replicas, concentration=concentration)


def loads(seeds: range, quick: bool) -> dict[str, Any]:
    """Means over seeds, by world and load."""
    chat = [_world(tier, share) for tier in ("pro", "turbo") for share in ((0.8,) if quick else CONCENTRATIONS)]
    long = [] if quick else [_world(tier, kind="long answers") for tier in ("pro", "turbo")]
    return {f"{world}/{share:g}": _loaded(world, share, seeds) for world in [*chat, *long] for share in LOADS}


def _loaded(world: World, share: float, seeds: range) -> dict[str, dict[str, Any]]:
    rows = {name: [play(world, name, share, seed) for seed in seeds] for name in ROUTERS}
    return {name: {key: interval([row[key] for row in found]) for key in found[0]} for name, found in rows.items()}


def capacities(seeds: range, quick: bool) -> dict[str, Any]:
    worlds = [_world("pro"), _world("turbo")]
    if not quick:
        worlds += [_world(tier, share) for tier in ("pro", "turbo") for share in (0.9, 0.95)]
        worlds += [_world("pro", replicas=2), _world("pro", replicas=8)]
        worlds += [_world("pro", kind="long answers"), _world("turbo", kind="long answers")]
    return {str(world): _capacities(world, seeds) for world in worlds}


def _capacities(world: World, seeds: range) -> dict[str, Any]:
    found = {name: [capacity(world, name, seed) for seed in seeds] for name in ("as_is", "grouped", "home")}
    ratios = {name: [a / b for a, b in zip(of, found["as_is"], strict=True)] for name, of in found.items()}
    return {"as_is_to_fluid": interval(found["as_is"])} | {n: interval(ratios[n]) for n in ("grouped", "home")}
