"""What Moray's rehearsed decisions are worth: the bill, routing, each idea taken out, and the speed of the twin.

    bill      GPU-hours, attainment and bad minutes beside the peers (stock, and tuned per trace and cold start), the
              best constant size and the clairvoyant plan
    routing   time to first token at equal replicas, nothing refused, the same engine for all
    ablation  Moray without one of its ideas
    speed     requests per second of whole rehearsals, one at a time

Peers come in two forms: "own", with their own router, a queue without a judge and the fixed chunk of stock engines;
and "ours", their scaling alone with Moray's routing, admission and chunks. Arrivals and cold starts are drawn from the
seed; peers are tuned on a seed that no figure is taken from. Moray has one set of parameters: its defaults.
"""

import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from bench.one_tier import MOONCAKE, STRETCH_S, TRACES, Serving, Trace, World, as_row, play, world
from bench.tuning import GOAL, STOCK, K, PeerName, Setting, least_k, least_static, planned, tuned
from bench.twin_summary import SUMMARIES, verdict

from autoscaling import peer_routing, peers, policy
from autoscaling.parameters import Parameters
from autoscaling.peers import StaticParameters
from autoscaling.signals import Scaler
from cluster.loads import Router
from cluster.routing import choose

PARTS = ("bill", "routing", "ablation", "speed")
COLD_STARTS_S = (30.0, 120.0, 300.0)
QUICK_COLD_STARTS_S = (120.0,)
QUICK_S = 1200.0
SEEDS = 5
FIRST_SEED = 11
TUNING_SEED = 1
OURS = Serving(router=choose)
PEERS: dict[PeerName, Serving] = {
    "ray": Serving(router=peer_routing.two_choices, admission=False, chunking="fixed"),
    "kpa": Serving(router=peer_routing.predicted, admission=False, chunking="fixed"),
    "dynamo": Serving(router=peer_routing.KvCost(), admission=False, chunking="fixed"),
}
STRICTER = 0.995  # what a peer is tuned to whose tuning to 99 % falls short of it on the other seeds
ABLATED: dict[str, tuple[Parameters, Serving]] = {
    "all ideas": (Parameters(), OURS),
    "no margin": (Parameters(margin=False), OURS),
    "no trend": (Parameters(trend=False), OURS),
    "no backlog": (Parameters(backlog=False), OURS),
    "no learning": (Parameters(learn_s=1e12), OURS),  # no lesson ever: a deviation lasts, the doubt stays
    "no prediction": (Parameters(), replace(OURS, router=peer_routing.two_choices)),
    "no admission": (Parameters(), replace(OURS, admission=False)),
    "fixed chunks": (Parameters(), replace(OURS, chunking="fixed")),
}
ABLATION_TRACES = ("azure x20", "m-large spike", "deepseek-r1")
ROUTERS: dict[str, Router] = {
    "moray": choose,
    "p2c": peer_routing.two_choices,
    "kv": peer_routing.KvCost(),
    "prefix": peer_routing.PrefixAffinity(),
}
# Of the router compared with; its replicas are the fewest that attain this. Mooncake's longest prompts take longer than
# the promise even alone, so that at 99 % nothing but those is left to compare.
ATTAINED, ATTAINED_MOONCAKE = (0.96, 0.99), (0.9, 0.96)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one process does at a stretch. `of`: within the part, which contestant or router."""

    part: str
    trace: Trace
    of: str
    traces: Path
    seeds: tuple[int, ...]
    cold_start_s: float = 120.0
    quick: bool = False

    @property
    def key(self) -> list[Any]:
        return [self.part, self.trace.name, self.cold_start_s, self.of, self.quick, list(self.seeds)]

    def world(self, seed: int) -> World:
        return world(self.traces, self.trace, self.cold_start_s, seed)


def run(
    *,
    traces: str,
    part: str | None = None,
    seeds: int | None = None,
    quick: bool = False,
    out: str | None = None,
    only: str | None = None,
) -> Row:
    """`traces`: the folder of the trace files. `out`: rows as they come; those that it has are not made again."""
    parts = PARTS if part is None else tuple(part.split(","))
    count = seeds or (1 if quick else SEEDS)
    rows = _made(list(_jobs(parts, Path(traces), range(FIRST_SEED, FIRST_SEED + count), quick, only)), out)
    figures = {name: SUMMARIES[name]([row for row in rows if row["part"] == name]) for name in parts}
    return {"figures": figures, **verdict(figures), "runs": count}


def _jobs(parts: Sequence[str], traces: Path, seeds: Sequence[int], quick: bool, only: str | None) -> Iterator[Job]:
    for part in parts:
        for trace, cold_start_s, of in JOBS[part](quick):
            if only is None or only in f"{trace.name}/{cold_start_s:g}/{of}":
                if quick and trace.duration_s == STRETCH_S:
                    trace = replace(trace, start_s=trace.start_s + STRETCH_S - QUICK_S, duration_s=QUICK_S)
                yield Job(
                    part=part,
                    trace=trace,
                    of=of,
                    traces=traces,
                    seeds=tuple(seeds),
                    cold_start_s=cold_start_s,
                    quick=quick,
                )


Task = tuple[Trace, float, str]


def _bill_tasks(quick: bool) -> Iterator[Task]:
    contestants = ("moray", "clairvoyant", *(f"{name}/{form}" for form in ("ours", "own") for name in PEERS))
    colds_s = QUICK_COLD_STARTS_S if quick else COLD_STARTS_S
    for trace in TRACES.values():
        yield trace, colds_s[0], "static"  # it never starts a replica
        yield from product((trace,), colds_s, contestants)


def _routing_tasks(quick: bool) -> Iterator[Task]:
    yield from product(TRACES.values(), (120.0,), ("p2c",))
    yield from product(MOONCAKE.values(), (120.0,), ("kv", "p2c", "prefix"))


def _ablation_tasks(quick: bool) -> Iterator[Task]:
    yield from product((TRACES[name] for name in ABLATION_TRACES), (120.0,), ABLATED)


def _speed_tasks(quick: bool) -> Iterator[Task]:
    yield from product(TRACES.values(), (120.0,), ("moray",))


JOBS: dict[str, Callable[[bool], Iterator[Task]]] = {
    "bill": _bill_tasks,
    "routing": _routing_tasks,
    "ablation": _ablation_tasks,
    "speed": _speed_tasks,
}


# --- work


def _made(jobs: Sequence[Job], out: str | None) -> list[Row]:
    """The rows of all jobs, on all cores; speed on one core, when the others are done."""
    known = [json.loads(line) for line in Path(out).read_text().splitlines()] if out and Path(out).exists() else []
    keys = [job.key for job in jobs]
    rows = [row for row in known if row["key"] in keys]
    left = [job for job in jobs if job.key not in [row["key"] for row in rows]]
    os.environ["OMP_NUM_THREADS"] = "1"
    cores = len(os.sched_getaffinity(0))
    for among in (
        [job for job in left if job.part != "speed"],
        [job for job in left if job.part == "speed"],
    ):
        if not among:
            continue
        processes = 1 if among[0].part == "speed" else min(cores, len(among))
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            for number, made in enumerate(pool.imap_unordered(_work, among), start=1):
                rows += made
                print(f"{number}/{len(among)} {made[-1]['key'][:4]}", file=sys.stderr, flush=True)
                if out:
                    with Path(out).open("a") as file:
                        file.writelines(json.dumps(row) + "\n" for row in made)
    return rows


def _work(job: Job) -> list[Row]:
    began_s = time.process_time()
    rows = list(WORK[job.part](job))
    common = {"key": job.key, "part": job.part, "trace": job.trace.name, "cold_start_s": job.cold_start_s}
    return [{**common, **row, "job_cpu_s": round(time.process_time() - began_s, 1)} for row in rows]


def _bill(job: Job) -> Iterator[Row]:
    name, _, form = job.of.partition("/")
    match name:
        case "moray":
            yield from _tested(job, lambda world: policy.scaler(world.spec), OURS, {"of": name})
        case "static":
            yield from _static(job)
        case "clairvoyant":
            yield from _clairvoyant(job)
        case "ray" | "kpa" | "dynamo":
            yield from _peer(job, name, form)


def _tested(job: Job, made: Callable[[World], Scaler], serving: Serving, row: Row) -> Iterator[Row]:
    for seed in job.seeds:
        drawn = job.world(seed)
        yield {**row, "seed": seed, **as_row(play(drawn, made(drawn), serving))}


def _peer(job: Job, name: PeerName, form: str) -> Iterator[Row]:
    """A peer that is tuned to 99 % and falls short of it on other seeds is tuned again, to more."""
    serving = PEERS[name] if form == "own" else OURS
    row = {"of": name, "form": form}
    if form == "own":
        yield from _tested(job, STOCK[name].scaler, serving, {**row, "tuned": "stock"})
    before: Setting | None = None
    for goal in (GOAL, STRICTER):
        setting, attained = tuned(name, job.world(TUNING_SEED), serving, coarse=job.quick, goal=goal)
        if setting == before:
            return
        before = setting
        rows = list(_tested(job, setting.scaler, serving, _row_of(row, setting, goal)))
        yield from rows
        if not attained or statistics.mean(one["attainment"] for one in rows) >= GOAL:
            return


def _row_of(row: Row, setting: Setting, goal: float) -> Row:
    return {**row, "tuned": f"to {goal:g}", "setting": setting.as_row()}


def _static(job: Job) -> Iterator[Row]:
    count = 0
    for seed in job.seeds:
        drawn = job.world(seed)
        count = least_static(drawn, OURS, count or math.ceil(1.2 * drawn.load))
        made = peers.static(drawn.spec, StaticParameters(replicas=count))
        yield {"of": "static", "seed": seed, "setting": count, **as_row(play(drawn, made, OURS, count))}


def _clairvoyant(job: Job) -> Iterator[Row]:
    step = 18  # k of 1.09
    for seed in job.seeds:
        drawn = job.world(seed)
        step = least_k(drawn, OURS, step)
        yield {
            "of": "clairvoyant",
            "seed": seed,
            "setting": K[step],
            **as_row(play(drawn, planned(drawn, step), OURS)),
        }


def _routing(job: Job) -> Iterator[Row]:
    """Moray's router and another on as many replicas as let the other one attain what is asked."""
    for goal in ATTAINED_MOONCAKE if job.trace.name in MOONCAKE else ATTAINED:
        others = Serving(router=ROUTERS[job.of], admission=False)
        drawn = job.world(TUNING_SEED)
        count = least_static(drawn, others, math.ceil(1.1 * drawn.load), goal)
        for name in (job.of, "moray"):
            row = {"against": job.of, "of": name, "goal": goal, "replicas": count}
            serving = Serving(router=ROUTERS[name], admission=False)
            made = partial(_constant, count)
            for seed in job.seeds:
                drawn = job.world(seed)
                yield {**row, "seed": seed, **as_row(play(drawn, made(drawn), serving, count))}


def _constant(count: int, drawn: World) -> Scaler:
    return peers.static(drawn.spec, StaticParameters(replicas=count))


def _ablation(job: Job) -> Iterator[Row]:
    parameters, serving = ABLATED[job.of]
    yield from _tested(job, lambda world: policy.scaler(world.spec, parameters), serving, {"of": job.of})


def _speed(job: Job) -> Iterator[Row]:
    for seed in job.seeds:
        drawn = job.world(seed)
        began_s = time.perf_counter()
        figures = play(drawn, policy.scaler(drawn.spec), OURS)
        wall_s = time.perf_counter() - began_s
        yield {"of": "moray", "seed": seed, "requests_per_s": figures.requests / wall_s, **as_row(figures)}


WORK: dict[str, Callable[[Job], Iterator[Row]]] = {
    "bill": _bill,
    "routing": _routing,
    "ablation": _ablation,
    "speed": _speed,
}
