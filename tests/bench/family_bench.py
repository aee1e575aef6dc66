"""The whole family on 64 GPUs: what Moray's one pool serves, in USD, beside fixed pools and independent scalers.

    moray                   one pool by marginal value, spill, lending
    fixed pools             the same GPUs split once: the split that would have served most, found in hindsight
    independent kpa, ray    each tier and video scales by itself, first come first served; tuned
    independent moray       the same with Moray's own need of each tier
    no spill, no lending, first come   Moray without one of these

Value: requests that kept both promises, at list price, and videos in time. All contestants have Moray's routing,
admission and chunks, which flatters the others; only Moray may spill. Tuned per hour, on a seed of its own.
"""

import json
import math
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from bench.family_work import GPUS, HOUR_S, HOURS, World, busy_replicas, without_spill, world

from autoscaling import peers, peers_kpa, policy
from autoscaling.parameters import Parameters
from autoscaling.policy import VIDEO
from autoscaling.report import Report
from autoscaling.signals import Decision, Scaler, Seen, Spec, spec_of
from autoscaling.twin import rehearse
from cluster.batching import SLACK_SHARE
from cluster.cost import slo_batch
from cluster.routing import choose
from cluster.workload import taken

SEEDS = 5
FIRST_SEED = 11
TUNING_SEED = 1
QUICK_S = 2400.0
AIM = 1.25
SHARES = (0.5, 0.65, 0.8, 1.0)  # of the batch that a tier's promise allows: meant to be on each replica
KPA_WAYS = (replace(peers_kpa.KNATIVE, down_choice="max"), peers_kpa.KpaParameters(down_choice="max"))
RAY_WAYS = (
    peers.RayParameters(look_back_s=10, upscale_delay_s=0, downscale_delay_s=60),
    peers.RayParameters(look_back_s=30, upscale_delay_s=30, downscale_delay_s=300),
)
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}  # by number of seeds
Row = dict[str, Any]
Settings = dict[str, Any]


@dataclass(frozen=True, slots=True)
class FirstCome:
    """Moray's need of each tier without the joint budget: all is ordered, and nodes serve orders as they come."""

    spec: Spec
    parameters: Parameters

    @property
    def tick_s(self) -> float:
        return self.parameters.tick_s

    def __call__(self, seen: Seen, memory: policy.Memory | None) -> tuple[Decision, policy.Memory]:
        return policy.step(replace(seen, gpus=1_000_000), memory, self.spec, self.parameters)


# --- contestants


def _moray(given: World, _: Settings) -> Report:
    return _played(given, policy.scaler(spec_of(given.scenario.family)))


def _no_lending(given: World, _: Settings) -> Report:
    return _played(given, policy.scaler(spec_of(given.scenario.family), Parameters(lending=False)))


def _first_come(given: World, _: Settings) -> Report:
    return _played(given, FirstCome(spec_of(given.scenario.family), Parameters()))


def _fixed(given: World, settings: Settings) -> Report:
    split = settings["replicas"]
    made = peers.static(spec_of(given.scenario.family), peers.StaticParameters(replicas=split))
    return _played(replace(given, scenario=replace(given.scenario, initial=split)), made)


def _kpa(given: World, settings: Settings) -> Report:
    way = KPA_WAYS[settings["way"]]
    return _played(
        given,
        peers_kpa.kpa(
            spec_of(given.scenario.family),
            {
                name: replace(way, target_ongoing_requests=target)
                for name, target in _targets(given, settings["share"]).items()
            },
        ),
    )


def _ray(given: World, settings: Settings) -> Report:
    way = RAY_WAYS[settings["way"]]
    return _played(
        given,
        peers.ray(
            spec_of(given.scenario.family),
            {
                name: replace(way, target_ongoing_requests=target)
                for name, target in _targets(given, settings["share"]).items()
            },
        ),
    )


CONTESTANTS: Mapping[str, tuple[Callable[[World, Settings], Report], bool]] = {  # and whether it may spill
    "moray": (_moray, True),
    "fixed pools": (_fixed, False),
    "independent kpa": (_kpa, False),
    "independent ray": (_ray, False),
    "independent moray": (_first_come, False),
    "no spill": (_moray, False),
    "no lending": (_no_lending, True),
    "first come": (_first_come, True),
}
TUNED = ("fixed pools", "independent kpa", "independent ray")


