"""How the load of a tier will stand when a replica ordered now is ready, learnt from what past forecasts missed.

    ahead = mean + hold*(load - mean) + carry*trend      hold: of a deviation what lasts that long; carry: of a trend
    error = sqrt(2 * E[max(0, load now - what was forecast for now)^2])

`hold` and `carry` are least squares with forgetting, within [0, 1]: a load that wanders has hold 1, one that jumps
up and falls back within a cold start has hold 0, since replicas ordered for its peak would come when it is over. What
cannot be foreseen ends up in `error`, which the policy's margin covers. A seasonal forecast is left out on purpose: on
public traces it loses to the last value.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass, replace

from autoscaling.parameters import Parameters

PRIOR_LESSONS = 30.0  # of deviations by a tenth of the mean that lasted; and of errors by doubt_share of the load
PRIOR_DEVIATION = 0.1
MEAN_SETTLES_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a forecast was made from. Loads are in replicas kept busy."""

    at_s: float
    load: float
    trend: float
    mean: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """`looks`: the oldest first, back to one lead. The sums fade; they are over lessons, one per `learn_s`:

    deviations from the mean squared, and times what was left of them; trends squared, and times what they explained;
    errors upwards squared; `lessons` and `doubt` are the weights of what was learnt and of the prior.
    """

    looks: tuple[Look, ...]
    mean: float
    age_s: float = 0.0
    deviation2: float = 0.0
    lasted: float = 0.0
    trend2: float = 0.0
    explained: float = 0.0
    over2: float = 0.0
    lessons: float = 0.0
    doubt: float = PRIOR_LESSONS


def hold(outlook: Outlook) -> float:
    prior = PRIOR_LESSONS * (PRIOR_DEVIATION * max(outlook.mean, 0.1)) ** 2
    return min(1.0, max(0.0, (outlook.lasted + prior) / (outlook.deviation2 + prior)))


def carry(outlook: Outlook) -> float:
    return min(1.0, max(0.0, outlook.explained / (outlook.trend2 + 1.0)))


def forecast(outlook: Outlook, load: float, trend: float) -> float:
    """The load one lead ahead, never falling as `load` and `trend` rise."""
    return max(0.0, outlook.mean + hold(outlook) * (load - outlook.mean) + carry(outlook) * trend)


def error(outlook: Outlook, ahead: float, doubt_share: float) -> float:
    """By how much the load may exceed its forecast `ahead`: one standard deviation."""
    doubted2 = outlook.doubt * (doubt_share * ahead) ** 2
    return math.sqrt((2 * outlook.over2 + doubted2) / (outlook.lessons + outlook.doubt))


def first(load: float, trend: float, now_s: float) -> Outlook:
    return Outlook(looks=(Look(at_s=now_s, load=load, trend=trend, mean=load),), mean=load)


def learnt(outlook: Outlook, now: Look, lead_s: float, parameters: Parameters) -> Outlook:
    """With the lesson of now, where it is time for one; `now.mean` is not read."""
    since_s = now.at_s - outlook.looks[-1].at_s
    if since_s < parameters.learn_s:
        return outlook
    pace = max(since_s / parameters.learnt_s, since_s / (outlook.age_s + since_s + MEAN_SETTLES_S))
    mean = outlook.mean + min(1.0, pace) * (now.load - outlook.mean)
    looks = (*outlook.looks, replace(now, mean=mean))
    at = bisect_right(looks, now.at_s - lead_s, key=lambda look: look.at_s) - 1
    kept = replace(outlook, looks=looks[max(0, at) :], mean=mean, age_s=outlook.age_s + since_s)
    # Nothing is learnt across a gap in the signals.
    if at < 0 or now.at_s - lead_s - looks[at].at_s > 2 * parameters.learn_s:
        return kept
    return _taught(kept, looks[at], now.load, math.exp(-since_s / parameters.learnt_s))


def _taught(outlook: Outlook, then: Look, load: float, fade: float) -> Outlook:
    deviation, left = then.load - then.mean, load - then.mean
    lasting = replace(
        outlook,
        deviation2=fade * outlook.deviation2 + deviation * deviation,
        lasted=fade * outlook.lasted + deviation * left,
    )
    unexplained = left - hold(lasting) * deviation
    missed = max(0.0, unexplained - carry(outlook) * then.trend)
    return replace(
        lasting,
        trend2=fade * outlook.trend2 + then.trend * then.trend,
        explained=fade * outlook.explained + then.trend * unexplained,
        over2=fade * outlook.over2 + missed * missed,
        lessons=fade * outlook.lessons + 1.0,
        doubt=fade * outlook.doubt,
    )
