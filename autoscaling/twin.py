"""The twin: the cluster without GPUs, event by event, under the very functions that decide on the live one.

Real: routing, admission, tier choice, fairness and scaling (twin_desk). Simulated: replicas (twin_replica), video
replicas (twin_video), cold starts (lognormal), nodes and their failures (twin_nodes). Left out: the network,
tokenisation, reports that are late, engines that pre-empt. The scaling policy is asked every `tick_s`; it sees true
gauges and counters. GPUs are billed up to the horizon: the last arrival, or the soonest end of the last video job.
"""

import math
from collections.abc import Callable
from heapq import heappop, heappush
from random import Random
from typing import Any

import numpy as np

from autoscaling.ceilings import floor_gpu_hours
from autoscaling.report import Figures, Report
from autoscaling.signals import Decision, Scaler, Seen, spec_of
from autoscaling.twin_desk import Desk
from autoscaling.twin_nodes import Nodes
from autoscaling.twin_pool import Pool
from autoscaling.twin_scenario import VIDEO, Failure, Scenario
from autoscaling.twin_tally import Bools, Ended, Sample, Tally, course, with_video
from autoscaling.twin_tier import TwinTier
from autoscaling.twin_video import VideoPool
from cluster.cost import service
from cluster.errors import ConfigurationError
from cluster.family import ColdStart
from cluster.loads import Router
from cluster.workload import Jobs, Workload, taken

__all__ = ["Failure", "Scenario", "Watch", "rehearse"]

UNLIMITED_GPUS = 1_000_000
LAST_CALL_S = 3600.0  # after the horizon; what no replica has taken by then never will be
NORMAL_P99 = 2.3263

Watch = Callable[[Seen, Any, Decision, Any], None]  # seen, memory before, decision, memory after


def rehearse(
    scenario: Scenario,
    workload: Workload,
    jobs: Jobs | None,
    scaler: Scaler,
    router: Router,
    watch: Watch | None = None,
) -> Report:
    """One run to the end of its last request. The same arguments give the same report. `watch` is told every tick."""
    return _Twin(scenario, workload, jobs, scaler, router).run(watch)


