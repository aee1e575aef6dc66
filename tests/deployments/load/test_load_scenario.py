"""Scenario files: closed, with faults that name file, path and mend; and arrivals that follow their curves."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ConfigurationError
from deployments.load.scenario import Rate, parse, read

SHIPPED = sorted((Path(__file__).parents[2] / "load").glob("*.yaml"))
WHOLE = """
name: small
about: a test
duration_s: 60
streams:
  - {model: turbo, rps: {0: 1, 60: 2}}
"""


def test_six_scenarios_ship() -> None:
    assert [file.stem for file in SHIPPED] == ["alert", "node-loss", "ramp", "spike", "tier-saturation", "video-flood"]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_a_scenario_that_ships_is_named_as_its_file_and_warms_up(file: Path) -> None:
    scenario = read(file)
    assert scenario.name == file.stem
    assert scenario.warm_up_s > 0


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ("colour: red", "f.yaml: colour: not known"),
        ("warm_up_s: 60", "f.yaml: warm_up_s: 60; less than duration_s is allowed"),
        ("tenants: {gold: 0}", "f.yaml: tenants.gold: '0'; Input should be greater than 0"),
        ("actions: [{name: a, at_s: 60, do: x}]", "f.yaml: actions.0.at_s: 60; less than duration_s"),
        ("actions: [{name: a, at_s: 1, do: x}, {name: a, at_s: 2, do: y}]", "f.yaml: actions: a, a; each name once"),
        ("videos: {per_hour: {30: 1, 20: 2}}", "f.yaml: videos.per_hour: seconds 30, 20; rising ones"),
        ("videos: {per_hour: {0: 1, 90: 2}}", "f.yaml: videos.per_hour: 90 s; at most duration_s, 60"),
        ("videos: {per_hour: {}}", "f.yaml: videos.per_hour: '{}'; Dictionary should have at least 1 item"),
        ("name: again", "f.yaml: name: given again in line"),
        ("seed: [", "f.yaml: not YAML"),
    ],
)
def test_a_fault_is_told_by_file_path_and_mend(more: str, fault: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(WHOLE + more, "f.yaml")
    assert caught.value.message.startswith(fault)
    assert "; " in caught.value.message


def test_every_fault_of_a_file_is_told_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse("name: x\nduration_s: -1\nstreams: [{rps: {0: fast}}]", "f.yaml")
    told = caught.value.message.splitlines()
    assert [line.split(": ")[1] for line in told] == ["about", "duration_s", "streams.0.rps.0"]


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"--scenario: none\.yaml"):
        read(Path("none.yaml"))


at_s = st.integers(0, 400).map(lambda quarters: quarters / 4)
curves = st.dictionaries(at_s, st.one_of(st.just(0.0), st.floats(0.001, 50)), min_size=1, max_size=6).map(
    lambda points: dict(sorted(points.items()))
)


@given(curves, st.floats(1, 100), st.floats(0.01, 3))
def test_as_many_have_come_at_each_moment_as_the_rate_says(curve: dict[float, float], end_s: float, k: float) -> None:
    rate = Rate(curve, end_s, k)
    passed = np.linspace(0, rate.expected, 50, endpoint=False)
    at_s = rate.moments(passed)
    assert ((at_s >= 0) & (at_s < end_s)).all()
    assert (np.diff(at_s) >= -1e-9).all()
    if rate.expected > 1e-6:
        for at, wanted in zip(at_s, passed, strict=True):
            knots = np.array([0.0, *(knot for knot in curve if 0 < knot < at), at])
            heights = np.interp(knots, list(curve), list(curve.values())) * k
            assert np.trapezoid(heights, knots) == pytest.approx(wanted, rel=1e-6, abs=1e-6 * rate.expected)
