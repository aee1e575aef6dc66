"""What the pages of replicas tell of routed experts: read from a gateway's /metrics, for people and for programs.

A replica of a tier is an expert group with a placement and counts of its own. Rows are tokens at an expert: each token
makes as many in a layer as the model chooses experts. Those that a rank computed for an expert which it holds no more
are not in the window, but in the layer's imbalance. A layer that a page does not show expert by expert has none here.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

MOST_USED = 3  # experts told of a domain
NONE_SHOWN = (
    "shows no experts: its model is dense, or its engine is one that does not tell (simulated, vllm, deepspeed)"
)
ASLEEP = "shows no experts: no replica of it runs now; a request wakes it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """`held` [experts, ranks]: where copies lie. `window` [experts, ranks]: the rows of the last window.

    `since_start` [experts] by domain: all rows. `imbalance`: most over mean of the ranks' window rows, nan of none.
    """

    index: int
    imbalance: float
    held: NDArray[np.bool_]
    window: NDArray[np.int64]
    since_start: Mapping[str, NDArray[np.int64]]

    @property
    def shares(self) -> NDArray[np.float64]:
        """[experts]: of the window's rows; nan where there were none."""
        return shares(self.window.sum(1))

    @property
    def rank_shares(self) -> NDArray[np.float64]:
        """[ranks]"""
        return shares(self.window.sum(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One replica. `moves`: copies of experts that a rank received. `stall_s`: of the last rebalance."""

    tier: str
    replica: str
    rebalances: int
    moves: int
    stall_s: float
    layers: tuple[Layer, ...]

    @property
    def ranks(self) -> int:
        return max((layer.held.shape[1] for layer in self.layers), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """`without`: tiers of which no experts are shown, and why."""

    groups: tuple[Group, ...]
    without: Mapping[str, str]


def seen(page: str) -> Seen:
    """Raises ValueError where the text is no page of metrics."""
    samples: defaultdict[str, list[Sample]] = defaultdict(list)
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            samples[sample.name].append(sample)
    running = {s.labels["tier"]: s.value for s in samples["moray_replicas_running"]}
    groups = tuple(_groups(samples))
    shown = {group.tier for group in groups}
    return Seen(
        groups=groups,
        without={tier: NONE_SHOWN if count else ASLEEP for tier, count in running.items() if tier not in shown},
    )


def as_dict(group: Group) -> dict[str, Any]:
    """Shares are of one layer. A figure of nothing is null."""
    return {
        "tier": group.tier,
        "replica": group.replica,
        "ranks": group.ranks,
        "rebalances": group.rebalances,
        "moves": group.moves,
        "stall_s": group.stall_s,
        "layers": [_layer_dict(layer) for layer in group.layers],
    }


def most_used(rows: NDArray[np.int64]) -> list[int]:
    """Experts that have any of the rows, those with the most first."""
    return [expert for expert in np.argsort(-rows, kind="stable").tolist() if rows[expert]]


def shares(rows: NDArray[np.int64]) -> NDArray[np.float64]:
    total = int(rows.sum())
    return rows / total if total else np.full(rows.shape, np.nan)


def _groups(samples: Mapping[str, Sequence[Sample]]) -> Iterator[Group]:
    of = {name: _by_replica(each) for name, each in samples.items() if name.startswith("moray_expert")}
    for tier, replica in of.get("moray_expert_rebalances_total", {}):
        mine = {name.removeprefix("moray_expert_"): each.get((tier, replica), []) for name, each in of.items()}
        if layers := tuple(_layers(mine)):
            yield Group(
                tier=tier,
                replica=replica,
                rebalances=int(_value(mine["rebalances_total"])),
                moves=int(_value(mine["moves_total"])),
                stall_s=_value(mine["rebalance_stall_seconds"]),
                layers=layers,
            )


def _by_replica(samples: Iterable[Sample]) -> dict[tuple[str, str], list[Sample]]:
    found: defaultdict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        found[sample.labels["tier"], sample.labels.get("replica", "")].append(sample)
    return dict(found)


def _value(samples: Sequence[Sample]) -> float:
    return float(samples[0].value)


def _layers(mine: Mapping[str, Sequence[Sample]]) -> Iterator[Layer]:
    window, imbalance, rows = (
        _by_layer(mine.get(name, ())) for name in ("window_tokens", "imbalance_ratio", "tokens_total")
    )
    for index in sorted(window | imbalance):
        places = {(int(s.labels["expert"]), int(s.labels["rank"])): int(s.value) for s in window.get(index, ())}
        shape = tuple(max(axis) + 1 for axis in zip(*places, strict=True)) if places else (0, 0)
        held, counts = np.zeros(shape, np.bool_), np.zeros(shape, np.int64)
        for at, count in places.items():
            held[at], counts[at] = True, count
        yield Layer(
            index=index,
            imbalance=_value(imbalance[index]) if index in imbalance else math.nan,
            held=held,
            window=counts,
            since_start=_by_domain(rows.get(index, ()), shape[0]),
        )


def _by_layer(samples: Iterable[Sample]) -> dict[int, list[Sample]]:
    found: defaultdict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        found[int(sample.labels["layer"])].append(sample)
    return dict(found)


def _by_domain(samples: Iterable[Sample], experts: int) -> dict[str, NDArray[np.int64]]:
    """Those that have any rows, by name; unknown comes last."""
    found: defaultdict[str, NDArray[np.int64]] = defaultdict(lambda: np.zeros(experts, np.int64))
    for sample in samples:
        found[sample.labels["domain"]][int(sample.labels["expert"])] += int(sample.value)
    return {
        name: found[name] for name in sorted(found, key=lambda name: (name == "unknown", name)) if found[name].any()
    }


def _layer_dict(layer: Layer) -> dict[str, Any]:
    rows = sum(map(int, (each.sum() for each in layer.since_start.values())))
    return {
        "layer": layer.index,
        "imbalance": _plain(layer.imbalance),
        "window_rows": int(layer.window.sum()),
        "ranks": [
            {"rank": rank, "rows": int(layer.window[:, rank].sum()), "share": _plain(share)}
            for rank, share in enumerate(layer.rank_shares.tolist())
        ],
        "experts": [
            {
                "expert": expert,
                "rows": int(layer.window[expert].sum()),
                "share": _plain(share),
                "copies": int(layer.held[expert].sum()),
                "ranks": np.flatnonzero(layer.held[expert]).tolist(),
            }
            for expert, share in enumerate(layer.shares.tolist())
        ],
        "domains": {
            name: {
                "rows": int(each.sum()),
                "share": each.sum() / rows,
                "expert_shares": shares(each).tolist(),
                "most_used": most_used(each)[:MOST_USED],
            }
            for name, each in layer.since_start.items()
        },
    }


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
