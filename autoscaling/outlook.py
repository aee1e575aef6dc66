"""How the load of a tier will stand when a replica ordered now is ready, learnt from what past forecasts missed.

    lead  = cold start + tick                            how long it is from an order to a replica that serves
    ahead = mean + hold*(load - mean) + carry*trend      the share of a deviation, and of a trend, that lasts a lead
    error = sqrt(2 * E[max(0, load now - what was forecast for now)^2])

`hold` and `carry` are fitted by least squares with forgetting, and bounded to [0, 1]. A load that wanders has hold 1;
one that jumps and falls back within a lead has hold 0, since replicas ordered for its peak would come too late for it.
What cannot be foreseen is left to `error`, which the policy's margin covers. Loads are in busy replicas. A seasonal
forecast is left out on purpose: on public traces it loses to the last value.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass, replace

from autoscaling.parameters import Parameters

# At first it is as if PRIOR_LESSONS had shown that deviations by PRIOR_DEVIATION of the mean last, and DOUBTFUL_LESSONS
# that forecasts err by doubt_share. Until the squares of the trends seen exceed PRIOR_TREND2, trends count for little.
PRIOR_LESSONS = 30.0
DOUBTFUL_LESSONS = 10.0
PRIOR_DEVIATION = 0.1
PRIOR_TREND2 = 1.0
LEAST_MEAN = 0.1  # so that a tier without load has a prior too
MEAN_SETTLES_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a forecast was made from. `mean`: of the loads until then, the recent ones counting most."""

    at_s: float
    load: float
    trend: float
    mean: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What is known of one load. `looks`: the oldest first, back to one lead. `age_s`: what the mean covers.

    The rest are sums over lessons, which fade. Of squares: `deviation2` from the mean, `trend2`, `over2` of forecasts
    that fell short. Of products: `lasted`, a deviation times what was left of it; `explained`, a trend times what the
    deviation had left unexplained. `lessons` counts them, `doubt` those of the prior.
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
    doubt: float = DOUBTFUL_LESSONS


def hold(outlook: Outlook) -> float:
    """The share of a deviation from the mean that is still there a lead later."""
    prior = PRIOR_LESSONS * (PRIOR_DEVIATION * max(outlook.mean, LEAST_MEAN)) ** 2
    return min(1.0, max(0.0, (outlook.lasted + prior) / (outlook.deviation2 + prior)))


def carry(outlook: Outlook) -> float:
    """The share of a trend that came true."""
    return min(1.0, max(0.0, outlook.explained / (outlook.trend2 + PRIOR_TREND2)))


def forecast(outlook: Outlook, load: float, trend: float) -> float:
    """The load one lead ahead. It never falls as `load` or `trend` rises."""
    return max(0.0, outlook.mean + hold(outlook) * (load - outlook.mean) + carry(outlook) * trend)


def error(outlook: Outlook, ahead: float, doubt_share: float) -> float:
    """By how much the load may exceed its forecast `ahead`: one standard deviation, until learnt a share of it."""
    doubted2 = outlook.doubt * (doubt_share * ahead) ** 2
    return math.sqrt((2 * outlook.over2 + doubted2) / (outlook.lessons + outlook.doubt))


def first(load: float, trend: float, now_s: float) -> Outlook:
    """Nothing is learnt yet: the forecast is the load."""
    return Outlook(looks=(Look(at_s=now_s, load=load, trend=trend, mean=load),), mean=load)


def learnt(outlook: Outlook, now: Look, lead_s: float, parameters: Parameters) -> Outlook:
    """With the lesson of now, once per `learn_s`; `now.mean` is not read."""
    since_s = now.at_s - outlook.looks[-1].at_s
    if since_s < parameters.learn_s:
        return outlook
    pace = max(since_s / parameters.learnt_s, since_s / (outlook.age_s + since_s + MEAN_SETTLES_S))
    mean = outlook.mean + min(1.0, pace) * (now.load - outlook.mean)
    looks = (*outlook.looks, replace(now, mean=mean))
    at = bisect_right(looks, now.at_s - lead_s, key=lambda look: look.at_s) - 1
    kept = replace(outlook, looks=looks[max(0, at) :], mean=mean, age_s=outlook.age_s + since_s)
    # A past shorter than a lead teaches what it can. A look that lies farther beyond the lead than looks lie apart was
    # made before a gap in the signals: it teaches nothing.
    then = looks[max(0, at)]
    if now.at_s - lead_s - then.at_s > 2 * max(parameters.learn_s, parameters.tick_s):
        return kept
    return _taught(kept, then, now.load, math.exp(-since_s / parameters.learnt_s))


def _taught(outlook: Outlook, then: Look, load: float, fade: float) -> Outlook:
    """What became of the look of a lead ago, now that the load stands here."""
    deviation, left = then.load - then.mean, load - then.mean
    lasting = replace(
        outlook,
        deviation2=fade * outlook.deviation2 + deviation * deviation,
        lasted=fade * outlook.lasted + deviation * left,
    )
    unexplained = left - hold(lasting) * deviation
    # By what was known before this lesson: a fit errs less on what it was fitted to.
    missed = max(0.0, left - hold(outlook) * deviation - carry(outlook) * then.trend)
    return replace(
        lasting,
        trend2=fade * outlook.trend2 + then.trend * then.trend,
        explained=fade * outlook.explained + then.trend * unexplained,
        over2=fade * outlook.over2 + missed * missed,
        lessons=fade * outlook.lessons + 1.0,
        doubt=fade * outlook.doubt,
    )
