"""Wiring: the family file becomes one Ray Serve application. Nothing is decided here."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

from autoscaling.ongoing import TierSpec, spec_of
from cluster.family import Family
from cluster.fleet import CellState, Node
from cluster.placement import (
    CPU_RESOURCE,
    VIDEO,
    Plan,
    bundles,
    cells_of,
    observed_cells,
    plan,
    require,
    selector,
    strategy,
)
from deployments.gateway.app import Gateway
from deployments.tier import TierReplica
from deployments.video.replica import VideoReplica

APP = "moray"
HEALTH_PERIOD_S = 2.0
REPORT_PERIOD_S = 1.0  # every report is broadcast to every router: not below a second
METRICS_PERIOD_S = 1.0
VIDEO_DRAIN_S = 900  # a replica that is scaled away first ends its job
CONTROL_CPUS = 0.01  # Serve's actors ask for a whole CPU by default; a laptop has two
REFUSALS = 64  # requests beyond what a replica may hold, let in to be refused by its engine; Serve would let them wait
CONSTRUCTOR_TRIES = 2  # a wrong checkpoint stays wrong


def application(family: Family) -> serve.Application:
    """The gateway, with a handle to each tier and to video."""
    cells = observed_cells(nodes(family))
    placed = require(plan(family, cells))
    tiers = {key: _tier(family, key, placed, cells) for key in family.tiers}
    video = _video(family, placed) if family.video else None
    gateway = serve.deployment(serve.ingress()(Gateway)).options(
        name="gateway",
        num_replicas=family.gateway.replicas,
        max_ongoing_requests=100_000,  # admission is the tiers' business, with an error that says why
        ray_actor_options={"num_cpus": CONTROL_CPUS},
        health_check_period_s=HEALTH_PERIOD_S,
    )
    return gateway.bind(family, tiers, video)


def nodes(family: Family) -> list[Node]:
    """The nodes of the running cluster that have GPUs, or slots for ranks."""
    kind = "GPU" if family.accelerator == "cuda" else CPU_RESOURCE
    return [
        Node(name=node["NodeID"], gpus=gpus, free_gpus=gpus, labels=node["Labels"])
        for node in ray.nodes()
        if node["Alive"] and (gpus := int(node["Resources"].get(kind, 0)))
    ]


def _tier(family: Family, key: str, placed: Plan, cells: Sequence[CellState]) -> serve.Application:
    tier = family.tiers[key]
    deployment = serve.deployment(TierReplica).options(
        name=key,
        max_ongoing_requests=tier.max_running + tier.max_waiting + REFUSALS,
        autoscaling_config=_scaling(key, spec_of(tier.replicas, tier.max_running)),
        request_router_config=RequestRouterConfig(
            request_router_class="deployments.router.LatencyRouter",
            request_router_kwargs={"tier": key, "spec": tier.model_dump(mode="json")},
            request_routing_stats_period_s=REPORT_PERIOD_S,
        ),
        health_check_period_s=HEALTH_PERIOD_S,
        max_constructor_retry_count=CONSTRUCTOR_TRIES,
        graceful_shutdown_timeout_s=60,
        placement_group_strategy=strategy(tier, cells),
        **_reserved(bundles(tier, family.accelerator), cells_of(placed, key)),
    )
    return deployment.bind(family, key)


def _video(family: Family, placed: Plan) -> serve.Application:
    video = family.video
    assert video is not None
    deployment = serve.deployment(VideoReplica).options(
        name=VIDEO,
        max_ongoing_requests=1,  # one job at a time holds the GPU; others wait in the handle
        autoscaling_config=_scaling(VIDEO, spec_of(video.replicas, 1)),
        health_check_period_s=HEALTH_PERIOD_S,
        max_constructor_retry_count=CONSTRUCTOR_TRIES,
        graceful_shutdown_timeout_s=VIDEO_DRAIN_S,
        placement_group_strategy="STRICT_PACK",
        **_reserved(bundles(video, family.accelerator), cells_of(placed, VIDEO)),
    )
    return deployment.bind(family)


def _reserved(bundles: list[dict[str, float]], cells: Sequence[str]) -> dict[str, Any]:
    """One placement group per replica, one bundle per rank; the replica itself takes its share of the first."""
    first = dict(bundles[0])
    return {
        "placement_group_bundles": bundles,
        "placement_group_bundle_label_selector": [selector(cells)] * len(bundles),
        "ray_actor_options": {
            "num_cpus": first.pop("CPU", 0),
            "num_gpus": first.pop("GPU", 0),
            "resources": first,
        },
    }


def _scaling(key: str, spec: TierSpec) -> AutoscalingConfig:
    """Serve's own delays are off: waiting is the policy's business."""
    return AutoscalingConfig(
        min_replicas=spec.min,
        initial_replicas=spec.initial,
        max_replicas=spec.max,
        target_ongoing_requests=spec.target_ongoing,
        metrics_interval_s=METRICS_PERIOD_S,
        look_back_period_s=2 * METRICS_PERIOD_S,
        upscale_delay_s=0,
        downscale_delay_s=0,
        downscale_to_zero_delay_s=0,
        policy=AutoscalingPolicy(
            policy_function="deployments.scaling:TierPolicy",
            policy_kwargs={"tier": key, "spec": dataclasses.asdict(spec)},
        ),
    )
