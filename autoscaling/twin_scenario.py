"""What is rehearsed, beside workload and policy; and from it, where requests of one kind may go."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from cluster.errors import ConfigurationError, RequestError
from cluster.family import Family, Plan
from cluster.tiering import Range, Wish, tiers_for
from cluster.workload import Workload

VIDEO = "video"  # among the names of tiers; no tier of a family is called so


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """At `at_s` a node dies, or the fullest replica of a tier. Nodes count from 0."""

    at_s: float
    node: int | None = None
    tier: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """`gpus` None: as many as are asked for. Nodes are all alike, of the size of the family's first cell.

    `cold_start_s`: the median, instead of each tier's own; the spread stays. `initial`: replicas at the start, by tier
    (and "video"), where not the family file's. `plans`: by tenant. `imbalance`: of expert load by tier, most loaded
    rank over the mean. `admission`: hold, spill and refuse as Moray does; without it a request waits until its router
    finds a replica. `chunking`: "slack" as cluster.batching decides, "fixed" as stock engines do. Raises
    ConfigurationError.
    """

    family: Family
    gpus: int | None = None
    cold_start_s: float | None = None
    initial: Mapping[str, int] | None = None
    seed: int = 0
    plans: Mapping[str, Plan] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    imbalance: Mapping[str, float] = field(default_factory=dict)
    admission: bool = True
    chunking: Literal["slack", "fixed"] = "slack"

    def __post_init__(self) -> None:
        tiers = tuple(self.family.tiers)
        _require(self.gpus is None or self.gpus >= 1, f"gpus: {self.gpus}; at least 1 is allowed, or None")
        cold_s = self.cold_start_s
        _require(cold_s is None or cold_s > 0, f"cold_start_s: {cold_s}; more than 0 is allowed, or None")
        for name, replicas in (self.initial or {}).items():
            _known(f"initial.{name}", name, (*tiers, VIDEO))
            _require(replicas >= 0, f"initial.{name}: {replicas}; at least 0 is allowed")
        for name, factor in self.imbalance.items():
            _known(f"imbalance.{name}", name, tiers)
            _require(factor >= 1, f"imbalance.{name}: {factor}; the most loaded rank is at least 1 time the mean")
        for tenant, plan in self.plans.items():
            for name in plan.tiers:
                _known(f"plans.{tenant}.tiers", name, tiers)
        for number, failure in enumerate(self.failures):
            where = f"failures[{number}]"
            _require(failure.at_s >= 0, f"{where}.at_s: {failure.at_s}; at least 0 is allowed")
            _require((failure.node is None) != (failure.tier is None), f"{where}: either a node or a tier is allowed")
            if failure.tier is not None:
                _known(f"{where}.tier", failure.tier, tiers)


def _known(where: str, name: str, names: tuple[str, ...]) -> None:
    _require(name in names, f"{where}: {name!r}; {', '.join(names)} are allowed")


def _require(holds: bool, fault: str) -> None:
    if not holds:
        raise ConfigurationError(f"scenario.{fault}; mend the scenario")


@dataclass(frozen=True, slots=True)
class Route:
    """Where requests of one kind may go, by tier index. All of one model, tenant and size class share it."""

    tiers: tuple[int, ...]
    range: Range
    tenant: str
    priority: int = 0
    share: float = 1.0


def routes(scenario: Scenario, workload: Workload) -> tuple[list[Route | str], list[int]]:
    """The routes, or the code of the error that such requests get; and which one each request has.

    Requests that differ only in their prompt, between two limits, share one.
    """
    family = scenario.family
    limits = {tier.context_tokens for tier in family.tiers.values()}
    if family.auto is not None:
        limits.add(family.auto.long_prompt_tokens)
    size = np.searchsorted(np.array(sorted(limits)), workload.prompt_tokens, side="right")
    kinds = np.stack([workload.model, workload.tenant, size]).astype(np.int64)
    unique, first, of = np.unique(kinds, axis=1, return_index=True, return_inverse=True)
    found = [
        _route(scenario, workload.models[model], workload.tenants[tenant], int(workload.prompt_tokens[example]))
        for (model, tenant, _), example in zip(unique.T.tolist(), first.tolist(), strict=True)
    ]
    return found, of.reshape(-1).tolist()


def _route(scenario: Scenario, model: str, tenant: str, prompt_tokens: int) -> Route | str:
    """`model`: a name that is asked for, or a tier."""
    family = scenario.family
    name = family.tiers[model].names[0] if model in family.tiers else model
    plan = scenario.plans.get(tenant)
    try:
        found = tiers_for(Wish(model=name, prompt_tokens=prompt_tokens), plan, family)
    except RequestError as error:
        return error.code
    names = tuple(family.tiers)
    tiers = tuple(names.index(tier) for tier in found.tiers)
    return Route(tiers, found, tenant) if plan is None else Route(tiers, found, tenant, plan.priority, plan.share)
