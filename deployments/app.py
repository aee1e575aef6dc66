"""Wiring: the family file becomes Ray Serve applications, a tier each, and the gateway. Nothing is decided here.

Tiers are applications of their own so that one of them can be changed, or fail, alone.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.schema import LoggingConfig

from cluster.engines import Closed
from cluster.errors import ConfigurationError
from cluster.family import Family, Tier, load
from cluster.fleet import CellState
from cluster.manifests import kinds
from cluster.placement import (
    bundles,
    declared_cells,
    observed_cells,
    own_share,
    plan,
    reach,
    require,
    selector,
    strategy,
)
from deployments.change import of_replicas
from deployments.control.fleet import APP, as_nodes, tier_app
from deployments.control.start import ON_HEAD
from deployments.gateway.app import Gateway
from deployments.tier import TierReplica

HEALTH_PERIOD_S = 2.0
HEALTH_TIMEOUT_S = 5.0  # a replica that hangs is replaced after three of them
REPORT_PERIOD_S = 1.0  # every report is broadcast to every router: not below a second
METRICS_PERIOD_S = 1.0
CONTROL_CPUS = 0.01  # Serve's actors ask for a whole CPU by default; a laptop has two
REFUSALS = 64  # requests beyond what a replica may hold, let in to be refused by its engine; Serve would let them wait
CONSTRUCTOR_TRIES = 2  # a wrong checkpoint stays wrong


def applications(family: Family) -> list[serve.RunTarget]:
    """The whole family, for `serve.run_many`. Raises PlacementError where it cannot start on the running cluster."""
    return [*tiers(family, {key: tier.replicas.initial for key, tier in family.tiers.items()}), gateway(family)]


class Build(Closed):
    """Which application of which family file. `tier`: None for the gateway."""

    family: str
    tier: str | None = None


def build_tier(arguments: Build) -> serve.Application:
    """For a config of Serve: the application of one tier, wherever its cells are or will be.

    Raises ConfigurationError or PlacementError; Serve tells of it as the application's message.
    """
    family = load(arguments.family, serving=False)
    require(plan(family, declared_cells(family)))
    if arguments.tier not in family.tiers:
        known = ", ".join(family.tiers)
        raise ConfigurationError(f"{arguments.family}: tier {arguments.tier!r}; {known} are there; render it again")
    initial = family.tiers[arguments.tier].replicas.initial
    return _application(family, arguments.tier, initial, kinds(family))


def build_gateway(arguments: Build) -> serve.Application:
    """For a config of Serve. Raises ConfigurationError."""
    return _gateway(load(arguments.family, serving=False))


def gateway(family: Family) -> serve.RunTarget:
    """It finds the tiers by their names."""
    return serve.RunTarget(_gateway(family), name=APP)


def _gateway(family: Family) -> serve.Application:
    deployment = serve.deployment(serve.ingress()(Gateway)).options(
        name="gateway",
        num_replicas=family.gateway.replicas,
        max_ongoing_requests=100_000,  # admission is the gateway's own business, with an error that says why
        ray_actor_options={"num_cpus": CONTROL_CPUS, "resources": ON_HEAD},  # where the state folder is
        health_check_period_s=HEALTH_PERIOD_S,
        logging_config=logs(family, access=False),
    )
    return deployment.bind(family)


def logs(family: Family, access: bool = True) -> LoggingConfig:
    """Of Serve's components and ours: with request ids, as text or a JSON object a line.

    `access`: Serve's line of each call; the gateway's own line of a request says more.
    """
    return LoggingConfig(encoding=family.logs.upper(), enable_access_log=access)


def tiers(family: Family, initial: Mapping[str, int]) -> list[serve.RunTarget]:
    """The applications of some tiers, each with so many replicas until the control loop says otherwise.

    Raises PlacementError where the family does not fit on the running cluster.
    """
    cells = observed_cells(as_nodes(ray.nodes(), family))
    require(plan(family, cells))
    return [
        serve.RunTarget(_application(family, key, initial[key], cells), name=tier_app(key), route_prefix=None)
        for key in sorted(initial, key=lambda key: -family.tiers[key].ranks)  # the largest group finds a whole node
    ]


def _application(family: Family, key: str, replicas: int, cells: Sequence[CellState]) -> serve.Application:
    door = serve.deployment(Door).options(
        name="door", autoscaling_config=AutoscalingConfig(min_replicas=0, initial_replicas=0, max_replicas=1)
    )
    return door.bind(_tier(family, key, replicas, cells))


def _tier(family: Family, key: str, replicas: int, cells: Sequence[CellState]) -> serve.Application:
    tier = family.tiers[key]
    deployment = serve.deployment(TierReplica).options(
        name=key,
        version=_version(family, key),
        _internal=True,  # or Serve takes no version
        max_ongoing_requests=tier.max_running + tier.max_waiting + REFUSALS,
        autoscaling_config=_scaling(key, replicas, tier.replicas.max),
        request_router_config=RequestRouterConfig(
            request_router_class="deployments.router.LatencyRouter",
            request_router_kwargs={"tier": key},
            request_routing_stats_period_s=REPORT_PERIOD_S,
        ),
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        max_constructor_retry_count=CONSTRUCTOR_TRIES,
        graceful_shutdown_timeout_s=60,
        logging_config=logs(family),
        placement_group_strategy=strategy(tier, cells),
        **_reserved(tier, family.accelerator, reach(tier.ranks, cells)),
    )
    gateway = family.gateway
    return deployment.bind(key, tier, family.accelerator, gateway.coalesce_ms, gateway.coalesce_above_streams)


class Door:
    """What each application must have to be entered from outside, where Serve allows no router of ours. Never runs."""

    def __init__(self, tier: Any) -> None:
        pass


def _version(family: Family, key: str) -> str:
    """Serve replaces the replicas of a tier when this changes; left to itself, whenever the tier is run again."""
    return hashlib.sha256(repr(of_replicas(family.tiers[key])).encode()).hexdigest()[:16]


def _reserved(tier: Tier, accelerator: Literal["cpu", "cuda"], cells: tuple[str, ...]) -> dict[str, Any]:
    """One placement group per replica; the replica itself takes its share of the first bundle."""
    reserved, own = bundles(tier, accelerator), own_share(tier, accelerator)
    return {
        "placement_group_bundles": reserved,
        "placement_group_bundle_label_selector": [selector(cells)] * len(reserved),
        "ray_actor_options": {
            "num_cpus": own.pop("CPU", 0),
            "num_gpus": own.pop("GPU", 0),
            "resources": own,
        },
    }


def _scaling(key: str, initial: int, most: int) -> AutoscalingConfig:
    """Serve's own delays and its target of requests do nothing: the policy follows the control loop."""
    return AutoscalingConfig(
        min_replicas=0,
        initial_replicas=min(initial, most),
        max_replicas=most,
        metrics_interval_s=METRICS_PERIOD_S,
        look_back_period_s=2 * METRICS_PERIOD_S,
        upscale_delay_s=0,
        downscale_delay_s=0,
        downscale_to_zero_delay_s=0,
        policy=AutoscalingPolicy(policy_function="deployments.control.follow:Follow", policy_kwargs={"tier": key}),
    )
