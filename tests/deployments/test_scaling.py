from typing import Any

import pytest
from ray.serve._private.common import DeploymentID
from ray.serve.config import AutoscalingContext

from deployments import scaling
from deployments.scaling import TierPolicy

SPEC = {"min": 0, "max": 3, "initial": 0, "idle_s": 60.0, "target_ongoing": 4}


def context(
    *, running: int = 0, target: int = 0, requests: float = 0, queued: float | None = 0, now_s: float | None = 100.0
) -> AutoscalingContext:
    """As the controller builds it: `requests` are those on replicas and those queued."""
    return AutoscalingContext(
        deployment_id=DeploymentID("mini", "moray"),
        deployment_name="mini",
        app_name="moray",
        current_num_replicas=running,
        target_num_replicas=target,
        running_replicas=[],
        total_num_requests=requests,
        total_queued_requests=queued,
        aggregated_metrics=None,
        raw_metrics=None,
        capacity_adjusted_min_replicas=0,
        capacity_adjusted_max_replicas=3,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=now_s,
        config=None,
    )


def target(policy: TierPolicy, **seen: Any) -> int:
    replicas, state = policy(context(**seen))
    assert state == {}
    return replicas


@pytest.mark.parametrize("queued", [1, 0.1])
def test_a_sleeping_tier_wakes_up_when_something_waits_however_short_on_average(queued: float) -> None:
    policy = TierPolicy("mini", SPEC)
    assert target(policy) == 0
    assert target(policy, requests=queued, queued=queued) == 1


def test_load_asks_for_replicas_and_idleness_gives_them_back_later() -> None:
    policy = TierPolicy("mini", SPEC)
    assert target(policy, running=1, target=1, requests=9, queued=1, now_s=0.0) == 3  # ceil(9 / 4)
    assert target(policy, running=3, target=3, now_s=59.0) == 3
    assert target(policy, running=3, target=3, now_s=59.0 + 60.0) == 0


def test_queued_requests_are_not_counted_twice() -> None:
    policy = TierPolicy("mini", SPEC)
    assert target(policy, requests=4, queued=4) == 1


def test_a_missing_signal_holds_the_target() -> None:
    policy = TierPolicy("mini", SPEC)
    assert target(policy, target=2, running=2, requests=8) == 2
    assert target(policy, target=2, running=2, requests=0, queued=None, now_s=1e6) == 2


def test_an_exception_inside_keeps_the_last_target(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = TierPolicy("mini", SPEC)

    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(scaling, "step", broken)
    assert target(policy, target=2, requests=100) == 2
    monkeypatch.undo()
    assert target(policy, target=2, requests=100) == 3


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -1.0])
def test_numbers_that_make_no_sense_never_reach_serve_as_an_exception(odd: float) -> None:
    policy = TierPolicy("mini", SPEC)
    for seen in ({"requests": odd}, {"queued": odd}, {"now_s": odd}):
        assert 0 <= target(policy, **({"target": 2} | seen)) <= 3


def test_a_controller_without_a_clock_is_answered() -> None:
    assert target(TierPolicy("mini", SPEC), requests=1, queued=1, now_s=None) == 1
