"""From samples of the metric catalogue to signals: the same whether they were scraped or asked of Prometheus."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Fault = Literal["unreachable", "stale", "missing", "contradictory", "skewed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One value of one series of one exposition (`instance`), taken at `at_s` on the clock of the look."""

    name: str
    labels: Mapping[str, str]
    instance: str
    value: float
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Everything that a source knew. `now_s`: on the source's clock, which need not be ours. `fault`: why there is

    nothing, in words.
    """

    now_s: float
    samples: tuple[Sample, ...] = ()
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """Replicas of a tier or of video that exist, as the cluster itself says."""

    ready: int = 0
    starting: int = 0
    draining: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """`counts`: by tier, and "video". None: the cluster could not be asked. `gpus`: that the family may hold now."""

    counts: Mapping[str, Count] | None
    gpus: int
