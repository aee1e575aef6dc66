"""The contenders made callable: a scaling policy with its parameters bound, and a router.

The best constant size and the clairvoyant plan know the whole workload. Each has a factor k over its mean work, the
least of a grid with which 99 % of all requests keep their promises, found by rehearsing; `k` as a setting skips that.
The clairvoyant plan counts on the median cold start.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from autoscaling import ceilings, peer_routing, peers, peers_dynamo, peers_kpa
from autoscaling import policy as moray
from autoscaling.parameters import Parameters
from autoscaling.signals import Scaler, Spec, spec_of
from cluster import routing
from cluster.family import Family
from cluster.loads import Router
from cluster.workload import Workload, taken
from deployments.contenders import Contender, PolicyName, RouterName, parameters
from deployments.simulate_cluster import asked_of, load

GOAL = 0.99
GRID = tuple(round(0.7 * 1.03**step, 3) for step in range(115))  # of k: 0.7 to 20, 3 % apart


@dataclass(frozen=True, slots=True, kw_only=True)
class HindsightParameters:
    """None: the least k of the grid that keeps 99 % of the promises."""

    k: float | None = None

    def __post_init__(self) -> None:
        if self.k is not None and self.k <= 0:
            raise ValueError(f"k is {self.k:g}; numbers above 0 are allowed; raise it")


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What only hindsight knows: the requests, their span and the first replicas; and how well a policy would do."""

    family: Family
    requests: Workload
    span_s: float
    initial: Mapping[str, int]
    attained: Callable[[Scaler], float]


def router(name: RouterName) -> Router:
    match name:
        case "moray":
            return routing.choose
        case "p2c":
            return peer_routing.two_choices
        case "predicted":
            return peer_routing.predicted
        case "kv":
            return peer_routing.KvCost()
        case "prefix":
            return peer_routing.PrefixAffinity()


def check(contender: Contender) -> None:
    """Raises ConfigurationError where a setting is unknown or wrong."""
    parameters(PARAMETERS[contender.policy], contender.settings, contender.policy)


def scaler(contender: Contender, past: Past) -> tuple[Scaler, dict[str, float]]:
    """The policy, and what hindsight found for it."""
    spec, settings = spec_of(past.family), contender.settings
    match contender.policy:
        case "moray":
            return moray.scaler(spec, parameters(Parameters, settings, "moray")), {}
        case "ray":
            return peers.ray(spec, parameters(peers.RayParameters, settings, "ray")), {}
        case "kpa":
            return peers_kpa.kpa(spec, parameters(peers_kpa.KpaParameters, settings, "kpa")), {}
        case "dynamo":
            return peers_dynamo.dynamo(spec, parameters(peers_dynamo.DynamoParameters, settings, "dynamo")), {}
        case "static":
            made = _static(spec, past)
        case "clairvoyant":
            made = _clairvoyant(spec, past)
    k = parameters(HindsightParameters, settings, contender.policy).k
    if k is not None:
        return made(k), {}
    return _in_hindsight(made, past)


def _in_hindsight(made: Callable[[float], Scaler], past: Past) -> tuple[Scaler, dict[str, float]]:
    """Where even the largest k misses the goal, what the largest k attains is the goal, less a thousandth."""
    most = past.attained(made(GRID[-1]))
    goal = GOAL if most >= GOAL else most - 0.001
    least = ceilings.best_static(lambda step: past.attained(made(GRID[step])), 0, len(GRID) - 1, goal)
    return made(GRID[least]), {"k": GRID[least], "attainment_sought": goal}


PARAMETERS: Mapping[PolicyName, type] = {
    "moray": Parameters,
    "ray": peers.RayParameters,
    "kpa": peers_kpa.KpaParameters,
    "dynamo": peers_dynamo.DynamoParameters,
    "static": HindsightParameters,
    "clairvoyant": HindsightParameters,
}


def _static(spec: Spec, past: Past) -> Callable[[float], Scaler]:
    """Of each tier k times its mean work in replicas; video stays as it starts."""
    asked = asked_of(past.family, past.requests)
    loads = {name: load(tier, past.requests, asked[name], past.span_s) for name, tier in past.family.tiers.items()}

    def made(k: float) -> Scaler:
        counts = dict(past.initial) | {name: math.ceil(k * mean) for name, mean in loads.items()}
        return peers.static(spec, peers.StaticParameters(replicas=counts))

    return made


def _clairvoyant(spec: Spec, past: Past) -> Callable[[float], Scaler]:
    """Of each tier its plan; video stays as it starts."""
    parts = {
        name: taken(past.requests, np.flatnonzero(mine)) for name, mine in asked_of(past.family, past.requests).items()
    }

    def made(k: float) -> Scaler:
        given = ceilings.ClairvoyantParameters(k=k)
        plans = {name: ceilings.plan(parts[name], tier, given, tier.cold_start_s) for name, tier in spec.tiers.items()}
        return ceilings.clairvoyant(spec, plans)

    return made
