import inspect
from collections.abc import Mapping
from typing import Any

import pytest
from ray.serve._private.common import DeploymentID
from ray.serve.config import AutoscalingContext, AutoscalingPolicy

from deployments.control import targets
from deployments.control.follow import Follow
from deployments.control.targets import Targets


def context(target: int) -> AutoscalingContext:
    """As Serve's controller builds it."""
    given = dict.fromkeys(inspect.signature(AutoscalingContext).parameters)
    named: dict[str, Any] = {
        "deployment_id": DeploymentID("pro", "moray-pro"),
        "deployment_name": "pro",
        "app_name": "moray-pro",
        "target_num_replicas": target,
    }
    return AutoscalingContext(**given | named)


def asked(*answers: Mapping[str, int] | Exception) -> Targets:
    """After these answers, one a look."""
    script = iter(answers)

    def ask() -> Mapping[str, int]:
        answer = next(script)
        if isinstance(answer, Exception):
            raise answer
        return answer

    rounds = iter([False] * len(answers) + [True])
    followed = Targets(ask)
    followed.follow(lambda: next(rounds))
    return followed


@pytest.mark.parametrize(
    ("told", "target"),
    [(None, 2), ({}, 2), ({"turbo": 5}, 2), ({"pro": 0}, 0), ({"pro": 3, "turbo": 5}, 3)],
)
def test_a_tier_follows_its_target_and_stays_as_it_is_while_there_is_none(
    monkeypatch: pytest.MonkeyPatch, told: Mapping[str, int] | None, target: int
) -> None:
    monkeypatch.setattr(targets, "last", lambda: told)
    assert Follow("pro")(context(2)) == (target, {})


def test_nothing_is_known_before_the_first_answer() -> None:
    assert asked().last is None
    assert asked(ValueError("no such actor")).last is None


def test_the_last_targets_stay_while_nobody_answers() -> None:
    assert asked({"pro": 1}, {"pro": 2}, TimeoutError("lost"), ValueError("no such actor")).last == {"pro": 2}


def test_targets_are_followed_again_after_an_outage() -> None:
    assert asked({"pro": 1}, TimeoutError("lost"), {"pro": 3}).last == {"pro": 3}


def test_an_outage_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    lost = TimeoutError("lost")
    asked(lost, lost, {"pro": 1}, lost, lost, lost, {"pro": 1}, lost)
    assert [record.message for record in caplog.records] == [
        "control loop: no answer (lost); the last targets stay"
    ] * 2


def test_all_policies_of_a_process_share_one_state_although_serve_ships_them_by_value() -> None:
    policy = AutoscalingPolicy(policy_function="deployments.control.follow:Follow", policy_kwargs={"tier": "pro"})
    shipped = policy.get_serialized_policy_def()
    assert b"Follow" in shipped
    assert b"deployments.control.targets" in shipped  # the module by its name
    assert b"threading" not in shipped
    assert len(shipped) < 10_000
