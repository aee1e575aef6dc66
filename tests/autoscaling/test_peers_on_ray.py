"""Our arithmetic of Ray Serve's default policy, tick by tick against the installed release."""

import math
from types import SimpleNamespace
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st
from peer_world import spec
from ray.serve import autoscaling_policy as installed
from ray.serve._private.common import DeploymentID, TimeStampedValue
from ray.serve._private.metrics_utils import time_weighted_average
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from autoscaling.peers import Load, RayDelay, RayParameters, clip, ray_mean, ray_target

PARAMETERS = st.builds(
    RayParameters,
    target_ongoing_requests=st.sampled_from([0.5, 1.0, 2.0, 7.3]),
    upscale_delay_s=st.sampled_from([0.0, 3.0, 30.0]),
    downscale_delay_s=st.sampled_from([0.0, 5.0, 600.0]),
    downscale_to_zero_delay_s=st.sampled_from([None, 0.0, 8.0]),
    upscaling_factor=st.sampled_from([0.3, 1.0, 2.5]),
    downscaling_factor=st.sampled_from([0.1, 1.0, 1.5]),
)
TICKS = st.lists(
    st.tuples(st.sampled_from([0.1, 1.0, 2.0, 10.0]), st.integers(0, 6), st.one_of(st.just(0.0), st.floats(0.0, 40.0))),
    min_size=1,
    max_size=40,
)


def config(p: RayParameters, least: int, most: int) -> AutoscalingConfig:
    return AutoscalingConfig(
        min_replicas=least,
        max_replicas=most,
        initial_replicas=None,
        target_ongoing_requests=p.target_ongoing_requests,
        upscale_delay_s=p.upscale_delay_s,
        downscale_delay_s=p.downscale_delay_s,
        downscale_to_zero_delay_s=p.downscale_to_zero_delay_s,
        upscaling_factor=p.upscaling_factor,
        downscaling_factor=p.downscaling_factor,
    )


@given(PARAMETERS, st.integers(0, 3), TICKS, st.integers(0, 6))
def test_the_targets_are_those_of_the_installed_policy(
    p: RayParameters, least: int, ticks: list[tuple[float, int, float]], first: int
) -> None:
    bounds = spec(least, 8).tiers["pro"]
    theirs = installed._apply_autoscaling_config(installed.default_autoscaling_policy)
    given_config, delay, now_s = config(p, least, 8), RayDelay(), 1000.0
    policy_state: dict[str, object] = {}
    target = clip(first, bounds)
    for passed_s, running, ongoing in ticks:
        now_s += passed_s
        context = AutoscalingContext(
            deployment_id=DeploymentID("pro"),
            deployment_name="pro",
            app_name="app",
            current_num_replicas=running,
            target_num_replicas=target,
            running_replicas=[],
            total_num_requests=ongoing,
            total_queued_requests=0.0,
            aggregated_metrics={},
            raw_metrics={},
            capacity_adjusted_min_replicas=least,
            capacity_adjusted_max_replicas=8,
            policy_state=policy_state,
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=now_s,
            config=given_config,
        )
        with patch.object(installed, "time", SimpleNamespace(time=lambda at_s=now_s: at_s)):
            decided, policy_state = theirs(context)
        ours, delay = ray_target(p, now_s, Load(running=running, ongoing=ongoing), target, delay)
        assert ours == math.ceil(decided)
        target = clip(ours, bounds)


@given(
    st.lists(st.tuples(st.floats(0.1, 10), st.floats(0, 100)), min_size=1, max_size=20),
    st.sampled_from([0.0, 0.5, 10.0]),
)
def test_the_mean_over_the_window_is_that_of_the_installed_release(
    steps: list[tuple[float, float]], last_s: float
) -> None:
    samples, at_s = [], 0.0
    for gap_s, value in steps:
        at_s += gap_s
        samples.append((at_s, value))
    series = [TimeStampedValue(at_s, value) for at_s, value in samples]
    theirs = time_weighted_average(series, last_window_s=last_s or 1e-3)  # as its controller does where none has passed
    assert math.isclose(ray_mean(samples, at_s + last_s), theirs, rel_tol=1e-9, abs_tol=1e-9)


def test_the_stock_parameters_are_those_of_the_installed_release() -> None:
    stock, ours = AutoscalingConfig(), RayParameters()
    assert stock.target_ongoing_requests == ours.target_ongoing_requests
    assert stock.look_back_period_s == ours.look_back_s
    assert stock.metrics_interval_s == ours.metrics_interval_s
    assert stock.upscale_delay_s == ours.upscale_delay_s
    assert stock.downscale_delay_s == ours.downscale_delay_s
    assert stock.downscale_to_zero_delay_s == ours.downscale_to_zero_delay_s
    assert stock.get_upscaling_factor() == ours.upscaling_factor
    assert stock.get_downscaling_factor() == ours.downscaling_factor