class _Twin:
    def __init__(
        self, scenario: Scenario, workload: Workload, jobs: Jobs | None, scaler: Scaler, router: Router
    ) -> None:
        family = scenario.family
        self.scenario, self.workload, self.scaler = scenario, workload, scaler
        if not scaler.tick_s > 0:
            raise ConfigurationError(f"tick_s: {scaler.tick_s}; more than 0 is allowed; ask the policy later")
        if jobs is not None and family.video is None:
            raise ConfigurationError(
                f"jobs: {len(jobs)}; no video in family {family.name}; none are allowed; give None"
            )
        self.jobs = jobs
        self.rng = Random(scenario.seed)
        self.events: list[tuple[float, int, Callable[[float, int], None], int]] = []
        self.count = 0
        self.horizon_s = _horizon_s(workload, self.jobs)
        self.nodes = Nodes(family.cells[0].gpus, scenario.gpus, self.horizon_s)
        self.tally = Tally(workload, family.tiers)
        self.desk = Desk(scenario, workload, router, self.tally, self.schedule, self.rng)
        self.tiers = tuple(self._tier(name) for name in family.tiers)
        self.video = self._video(self.jobs) if self.jobs is not None else None
        self.desk.serve(self.tiers)
        self.memory: Any = None
        self.samples: list[Sample] = []
        self.sampled = [0] * len(self.tiers)

    def _tier(self, name: str) -> TwinTier:
        scenario = self.scenario
        tier = scenario.family.tiers[name]
        block_tokens = self.workload.block_tokens if self.workload.blocks is not None else None
        median_s, draw_s = self._cold_start(tier.cold_start)
        return TwinTier(
            name=name,
            pool=Pool(service(tier, name, chunking=scenario.chunking), block_tokens),
            nodes=self.nodes,
            imbalance=scenario.imbalance.get(name, 1.0),
            cold_start_s=median_s,
            opened=self.desk.opened,
            schedule=self.schedule,
            draw_s=draw_s,
        )

    def _video(self, jobs: Jobs) -> VideoPool:
        video = self.scenario.family.video
        assert video is not None
        draw_s = self._cold_start(video.cold_start)[1]
        return VideoPool(jobs=jobs, gpus=video.gpus, nodes=self.nodes, schedule=self.schedule, draw_s=draw_s)

    def _cold_start(self, given: ColdStart) -> tuple[float, Callable[[], float]]:
        median_s = given.p50_s if self.scenario.cold_start_s is None else self.scenario.cold_start_s
        sigma = math.log(given.p99_s / given.p50_s) / NORMAL_P99
        return median_s, lambda: median_s * math.exp(self.rng.gauss(0.0, sigma))

    # --- the clockwork

    def schedule(self, at_s: float, call: Callable[[float, int], None], argument: int) -> None:
        self.count += 1
        heappush(self.events, (at_s, self.count, call, argument))

    def run(self, watch: Watch | None) -> Report:
        self.watch = watch
        self._begin()
        arrival_s: list[float] = self.workload.arrival_s.tolist()
        events, index, requests, arrive = self.events, 0, len(arrival_s), self.desk.arrive
        while events:
            if index < requests and arrival_s[index] <= events[0][0]:
                arrive(index, arrival_s[index])
                index += 1
                continue
            at_s, _, call, argument = heappop(events)
            call(at_s, argument)
        return self._report()

    def _begin(self) -> None:
        """Replicas that are there at first, the largest groups first; who finds no room is an order like others."""
        family, initial = self.scenario.family, self.scenario.initial or {}
        first = [
            (tier.orders, initial.get(tier.name, given.replicas.initial))
            for tier, given in zip(self.tiers, family.tiers.values(), strict=True)
        ]
        if self.video is not None and family.video is not None:
            first.append((self.video.orders, initial.get(VIDEO, family.video.replicas.initial)))
        for orders, replicas in sorted(first, key=lambda one: -one[0].ranks):
            orders.begin(replicas)
        if self.video is not None:
            for job, at_s in enumerate(self.video.jobs.arrival_s.tolist()):
                self.schedule(at_s, self.video.arrive, job)
        for number, failure in enumerate(self.scenario.failures):
            self.schedule(failure.at_s, self._fail, number)
        self.schedule(0.0, self._tick, 0)

    def _fail(self, now_s: float, number: int) -> None:
        """All that is lost is lost before anything of it goes on elsewhere."""
        failure = self.scenario.failures[number]
        if failure.node is not None:
            self.nodes.fail(failure.node)
            if self.video is not None:
                self.video.lose(now_s, failure.node)
        hit = [tier for tier in self.tiers if failure.tier in (None, tier.name)]
        lost = [request for tier in hit for request in tier.lose(now_s, failure.node)]
        self.desk.rescue(lost, now_s)

    # --- control

    def _tick(self, now_s: float, _: int) -> None:
        seen = self._seen(now_s)
        decision, after = self.scaler(seen, self.memory)
        if self.watch is not None:
            self.watch(seen, self.memory, decision, after)
        self.memory = after
        self._steer(now_s, decision)
        if now_s <= self.horizon_s:
            self._sample(now_s)
        for tier in self.tiers:
            if tier.held:
                self.desk.shed(tier, now_s)
                self.desk.release(tier, now_s)
        busy = self.desk.open > 0 or (self.video is not None and len(self.video.finished_s) < len(self.video.jobs))
        if now_s < self.horizon_s or (busy and now_s < self.horizon_s + LAST_CALL_S):
            self.schedule(now_s + self.scaler.tick_s, self._tick, 0)

    def _seen(self, now_s: float) -> Seen:
        return Seen(
            now_s=now_s,
            gpus=self.nodes.gpus if self.scenario.gpus is not None else UNLIMITED_GPUS,
            tiers={tier.name: tier.seen() for tier in self.tiers},
            video=self.video.seen(now_s) if self.video is not None else None,
        )

    def _steer(self, now_s: float, decision: Decision) -> None:
        """In any order: what grows waits for what shrinks."""
        for tier in self.tiers:
            tier.steer(now_s, decision.tiers[tier.name].replicas)
        if self.video is not None and decision.video is not None:
            self.video.steer(now_s, decision.video.replicas)
        vacate = {tier.name: tier.vacate for tier in self.tiers}
        if self.video is not None:
            vacate[VIDEO] = self.video.vacate
        for lease in self.nodes.in_the_way():
            vacate[lease.owner](now_s, lease)

    def _sample(self, now_s: float) -> None:
        arrived = [tier.counters.arrived_requests for tier in self.tiers]
        rates = {
            tier.name: (now - before) / self.scaler.tick_s
            for tier, now, before in zip(self.tiers, arrived, self.sampled, strict=True)
        }
        self.sampled = arrived
        ready = {tier.name: float(tier.pool.ready) for tier in self.tiers}
        held = {tier.name: float(len(tier.held)) for tier in self.tiers}
        if self.video is not None:
            ready[VIDEO], held[VIDEO] = float(len(self.video.replicas)), float(len(self.video.waiting))
        self.samples.append(Sample(now_s, rates, ready, held, float(self.nodes.used_gpus)))

    # --- the end

    def _report(self) -> Report:
        self.nodes.settle()
        ended = self.tally.ended()
        spec = spec_of(self.scenario.family)
        floors = {
            tier.name: floor_gpu_hours(
                taken(self.workload, np.flatnonzero(ended.asked == index)), spec.tiers[tier.name]
            )
            for index, tier in enumerate(self.tiers)
        }
        everything = np.ones(len(self.workload), dtype=bool)
        figures = self._figures(ended, everything, sum(self.nodes.gpu_s.values()), sum(floors.values()))
        if self.video is not None:
            figures = with_video(figures, self.video.jobs, self.video.finished_s)
        tiers = {
            tier.name: self._figures(
                ended, ended.asked == index, self.nodes.gpu_s.get(tier.name, 0.0), floors[tier.name]
            )
            for index, tier in enumerate(self.tiers)
        }
        return Report(figures=figures, course=course(self.samples, ended), tiers=tiers)

    def _figures(self, ended: Ended, mine: Bools, gpu_s: float, floor_gpu_hours: float) -> Figures:
        return ended.figures(mine, gpu_s / 3600, floor_gpu_hours, self.scenario.family.gpu_usd_per_hour)


def _horizon_s(workload: Workload, jobs: Jobs | None) -> float:
    """The same for all policies, so that their bills are for the same time."""
    ends_s: list[float] = [0.0, *workload.arrival_s[-1:].tolist()]
    if jobs is not None:
        ends_s += (jobs.arrival_s + jobs.steps * jobs.step_s).tolist()
    return max(ends_s)
