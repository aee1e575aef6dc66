"""One step ahead: the forecasters of Dynamo's planner, each a function of the values so far, none of them negative.

    constant    the last value
    kalman      local linear trend: level += trend + N(0, 1), trend += N(0, 0.1), value = level + N(0, 10)
    ar          AR(p) on the differences by least squares, p <= 5 by Akaike's criterion

`ar` stands in for Dynamo's default, an automatic search over ARIMA orders, which is not carried here: no moving
average, one difference always. Like the original it returns a constant series as is and fits log(1 + value) where no
order helps. Fewer than five values: the last one.
"""

from collections.abc import Sequence

import numpy as np

from cluster.workload import Floats

LEAST_POINTS = 5
MOST_ORDER = 5
Q_LEVEL, Q_TREND, R, FIRST_SPREAD = 1.0, 0.1, 10.0, 1000.0  # variances; Dynamo's


def constant(values: Sequence[float]) -> float:
    return values[-1]


def kalman(values: Sequence[float]) -> float:
    if len(values) < LEAST_POINTS:
        return values[-1]
    move = np.array([[1.0, 1.0], [0.0, 1.0]])
    noise = np.diag([Q_LEVEL, Q_TREND])
    state, spread = np.array([values[0], 0.0]), FIRST_SPREAD * np.eye(2)
    for value in values[1:]:
        state, spread = move @ state, move @ spread @ move.T + noise
        gain = spread[:, 0] / (spread[0, 0] + R)
        state, spread = state + gain * (value - state[0]), spread - np.outer(gain, spread[0])
    return max(0.0, float(state[0] + state[1]))


def ar(values: Sequence[float]) -> float:
    if len(values) < LEAST_POINTS or len(set(values)) == 1:
        return values[-1]
    series = np.array(values)
    step = _next_step(np.diff(series))
    if step is None:
        logs = np.log1p(series)
        step = _next_step(np.diff(logs)) or 0.0
        with np.errstate(over="ignore"):  # infinite is answered below
            ahead = float(np.expm1(logs[-1] + step))
    else:
        ahead = float(series[-1] + step)
    return max(0.0, ahead) if np.isfinite(ahead) else values[-1]


def _next_step(steps: Floats) -> float | None:
    """The next difference, None where no order above 0 explains the differences better than none."""
    most = min(MOST_ORDER, (len(steps) - 1) // 2)
    lagged = np.column_stack([steps[most - lag : len(steps) - lag] for lag in range(1, most + 1)])
    best, step = _criterion(steps[most:], 0), None
    for order in range(1, most + 1):
        weights = np.linalg.lstsq(lagged[:, :order], steps[most:], rcond=None)[0]
        criterion = _criterion(steps[most:] - lagged[:, :order] @ weights, order)
        if criterion < best:
            best, step = criterion, float(steps[: -order - 1 : -1] @ weights)
    return step


def _criterion(errors: Floats, order: int) -> float:
    return float(len(errors) * np.log(max(float(errors @ errors) / len(errors), 1e-300)) + 2 * order)