def _played(given: World, scaler: Scaler) -> Report:
    return rehearse(given.scenario, given.workload, given.jobs, scaler, choose)


def _targets(given: World, share: float) -> dict[str, float]:
    """By tier and for video: requests meant for each replica. A video replica holds one job."""
    targets = {VIDEO: 1.0}
    for index, (name, tier) in enumerate(given.scenario.family.tiers.items()):
        mine = taken(given.workload, np.flatnonzero(given.workload.model == index))
        prompt, output = mine.prompt_tokens.astype(float), mine.output_tokens.astype(float)
        context = float((output * (prompt + output / 2)).sum() / output.sum())
        batch = slo_batch(tier, float(prompt.mean()), float(output.mean()), context, SLACK_SHARE)
        targets[name] = max(1.0, share * batch)
    return targets


# --- tuning


def _tuned(name: str, given: World, quick: bool) -> Settings:
    if name == "fixed pools":
        return {"replicas": _best_split(given)}
    play = CONTESTANTS[name][0]
    shares, ways = (SHARES[1:3], (0,)) if quick else (SHARES, (0, 1))
    grid: list[Settings] = [{"share": share, "way": way} for share, way in product(shares, ways)]
    return max(grid, key=lambda settings: play(given, settings).figures.value_usd)


def _best_split(given: World) -> dict[str, int]:
    """Pools that do not help each other add up: each alone with every size that matters, then the best sum."""
    best: dict[int, tuple[float, dict[str, int]]] = {0: (0.0, {})}  # by GPUs used
    for name, ranks, sizes in _pools(given):
        values = {count: _alone(given, name, count) for count in sizes}
        grown: dict[int, tuple[float, dict[str, int]]] = {}
        for (used, (value, counts)), (count, more) in product(best.items(), values.items()):
            gpus = used + count * ranks
            if gpus <= GPUS and value + more > grown.get(gpus, (-1.0, {}))[0]:
                grown[gpus] = (value + more, {**counts, name: count})
        best = grown
    return max(best.values(), key=lambda found: found[0])[1]


def _pools(given: World) -> Iterator[tuple[str, int, range]]:
    """Name, GPUs of a replica, and sizes: up to twice the work in the mean, and one more."""
    family = given.scenario.family
    span_s = float(given.workload.arrival_s[-1])
    for index, (name, tier) in enumerate(family.tiers.items()):
        mine = taken(given.workload, np.flatnonzero(given.workload.model == index))
        most = math.ceil(2 * busy_replicas(tier, mine, span_s)) + 1
        yield name, tier.ranks, range(tier.replicas.min, min(most, tier.replicas.max) + 1)
    assert family.video is not None
    yield VIDEO, family.video.gpus, range(0, family.video.replicas.max + 1, 2)


def _alone(given: World, name: str, count: int) -> float:
    """What this pool alone serves with so many replicas."""
    family = given.scenario.family
    counts = dict.fromkeys((*family.tiers, VIDEO), 0) | {name: count}
    mine = np.flatnonzero(given.workload.model == (list(family.tiers).index(name) if name != VIDEO else -1))
    figures = rehearse(
        replace(given.scenario, initial=counts),
        taken(given.workload, mine),
        given.jobs if name == VIDEO else None,
        peers.static(spec_of(family), peers.StaticParameters(replicas=counts)),
        choose,
    ).figures
    return figures.value_usd


# --- runs


@dataclass(frozen=True, slots=True)
class Task:
    """`settings` None: they are what is asked for."""

    hour: str
    name: str
    seed: int
    traces: str
    quick: bool
    settings: Settings | None

    @property
    def key(self) -> list[Any]:
        return [self.hour, self.name, self.seed, self.quick, self.settings is None]


