from dataclasses import dataclass
from typing import Literal

import pytest

from cluster.errors import ConfigurationError
from deployments.contenders import contender, contenders, parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    share: float = 0.5
    count: int = 1
    trend: bool = True
    choice: Literal["min", "max"] = "min"
    target: float | None = None
    other: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.share > 1:
            raise ValueError(f"share is {self.share:g}; at most 1 is allowed; lower it")


def test_settings_are_read_by_the_type_of_their_parameter() -> None:
    given = {"share": "0.25", "count": "3", "trend": "false", "choice": "max", "target": "7"}
    assert parameters(Knobs, given, "x") == Knobs(share=0.25, count=3, trend=False, choice="max", target=7.0)
    assert parameters(Knobs, {"target": "none"}, "x") == Knobs()
    assert parameters(Knobs, {}, "x") == Knobs()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("shar", "1", "x: there is no parameter 'shar'; its parameters: share, count, trend, choice, target, other;"),
        ("share", "half", "x: share=half; a number is allowed; change the value"),
        ("share", "nan", "x: share=nan; a number is allowed; change the value"),
        ("share", "inf", "x: share=inf; a number is allowed; change the value"),
        ("share", "2", "x: share is 2; at most 1 is allowed; lower it"),
        ("count", "1.5", "x: count=1.5; a whole number is allowed; change the value"),
        ("trend", "1", "x: trend=1; true or false is allowed; change the value"),
        ("choice", "mean", "x: choice=mean; min or max is allowed; change the value"),
        ("target", "", "x: target=; a number or none is allowed; change the value"),
        ("other", "a", "x: other=a; nothing that can be written here is allowed; change the value"),
    ],
)
def test_a_setting_that_fits_no_parameter_is_an_error(name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parameters(Knobs, {name: text}, "x")
    assert refused.value.message.startswith(message)


def test_a_contender_may_carry_its_router_and_settings() -> None:
    first, second, third = contenders("moray,kpa/p2c,ray/target_ongoing_requests=8/look_back_s=60", None, "x")
    assert (first.policy, first.router, first.name) == ("moray", "moray", "moray")
    assert (second.policy, second.router, second.name) == ("kpa", "p2c", "kpa/p2c")
    assert (third.router, third.settings) == ("p2c", {"target_ongoing_requests": "8", "look_back_s": "60"})
    assert third.name == "ray/target_ongoing_requests=8/look_back_s=60"


def test_a_router_for_all_yields_to_a_contenders_own() -> None:
    first, second = contenders("moray,kpa/prefix", "kv", "x")
    assert (first.router, second.router) == ("kv", "prefix")
    assert first.name == "moray/kv"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "x: policy ''; moray, ray, kpa, dynamo, static, clairvoyant are allowed; choose one"),
        ("kpa/best", "x: router 'best'; moray, p2c, predicted, kv, prefix are allowed; choose one"),
        ("kpa/p2c/kv", "x: 'kv'; name=value is allowed; give both"),
        ("kpa/=1", "x: '=1'; name=value is allowed; give both"),
        ("kpa/a=1/a=2", "x: a is given twice; once is allowed; drop one"),
        ("kpa,ray,kpa/predicted", "x: kpa is given twice; each contender is allowed once; drop one"),
    ],
)
def test_a_contender_that_cannot_be_is_refused(given: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        contenders(given, None, "x")
    assert refused.value.message == message


def test_a_value_may_hold_the_sign_itself() -> None:
    assert contender("moray", None, ["a=b=c"], "x").settings == {"a": "b=c"}
