"""A scenario: what is sent at which second, and what somebody does to the server meanwhile. One closed YAML file.

A scenario names tiers or models, never addresses, keys or commands: those are the command line's.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat, ValidationError, model_validator

from cluster.engines import Closed
from cluster.errors import ConfigurationError
from cluster.strict_yaml import mapping
from cluster.workload import Floats

MOST_PER_S = 10_000.0
LONGEST_S = 86_400.0
# A rate by second: straight lines between the points, and the first and last rate before and behind them.
Curve = Annotated[
    dict[Annotated[NonNegativeFloat, Field(le=LONGEST_S)], Annotated[NonNegativeFloat, Field(le=MOST_PER_S * 3600)]],
    Field(min_length=1),
]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]


class Tokens(Closed):
    """Lognormal: the median, and the deviation of the logarithm; sigma 0 is a fixed length."""

    median: int = Field(ge=1, le=1_000_000)
    sigma: float = Field(default=0.0, ge=0, le=3)


class Stream(Closed):
    """Poisson arrivals for one model. `model`: a tier, a model name, or empty for the first that the server lists."""

    model: str = ""
    rps: Curve
    prompt: Tokens = Tokens(median=200)
    output: Tokens = Tokens(median=60)


class Videos(Closed):
    """Jobs for the videos API. What is not given is the server's to choose."""

    per_hour: Curve
    model: str | None = None
    prompt: str = "a red ball"
    size: str | None = None
    seconds: str | None = None

    @property
    def body(self) -> dict[str, str]:
        return self.model_dump(exclude={"per_hour"}, exclude_none=True)


class Action(Closed):
    """What somebody does at that second, in words. A command for it comes from the command line alone."""

    name: Name
    at_s: NonNegativeFloat
    do: str = Field(min_length=1)


class Scenario(Closed):
    """`tenants`: shares of the requests. What is due in the first `warm_up_s` is sent, but not judged."""

    name: Name
    about: str = Field(min_length=1)
    duration_s: PositiveFloat = Field(le=LONGEST_S)
    warm_up_s: NonNegativeFloat = 0.0
    seed: int = Field(default=0, ge=0)
    streams: tuple[Stream, ...] = ()
    videos: Videos | None = None
    tenants: dict[Name, PositiveFloat] = Field(default_factory=dict)
    actions: tuple[Action, ...] = ()

    @model_validator(mode="after")
    def something_to_send(self) -> Self:
        if not self.streams and self.videos is None:
            raise ValueError("streams: none, and no videos; one of them is needed; add a stream")
        if self.warm_up_s >= self.duration_s:
            raise ValueError(f"warm_up_s: {self.warm_up_s:g}; less than duration_s is allowed; shorten it")
        return self

    @model_validator(mode="after")
    def rising_curves(self) -> Self:
        curves = {f"streams.{index}.rps": stream.rps for index, stream in enumerate(self.streams)}
        if self.videos is not None:
            curves["videos.per_hour"] = self.videos.per_hour
        for where, curve in curves.items():
            if list(curve) != sorted(curve):
                raise ValueError(f"{where}: seconds {', '.join(f'{s:g}' for s in curve)}; rising ones; sort the points")
            if max(curve) > self.duration_s:
                raise ValueError(f"{where}: {max(curve):g} s; at most duration_s, {self.duration_s:g}; move the point")
        return self

    @model_validator(mode="after")
    def actions_in_time(self) -> Self:
        names = [action.name for action in self.actions]
        if len(set(names)) < len(names):
            raise ValueError(f"actions: {', '.join(names)}; each name once is allowed; rename one")
        for index, action in enumerate(self.actions):
            if action.at_s >= self.duration_s:
                raise ValueError(f"actions.{index}.at_s: {action.at_s:g}; less than duration_s is allowed; act earlier")
        return self


def parse(text: str, where: str) -> Scenario:
    """Raises ConfigurationError with every fault, each as `where: path: given; allowed; mend`."""
    raw = mapping(text, where, "one that ships")
    try:
        return Scenario.model_validate(raw)
    except ValidationError as error:
        raise ConfigurationError("\n".join(_fault(where, fault) for fault in error.errors())) from error


def read(file: Path) -> Scenario:
    """Raises ConfigurationError where the file is missing or wrong."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--scenario: {file}: {error}; a YAML file is needed; give its path") from error
    return parse(text, str(file))


def _fault(where: str, fault: Any) -> str:
    path = ".".join(str(part) for part in fault["loc"] if part != "[key]")
    match fault["type"]:
        case "extra_forbidden":
            return f"{where}: {path}: not known; fields of the scenarios that ship are allowed; drop or rename it"
        case "missing":
            return f"{where}: {path}: missing; it is needed; add it"
        case "value_error":  # ours: it names the path itself
            return f"{where}: {fault['msg'].removeprefix('Value error, ')}"
    return f"{where}: {path}: {str(fault['input'])[:60]!r}; {fault['msg']}; mend the value"


class Rate:
    """A curve as a rate per second over [0, duration_s), and its inverse integral: when so many are expected to have
    come. Arrivals that are Poisson at rate 1 over `expected` become Poisson at this rate (Cinlar 1975, theorem 7.4).
    """

    def __init__(self, curve: Mapping[float, float], duration_s: float, per_s: float) -> None:
        inner = [at_s for at_s in curve if 0 < at_s < duration_s]
        self._at_s = np.array([0.0, *inner, duration_s])
        self._rate = np.interp(self._at_s, list(curve), list(curve.values())) * per_s
        width_s = np.diff(self._at_s)
        self._passed = np.concatenate(([0.0], np.cumsum((self._rate[1:] + self._rate[:-1]) / 2 * width_s)))
        self._slope = np.diff(self._rate) / width_s

    @property
    def expected(self) -> float:
        return float(self._passed[-1])

    def moments(self, passed: Floats) -> Floats:
        """Seconds, by numbers in [0, expected); sorted as those are."""
        part = np.clip(np.searchsorted(self._passed, passed, side="right") - 1, 0, len(self._slope) - 1)
        left, rate = passed - self._passed[part], self._rate[part]
        below = rate + np.sqrt(np.maximum(0.0, rate**2 + 2 * self._slope[part] * left))
        within = np.divide(2 * left, below, out=np.zeros_like(left), where=below > 0)
        return np.asarray(np.minimum(self._at_s[part] + within, np.nextafter(self._at_s[-1], 0.0)))