def run(
    *,
    traces: str,
    seeds: int | None = None,
    quick: bool = False,
    only: str | None = None,
    out: str | None = None,
) -> Row:
    """`traces`: folder of the trace files. `only`: of the hours. `out`: rows as they come, not made again."""
    hours = [hour for hour in HOURS if only is None or only in hour]
    count = seeds or (1 if quick else SEEDS)
    tuning = [Task(hour, name, TUNING_SEED, traces, quick, None) for hour, name in product(hours, TUNED)]
    found = {(row["hour"], row["name"]): row["settings"] for row in _made(tuning, out)}
    tasks = [
        Task(hour, name, seed, traces, quick, found.get((hour, name), {}))
        for hour, seed, name in product(hours, range(FIRST_SEED, FIRST_SEED + count), CONTESTANTS)
    ]
    rows = _made(tasks, out)
    figures = {hour: _summary([row for row in rows if row["hour"] == hour]) for hour in hours}
    for (hour, name), settings in found.items():
        figures[hour][name]["settings"] = settings
    ratios = {name: _ratio(rows, name) for name in CONTESTANTS if name != "moray"}
    others = [name for name in CONTESTANTS if name == "fixed pools" or name.startswith("independent")]
    return {
        "figures": {"hours": figures, "moray_over": ratios},
        "aim": {name: f">= {AIM}" for name in others},
        "met": all(ratios[name]["mean"] >= AIM for name in others),
        "runs": count,
    }


def _made(tasks: Sequence[Task], out: str | None) -> list[Row]:
    known = [json.loads(line) for line in Path(out).read_text().splitlines()] if out and Path(out).exists() else []
    keys = [task.key for task in tasks]
    rows = [row for row in known if row["key"] in keys]
    done = [row["key"] for row in rows]
    left = [task for task in tasks if task.key not in done]
    os.environ["OMP_NUM_THREADS"] = "1"
    if not left:
        return rows
    with multiprocessing.get_context("spawn").Pool(min(len(os.sched_getaffinity(0)), len(left))) as pool:
        for number, row in enumerate(pool.imap_unordered(_work, left), start=1):
            rows.append(row)
            print(f"{number}/{len(left)} {row['key'][:3]}", file=sys.stderr, flush=True)
            if out:
                with Path(out).open("a") as file:
                    file.write(json.dumps(row) + "\n")
    return rows


def _work(task: Task) -> Row:
    play, may_spill = CONTESTANTS[task.name]
    given = world(Path(task.traces), task.hour, task.seed, QUICK_S if task.quick else HOUR_S)
    given = given if may_spill else without_spill(given)
    common: Row = {"key": task.key, "hour": task.hour, "name": task.name, "seed": task.seed}
    if task.settings is None:
        return common | {"settings": _tuned(task.name, given, task.quick)}
    report = play(given, task.settings)
    figures = report.figures
    return common | {
        "value_usd": figures.value_usd,
        "attainment": figures.attainment,
        "gpu_hours": figures.gpu_hours,
        "spilled": figures.spilled,
        "jobs_in_time": figures.jobs_in_time / max(1, figures.jobs),
        **{f"{name}_attainment": tier.attainment for name, tier in report.tiers.items()},
        **{f"{name}_usd": tier.value_usd for name, tier in report.tiers.items()},
    }


# --- summary


def _summary(rows: Sequence[Row]) -> dict[str, Row]:
    """Means over the seeds, by contestant."""
    found: dict[str, Row] = {}
    for name in CONTESTANTS:
        mine = [row for row in rows if row["name"] == name]
        keys = [key for key in mine[0] if key not in ("key", "hour", "name", "seed")]
        found[name] = {key: round(statistics.mean(row[key] for row in mine), 4) for key in keys}
    return found


def _ratio(rows: Sequence[Row], name: str) -> Row:
    """Moray's value over this one's, of the same hours and seeds: each seed's geometric mean over the hours."""
    values = {(row["name"], row["hour"], row["seed"]): row["value_usd"] for row in rows}
    hours, seeds = sorted({row["hour"] for row in rows}), sorted({row["seed"] for row in rows})
    by_hour = {hour: [values["moray", hour, seed] / values[name, hour, seed] for seed in seeds] for hour in hours}
    each = [statistics.geometric_mean(ratios[index] for ratios in by_hour.values()) for index in range(len(seeds))]
    half = T_95[len(each)] * statistics.stdev(each) / math.sqrt(len(each)) if len(each) > 1 else math.nan
    return {
        "mean": round(statistics.mean(each), 3),
        "ci95_half": None if math.isnan(half) else round(half, 3),
        "by_hour": {hour: round(statistics.mean(ratios), 3) for hour, ratios in by_hour.items()},
    }
