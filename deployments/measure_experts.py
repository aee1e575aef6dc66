"""Where experts lie and what they computed, as metric families of the moment: what has moved away is shown no more.

Counters of places that an expert has left stay, so that sums over them only grow. A layer is shown expert by expert
where all of them fit MOST_SERIES even after every expert has been everywhere; else as many layers are as do, spread
evenly. The imbalance of every layer is always there.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from deployments.engines.engine import ExpertReport
from monitoring.metrics import EXPERTS

MOST_SERIES = 2000  # of a replica's widest metric: the gateway reads so many in some 40 ms, between the tokens it sends
UNKNOWN = "unknown"
Cell = tuple[tuple[object, ...], float]  # labels behind the tier, and the value
_CATALOGUE = {metric.name: metric for metric in EXPERTS}


def expert_families(tier: str, report: ExpertReport) -> Iterator[Metric]:
    """Those of `monitoring.metrics.EXPERTS`. Series begin at 0 as of an unknown domain, others once they counted."""
    shown = _shown(report)
    lies = hosted(report) & shown
    imbalance = np.array(report.imbalance, np.float64)
    copies = lies.sum(2)
    yield _family("expert_tokens_total", tier, _counts(report, lies, shown))
    yield _family("expert_window_tokens", tier, _cells(lies, report.window))
    yield _family("expert_copies", tier, _cells(copies > 0, copies))
    yield _family("expert_imbalance_ratio", tier, _cells(~np.isnan(imbalance), imbalance))
    yield _family("expert_rebalances_total", tier, [((), report.rebalances)])
    yield _family("expert_moves_total", tier, [((), report.moved)])
    yield _family("expert_rebalance_stall_seconds", tier, [((), report.stall_s)])


def hosted(report: ExpertReport) -> NDArray[np.bool_]:
    """[layers, experts, ranks]: whether the expert lies there. Ranks hold runs of equally many slots."""
    layers, experts, ranks = report.window.shape
    slots = np.array(report.slots, np.int64).reshape(layers, -1)
    lies = np.zeros((layers, experts, ranks), np.bool_)
    lies[np.arange(layers)[:, None], slots, np.arange(slots.shape[1]) * ranks // max(1, slots.shape[1])] = True
    return lies


def _shown(report: ExpertReport) -> NDArray[np.bool_]:
    """[layers, 1, 1]: whether the layer is shown expert by expert."""
    layers, experts, ranks = report.window.shape
    of_layer = experts * ranks * len({*report.domains, ""})
    fitting = min(layers, MOST_SERIES // max(1, of_layer))
    shown = np.zeros((layers, 1, 1), np.bool_)
    shown[np.linspace(0, layers - 1, fitting).round().astype(np.int64)] = True
    return shown


def _counts(report: ExpertReport, lies: NDArray[np.bool_], shown: NDArray[np.bool_]) -> Iterator[Cell]:
    by_domain = {"": np.zeros_like(report.window)} | dict(zip(report.domains, report.tokens, strict=True))
    for domain, rows in by_domain.items():
        where = (rows > 0) & shown
        for at, count in _cells(where if domain else where | lies, rows):
            yield (*at, domain or UNKNOWN), count


def _cells(where: NDArray[np.bool_], values: NDArray[Any]) -> Iterator[Cell]:
    for at in np.argwhere(where).tolist():
        yield tuple(at), float(values[*at])


def _family(name: str, tier: str, cells: Iterable[Cell]) -> Metric:
    metric = _CATALOGUE[f"moray_{name}"]
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=metric.labels)
    for labels, value in cells:
        family.add_metric([tier, *map(str, labels)], value)
    return family
