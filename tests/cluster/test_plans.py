"""What a plan may say of limits, and where a family may count them."""

from typing import Any

import pytest
import yaml

from cluster.errors import ConfigurationError
from cluster.family import BUNDLED, Family, LimitStore, Plan, load, parse
from cluster.limits import Limit


def family(plan: dict[str, Any], **given: Any) -> Family:
    raw = yaml.safe_load((BUNDLED / "laptop.yaml").read_text(encoding="utf-8"))
    raw["plans"] = {"mine": {"tiers": ["turbo", "mini"]} | plan}
    for key, value in given.items():
        raw[key] = raw[key] | value if isinstance(value, dict) and key in raw else value
    return parse(yaml.safe_dump(raw), "mine.yaml")


def fault(plan: dict[str, Any], **given: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        family(plan, **given)
    return caught.value.message


def test_a_plan_without_numbers_has_no_limits() -> None:
    assert Plan(tiers=("turbo",)).limits == ()


def test_each_number_of_a_plan_is_a_limit() -> None:
    plan = Plan(
        tiers=("turbo",),
        requests_per_minute=1,
        tokens_per_minute=2,
        gpu_seconds_per_minute=3.5,
        concurrent=4,
        video_seconds_per_day=5,
        budget_usd_per_month=6.5,
    )
    assert plan.limits == (
        Limit(currency="requests", amount=1, period="minute"),
        Limit(currency="tokens", amount=2, period="minute"),
        Limit(currency="gpu_s", amount=3.5, period="minute"),
        Limit(currency="concurrent", amount=4, period="held"),
        Limit(currency="video_s", amount=5, period="day"),
        Limit(currency="usd", amount=6.5, period="month"),
    )
    assert [limit.lasting for limit in plan.limits] == [False, False, False, False, True, True]


@pytest.mark.parametrize("name", ["laptop", "h200"])
def test_the_lowest_plan_that_ships_is_limited_and_the_enterprises_by_contract_alone(name: str) -> None:
    plans = load(name).plans
    assert len(plans["developer"].limits) >= 5
    assert plans["enterprise"].limits == ()


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"requests_per_minute": 0}, "plans.mine.requests_per_minute: 0; Input should be greater than 0"),
        ({"concurrent": 1.5}, "plans.mine.concurrent: 1.5; Input should be a valid integer"),
        ({"budget_usd_per_month": float("inf")}, "plans.mine.budget_usd_per_month: inf; Input should be a finite"),
        (
            {"tokens_per_minute": 500, "context_tokens": 1000},
            "plans.mine: tokens_per_minute is 500, below context_tokens 1000; a request of the whole context",
        ),
        (
            {"context_tokens": 4096},
            "plans.mine.context_tokens is 4096; the longest of its tiers is 2048; lower it, or leave it out",
        ),
    ],
)
def test_a_limit_that_cannot_be_kept_or_never_bites_is_refused(plan: dict[str, Any], message: str) -> None:
    assert message in fault(plan)


def test_a_day_that_holds_no_whole_video_is_refused_where_there_is_video() -> None:
    assert "the shortest video has 2 s and would never be granted" in fault(
        {"video_seconds_per_day": 1}, video={"seconds": [4, 2]}
    )
    assert family({"video_seconds_per_day": 1}, video=None).plans["mine"].video_seconds_per_day == 1


SHARED = {
    "gateway": {"replicas": 2, "database": "postgresql://moray@db/moray", "files": "s3://bucket/files"},
    "cells": [{"name": "node", "count": 2, "gpus": 8}],
    "video": None,
}


def test_gateways_on_several_machines_count_limits_in_one_store() -> None:
    message = "gateway.replicas is 2 on 2 cells; 1 is allowed while the limits of plan 'mine' are counted in the state"
    assert message in fault({"concurrent": 1}, **SHARED)
    assert family({"concurrent": 1}, **SHARED, limits={"store": "redis://host:6379/0"}).limits.kind == "redis"
    assert family({}, **SHARED).limits.kind == "sqlite"
    one = SHARED | {"cells": [{"name": "node", "gpus": 8}]}
    assert family({"concurrent": 1}, **one).limits.kind == "sqlite"


@pytest.mark.parametrize(
    ("store", "kind"),
    [
        ("sqlite", "sqlite"),
        ("redis://host", "redis"),
        ("rediss://moray@host:6380/3?ssl_ca_certs=/ca.pem", "redis"),
        ("postgresql://moray@host:5432/db", "postgresql"),
        ("postgres://moray@/db?host=/run/postgresql", "postgresql"),
    ],
)
def test_a_store_is_a_file_or_a_url(store: str, kind: str) -> None:
    assert LimitStore(store=store).kind == kind


@pytest.mark.parametrize(
    "store", ["redis://:secret@host/0", "redis://host?password=secret", "postgresql://moray:secret@host/db"]
)
def test_a_password_is_given_by_reference_and_told_to_nobody(store: str) -> None:
    message = fault({}, limits={"store": store})
    assert message.startswith("mine.yaml: limits: store is given with a password; a URL without one is allowed;")
    assert "secret" not in message


@pytest.mark.parametrize("store", ["", "memory", "mysql://host/db", "redis:host", "redis://", "sqlite:///file"])
def test_another_store_is_refused(store: str) -> None:
    assert "limits: store is none that is known; sqlite, redis://HOST:PORT/NUMBER" in fault({}, limits={"store": store})


def test_only_redis_has_a_file_with_its_password() -> None:
    given = {"password_file": "/run/secrets/redis"}
    assert "password_file is given for sqlite; only Redis takes one" in fault({}, limits=given)
    assert LimitStore(store="redis://host", password_file="/run/secrets/redis").password_file == "/run/secrets/redis"
