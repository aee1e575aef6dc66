"""What tiers promise, as series: the share of requests that may miss, the share that does, and when that is too fast.

Alerts on promises follow the multi-window, multi-burn-rate form of Google's SRE Workbook, chapter "Alerting on SLOs":
the long window tells that it matters, the short one that it still goes on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.family import Family
from cluster.tier import OBJECTIVE

ALLOWED = "tier:moray_promises_allowed:ratio"
REFUSED = "tier:moray_admissions_refused:ratio_rate5m"
DEADLINE = "family:moray_video_deadline:seconds"
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
FEWEST_MISSED = 5  # in the long window: one miss at night is no trend
VIDEO_DEADLINE_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    name: str
    expr: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Burn:
    """Misses over both windows come `times` as fast as the objective allows over its 30 days."""

    short: str
    long: str
    times: float

    @property
    def expr(self) -> str:
        fast = (f"{missed(window)} > {self.times:g} * {ALLOWED}" for window in (self.short, self.long))
        floor = f'sum by (tier) (increase(moray_promises_total{{outcome="missed"}}[{self.long}])) >= {FEWEST_MISSED}'
        return " and ".join((*fast, floor))


PAGE = (Burn(short="5m", long="1h", times=14.4), Burn(short="30m", long="6h", times=6))
TICKET = (Burn(short="2h", long="1d", times=3), Burn(short="6h", long="3d", times=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Promised:
    """`objectives`: by tier, the share of ended requests that keeps its promises; OBJECTIVE where a tier is not named.

    `video_deadline_s`: None where there is no video.
    """

    objectives: Mapping[str, float] = field(default_factory=dict)
    video_deadline_s: float | None = VIDEO_DEADLINE_S


def promised(family: Family) -> Promised:
    objectives = {key: tier.slo.objective for key, tier in family.tiers.items()}
    deadline_s = None if family.video is None else family.video.slo.deadline_s
    return Promised(objectives=objectives, video_deadline_s=deadline_s)


def missed(window: str) -> str:
    """The name of the recorded share of ended requests that missed their tier's promises."""
    return f"tier:moray_promises_missed:ratio_rate{window}"


def recordings(promised: Promised) -> tuple[Recording, ...]:
    """In an order in which each finds what it reads."""
    refused = _share('moray_admissions_total{action="refuse"}', "moray_arrivals_total", "5m")
    return (
        Recording(name=ALLOWED, expr=_allowed(promised.objectives)),
        *(
            Recording(
                name=missed(window),
                expr=_share('moray_promises_total{outcome="missed"}', "moray_promises_total", window),
            )
            for window in WINDOWS
        ),
        Recording(name=REFUSED, expr=refused),
        *(
            ()
            if promised.video_deadline_s is None
            else (Recording(name=DEADLINE, expr=f"vector({promised.video_deadline_s:g})"),)
        ),
    )


def _allowed(objectives: Mapping[str, float]) -> str:
    """A series for each tier: its own where the objective differs, the default for all others that are seen."""
    own = [
        f'label_replace(vector({1 - objective:.6g}), "tier", "{tier}", "", "")'
        for tier, objective in sorted(objectives.items())
        if objective != OBJECTIVE
    ]
    return " or ".join((*own, f"0 * sum by (tier) (moray_promises_total) + {1 - OBJECTIVE:.6g}"))


def _share(part: str, whole: str, window: str) -> str:
    return f"sum by (tier) (rate({part}[{window}])) / sum by (tier) (rate({whole}[{window}]))"
