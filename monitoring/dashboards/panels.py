"""The words of dashboards. A dashboard is a module beside this one: a panel is added there, and nowhere else."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["lines", "stacked", "number", "heat"]  # heat: one row per series, time runs to the right
Variable = Literal["tier", "layer", "domain", "usd_per_gpu_hour", "usd_per_mtok_in", "usd_per_mtok_out"]

RATE = "$__rate_interval"  # of Grafana: at least four scrapes
RANGE = "$__range"  # of Grafana: what the dashboard shows


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    expr: str
    legend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """`unit`: as Grafana names it. `width`: of 24 columns. `says`: what the panel tells, and when to worry."""

    title: str
    says: str
    unit: str
    queries: tuple[Query, ...]
    kind: Kind = "lines"
    width: int = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """`uid`: for ever, and the name of its file. `decided`: whether reasons of decisions are shown as annotations."""

    uid: str
    title: str
    says: str
    rows: tuple[Row, ...]
    variables: tuple[Variable, ...] = ()
    decided: bool = True


def by(label: str, expr: str) -> Query:
    """One line for each value of the label."""
    return Query(expr=expr, legend=f"{{{{{label}}}}}")


def per_s(metric: str, *labels: str, where: str = "") -> str:
    """The rate of a counter, summed over all but the labels."""
    return f"sum by ({', '.join(labels)}) (rate({metric}{{{where}}}[{RATE}]))"


def share(part: str, whole: str, label: str, window: str = RATE) -> str:
    """Of one counter in another, by label. Both as selectors."""
    return f"sum by ({label}) (rate({part}[{window}])) / sum by ({label}) (rate({whole}[{window}]))"


def quantiles(histogram: str, where: str = "") -> tuple[Query, ...]:
    """p50, p95 and p99 of what is selected."""
    return tuple(
        Query(
            expr=f"histogram_quantile({q}, sum by (le) (rate({histogram}_bucket{{{where}}}[{RATE}])))",
            legend=f"p{q * 100:g}",
        )
        for q in (0.5, 0.95, 0.99)
    )
