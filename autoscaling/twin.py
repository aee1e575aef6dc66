"""The twin: the cluster without GPUs, event by event, under the very functions that decide on the live one.

Real: routing, admission, tier choice, fairness and scaling. Simulated: replicas (twin_replica), video replicas
(twin_video), cold starts (lognormal), nodes and their failures. Left out: the network, tokenisation, reports that are
late, engines that pre-empt. The scaling policy is asked every `tick_s`; it sees true gauges and counters.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random
from typing import Any, Literal

import numpy as np

from autoscaling.ceilings import floor_gpu_hours
from autoscaling.report import Report
from autoscaling.signals import Decision, Scaler, Seen, spec_of
from autoscaling.twin_held import Held
from autoscaling.twin_pool import Nodes, Pool, Start
from autoscaling.twin_replica import NEVER_S, Hold, Replica, Request
from autoscaling.twin_tally import Promise, Sample, Tally, course, with_video
from autoscaling.twin_tier import TwinTier
from autoscaling.twin_video import VideoPool
from cluster.admission import decide
from cluster.cost import prefill_us, service
from cluster.errors import RequestError
from cluster.fairness import charged, lifted
from cluster.family import ColdStart, Family, Plan
from cluster.loads import Ask, Choice, Router
from cluster.tiering import Range, Wish, spill, tiers_for
from cluster.workload import Jobs, Workload

UNLIMITED_GPUS = 1_000_000
LAST_CALL_S = 3600.0  # after the last arrival; what no replica has taken by then never will be
NORMAL_P99 = 2.3263


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """At `at_s` a node dies, or the fullest replica of a tier."""

    at_s: float
    node: int | None = None
    tier: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What is rehearsed, beside workload and policy. `gpus` None: as many as are asked for.

    `cold_start_s`: the median, instead of each tier's own; the spread stays. `initial`: replicas at the start, by tier
    (and "video"), where not the family file's. `plans`: by tenant. `imbalance`: of expert load by tier, most loaded
    rank over the mean. `admission`: hold, spill and refuse as Moray does; without it a request waits until its router
    finds a replica. `chunking`: "slack" as cluster.batching decides, "fixed" as stock engines do.
    """

    family: Family
    gpus: int | None = None
    cold_start_s: float | None = None
    initial: Mapping[str, int] | None = None
    seed: int = 0
    plans: Mapping[str, Plan] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    imbalance: Mapping[str, float] = field(default_factory=dict)
    admission: bool = True
    chunking: Literal["slack", "fixed"] = "slack"


Watch = Callable[[Seen, Any, Decision, Any], None]  # seen, memory before, decision, memory after


@dataclass(frozen=True, slots=True)
class _Route:
    """Where requests of one kind may go, by tier index. All of one model, tenant and size class share it."""

    tiers: tuple[int, ...]
    range: Range
    tenant: str
    priority: int
    share: float


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
        self.scenario, self.workload, self.scaler, self.router = scenario, workload, scaler, router
        self.rng = Random(scenario.seed)
        self.events: list[tuple[float, int, Callable[[float, int], None], int]] = []
        self.count = 0
        family = scenario.family
        self.nodes = Nodes(family.cells[0].gpus, scenario.gpus)
        self.names = tuple(family.tiers)
        self.tiers = tuple(self._tier(name) for name in self.names)
        self.memory: Any = None
        self.open = len(workload)  # requests that have not ended
        self.horizon_s = float(workload.arrival_s[-1]) if len(workload) else 0.0
        self.jobs = jobs if jobs is not None and family.video is not None else None
        self.video = self._video(self.jobs) if self.jobs is not None else None
        if self.jobs is not None and len(self.jobs):
            self.horizon_s = max(self.horizon_s, float(self.jobs.arrival_s[-1]))
        self.prompt: list[int] = workload.prompt_tokens.tolist()
        self.output: list[int] = workload.output_tokens.tolist()
        self.us = [prefill_us(tier.pool.service, workload.prompt_tokens.astype(float)).tolist() for tier in self.tiers]
        self.routes: list[_Route | str] = []
        self.route_of = self._classes()
        self.served_gpu_s: dict[int, dict[str, float]] = {index: {} for index in range(len(self.tiers))}
        self.samples: list[Sample] = []
        self.arrived_before = [0] * len(self.tiers)
        self.tally = Tally(
            workload,
            self.names,
            tuple(
                Promise(
                    tier.slo.ttft_s, tier.slo.tpot_ms,
                    tier.price.input_usd_per_mtok / 1e6, tier.price.output_usd_per_mtok / 1e6,
                )
                for tier in family.tiers.values()
            ),
        )  # fmt: skip

    # --- the world

    def _tier(self, name: str) -> TwinTier:
        scenario = self.scenario
        tier = scenario.family.tiers[name]
        block_tokens = self.workload.block_tokens if self.workload.blocks is not None else None
        median_s, draw = self._cold_start(tier.cold_start)
        return TwinTier(
            pool=Pool(name, service(tier, name, chunking=scenario.chunking), block_tokens),
            nodes=self.nodes,
            imbalance=scenario.imbalance.get(name, 1.0),
            schedule=self.schedule,
            cold_start_s=draw,
            expected_cold_start_s=median_s,
            freed=self._freed,
            opened=self._opened,
            released=lambda hold, since_s, at_s: self._bill(name, hold, since_s, at_s),
        )

    def _video(self, jobs: Jobs) -> VideoPool:
        video = self.scenario.family.video
        assert video is not None
        return VideoPool(
            jobs=jobs,
            gpus=video.gpus,
            nodes=self.nodes,
            schedule=self.schedule,
            cold_start_s=self._cold_start(video.cold_start)[1],
            freed=self._freed,
            released=lambda hold, since_s, at_s: self._bill("video", hold, since_s, at_s),
        )

    def _cold_start(self, given: ColdStart) -> tuple[float, Callable[[], float]]:
        median_s = given.p50_s if self.scenario.cold_start_s is None else self.scenario.cold_start_s
        sigma = math.log(given.p99_s / given.p50_s) / NORMAL_P99
        return median_s, lambda: median_s * math.exp(self.rng.gauss(0.0, sigma))

    def _classes(self) -> list[int]:
        """The route of every request; requests that differ only in their prompt, between two limits, share one."""
        workload, family = self.workload, self.scenario.family
        limits = {tier.context_tokens for tier in family.tiers.values()}
        if family.auto is not None:
            limits.add(family.auto.long_prompt_tokens)
        edges = np.array(sorted(limits))
        size = np.searchsorted(edges, workload.prompt_tokens, side="right")
        kinds = np.stack([workload.model, workload.tenant, size]) if len(workload) else np.zeros((3, 0), dtype=int)
        unique, first, of = np.unique(kinds, axis=1, return_index=True, return_inverse=True)
        for kind, example in zip(unique.T, first, strict=True):
            self.routes.append(self._route(workload.models[kind[0]], workload.tenants[kind[1]], example))
        route_of: list[int] = of.reshape(-1).tolist()
        return route_of

    def _route(self, model: str, tenant: str, example: int) -> _Route | str:
        """Or the code of the error that such requests get."""
        family = self.scenario.family
        name = family.tiers[model].names[0] if model in family.tiers else model
        plan = self.scenario.plans.get(tenant)
        try:
            found = tiers_for(Wish(model=name, prompt_tokens=self.prompt[example]), plan, family)
        except RequestError as error:
            return error.code
        tiers = tuple(self.names.index(tier) for tier in found.tiers)
        if plan is None:
            return _Route(tiers, found, tenant, 0, 1.0)
        return _Route(tiers, found, tenant, plan.priority, plan.share)

    # --- the clockwork

    def schedule(self, at_s: float, call: Callable[[float, int], None], argument: int) -> None:
        self.count += 1
        heappush(self.events, (at_s, self.count, call, argument))

    def run(self, watch: Watch | None) -> Report:
        self.watch = watch
        self._begin()
        arrival_s: list[float] = self.workload.arrival_s.tolist()
        events, index, requests = self.events, 0, len(arrival_s)
        while events:
            if index < requests and arrival_s[index] <= events[0][0]:
                self._arrive(index, arrival_s[index])
                index += 1
                continue
            at_s, _, call, argument = heappop(events)
            call(at_s, argument)
        return self._report()

    def _begin(self) -> None:
        for tier, (name, given) in zip(self.tiers, self.scenario.family.tiers.items(), strict=True):
            for _ in range(self._initial(name, given.replicas.initial)):
                hold = self.nodes.take(given.ranks)
                if hold is not None:
                    tier.open(0.0, Start(hold=hold, order_s=0.0, ready_s=0.0))
        if self.video is not None and self.jobs is not None and self.scenario.family.video is not None:
            self.video.steer(0.0, self._initial("video", self.scenario.family.video.replicas.initial))
            for job, at_s in enumerate(self.jobs.arrival_s.tolist()):
                self.schedule(at_s, self.video.arrive, job)
        for number, failure in enumerate(self.scenario.failures):
            self.schedule(failure.at_s, self._fail, number)
        self.schedule(0.0, self._tick, 0)

    def _initial(self, name: str, declared: int) -> int:
        return (self.scenario.initial or {}).get(name, declared)

    # --- requests

    def _arrive(self, index: int, now_s: float) -> None:
        route = self.routes[self.route_of[index]]
        if isinstance(route, str):
            self.tally.asked[index] = 0
            self._end(index, f"rejected:{route}")
            return
        tier = self.tiers[route.tiers[0]]
        self.tally.asked[index] = route.tiers[0]
        tier.counters.arrived_requests += 1
        tier.counters.arrived_prompt_tokens += self.prompt[index]
        blocks = self.workload.blocks[index] if self.workload.blocks is not None else ()
        request = Request(index, now_s, self.prompt[index], self.output[index], blocks=blocks)
        if tier.held:
            self._hold(request, route)
            self._release(tier, now_s)
        else:
            self._place(request, route, now_s)

    def _choose(self, tier: TwinTier, index: int, request: Request, now_s: float) -> tuple[Choice, Ask]:
        pool = tier.pool
        hits = pool.prefix.hits_tokens(request.blocks, pool.used_slots) if pool.prefix is not None else None
        ask = Ask(
            prompt_tokens=request.prompt_tokens,
            expected_output_tokens=tier.output_tokens,
            us_per_token=self.us[index][request.index],
            draw=self.rng.random(),
            hit_tokens=hits,
        )
        return self.router(pool.loads, ask, pool.service, now_s, tier.packing), ask

    def _place(self, request: Request, route: _Route, now_s: float, *, again: bool = False) -> bool:
        """Dispatch, hold or refuse. False: it has to wait, and a request `again` asked for is not held twice."""
        first = route.tiers[0]
        tier = self.tiers[first]
        choice, ask = self._choose(tier, first, request, now_s)
        if choice.feasible and choice.index is not None:
            self._dispatch(request, route, first, choice.index, ask, now_s)
            return True
        if not self.scenario.admission:
            if not again:
                self._hold(request, route)
            return False
        if len(route.tiers) > 1 and self._spilled(request, route, now_s):
            return True
        return self._judge(request, route, choice, ask, now_s, again)

    def _judge(
        self, request: Request, route: _Route, choice: Choice, ask: Ask, now_s: float, again: bool
    ) -> bool:  # fmt: skip
        tier = self.tiers[route.tiers[0]]
        service = tier.pool.service
        verdict = decide(
            choice,
            now_s=now_s,
            arrived_s=request.arrival_s,
            ttft_s=service.ttft_s,
            # A tier that sleeps is not saturated: nobody is shed for its cold start.
            patience_s=service.patience_s if tier.pool.ready() else math.inf,
            wait_s=tier.next_ready_s(now_s),
        )
        if verdict.action == "dispatch" and choice.index is not None:
            self._dispatch(request, route, route.tiers[0], choice.index, ask, now_s)
            return True
        if verdict.action == "refuse":
            self._miss(request, "rejected:overloaded")
            return True
        if not again:
            self._hold(request, route)
        return False

    def _spilled(self, request: Request, route: _Route, now_s: float) -> bool:
        options = [self._choose(self.tiers[index], index, request, now_s) for index in route.tiers[1:]]
        feasible = [False, *(choice.feasible and choice.index is not None for choice, _ in options)]
        found = spill(route.range, feasible)
        if found is None:
            return False
        choice, ask = options[found[0] - 1]
        assert choice.index is not None
        self._dispatch(request, route, route.tiers[found[0]], choice.index, ask, now_s)
        return True

    def _dispatch(self, request: Request, route: _Route, index: int, slot: int, ask: Ask, now_s: float) -> None:
        tier = self.tiers[index]
        pool = tier.pool
        replica = pool.replicas[slot]
        request.us_per_token = ask.us_per_token
        request.expected_tokens = ask.expected_output_tokens
        hit = 0 if ask.hit_tokens is None else int(ask.hit_tokens[slot])
        request.prefill_tokens = max(1, request.prompt_tokens - hit)
        self.tally.served[request.index] = index
        replica.arrive(request, now_s)
        self._renew(index, replica)
        if self.scenario.admission and len(self.workload.tenants) > 1:
            counters = self.served_gpu_s[route.tiers[0]]
            cost_gpu_s = self._cost_gpu_s(tier, request)
            counters[route.tenant] = charged(counters.get(route.tenant, 0.0), cost_gpu_s, route.share)

    def _cost_gpu_s(self, tier: TwinTier, request: Request) -> float:
        service = tier.pool.service
        decode_ms = request.expected_tokens * service.tpot_ms / service.max_running
        return (request.prefill_tokens * request.us_per_token / 1000 + decode_ms) / 1000 * service.ranks

    def _hold(self, request: Request, route: _Route) -> None:
        tier = self.tiers[route.tiers[0]]
        queue = tier.held
        if len(self.workload.tenants) > 1 and (route.priority, route.tenant) not in queue.heaps:
            counters = self.served_gpu_s[route.tiers[0]]
            active = [counters.get(tenant, 0.0) for priority, tenant in queue.heaps if priority == route.priority]
            counters[route.tenant] = lifted(counters.get(route.tenant, 0.0), active)
        queue.push(
            Held(
                request=request,
                route=self.route_of[request.index],
                tenant=route.tenant,
                priority=route.priority,
                deadline_s=request.arrival_s + tier.pool.service.ttft_s,
                cost_gpu_s=self._cost_gpu_s(tier, request),
            )
        )

    def _release(self, tier: TwinTier, now_s: float) -> None:
        """Held requests go on, in their order, until one of them has to wait longer."""
        queue, served = tier.held, self.served_gpu_s[self.names.index(tier.pool.name)]
        while queue:
            held = queue.pop(served)
            route = self.routes[held.route]
            assert isinstance(route, _Route)
            if not self._place(held.request, route, now_s, again=True):
                if self.scenario.admission and now_s > held.deadline_s:
                    queue.postpone(held)
                    if not queue.heaps:
                        return
                    continue
                queue.push(held)
                return

    # --- replicas

    def _renew(self, index: int, replica: Replica) -> None:
        self.tiers[index].pool.show(replica)
        if replica.next_s < NEVER_S:
            self.count += 1
            version = replica.version
            heappush(
                self.events,
                (replica.next_s, self.count, lambda at_s, _: self._stepped(index, replica, version, at_s), 0),
            )

    def _stepped(self, index: int, replica: Replica, version: int, now_s: float) -> None:
        if replica.version != version:
            return  # planned anew since, or dead
        tier = self.tiers[index]
        started, done = replica.complete()
        prefix = tier.pool.prefix
        if prefix is not None:
            for request in started:
                free_tokens = replica.service.kv_tokens - replica.reserved_tokens
                prefix.insert(replica.slot, request.blocks, max(0, free_tokens) // prefix.block_tokens)
        for request in done:
            self._finish(tier, request, replica.clock_s)
        if replica.draining and replica.sequences == 0:
            tier.leave(replica, now_s)
            self._freed(now_s)
        else:
            self._renew(index, replica)
        if tier.held and (started or done):
            self._release(tier, now_s)

    def _finish(self, tier: TwinTier, request: Request, at_s: float) -> None:
        index, tally = request.index, self.tally
        output = self.output[index]
        tally.ttft_s[index] = request.first_s - request.arrival_s
        tally.tpot_ms[index] = (at_s - request.first_s) / (output - 1) * 1000 if output > 1 else 0.0
        asked = self.tiers[tally.asked[index]].counters
        if tally.kept(index):
            asked.kept += 1
        else:
            asked.missed += 1
        tier.finished(output)
        counters = tier.counters
        counters.ttft_s_sum += tally.ttft_s[index]
        counters.tpot_s_sum += tally.tpot_ms[index] / 1000
        counters.duration_s_sum += at_s - request.arrival_s
        self._end(index, "completed")

    def _miss(self, request: Request, end: str) -> None:
        self.tiers[self.tally.asked[request.index]].counters.missed += 1
        self._end(request.index, end)

    def _end(self, index: int, how: str) -> None:
        self.tally.end[index] = how
        self.open -= 1

    def _opened(self, now_s: float, tier: TwinTier) -> None:
        if tier.held:
            self._release(tier, now_s)

    def _freed(self, now_s: float) -> None:
        for tier in self.tiers:
            if tier.pool.pending:
                tier.retry(now_s)
        if self.video is not None and self.video.pending:
            self.video.retry(now_s)

    def _bill(self, name: str, hold: Hold, since_s: float, at_s: float) -> None:
        gpus = sum(gpus for _, gpus in hold)
        self.tally.gpu_s[name] += gpus * max(0.0, min(at_s, self.horizon_s) - since_s)

    def _fail(self, now_s: float, number: int) -> None:
        failure = self.scenario.failures[number]
        if failure.node is not None:
            self.nodes.fail(failure.node)
            if self.video is not None:
                self.video.lose(now_s, failure.node)
        for index, tier in enumerate(self.tiers):
            if failure.node is None and tier.pool.name != failure.tier:
                continue
            for request in tier.lose(now_s, failure.node):
                self._rescue(index, request, now_s)
        self._freed(now_s)

    def _rescue(self, index: int, request: Request, now_s: float) -> None:
        """It goes on elsewhere from the tokens that it has, once."""
        route = self.routes[self.route_of[request.index]]
        assert isinstance(route, _Route)
        if request.retried:
            self._miss(request, "failed:replica_lost")
            return
        request.retried = True
        self._place(request, route, now_s)

    # --- control

    def _seen(self, now_s: float) -> Seen:
        return Seen(
            now_s=now_s,
            gpus=self.nodes.gpus if self.scenario.gpus is not None else UNLIMITED_GPUS,
            tiers={tier.pool.name: tier.seen() for tier in self.tiers},
            video=self.video.seen(now_s) if self.video is not None else None,
        )

    def _tick(self, now_s: float, _: int) -> None:
        seen = self._seen(now_s)
        decision, after = self.scaler(seen, self.memory)
        if self.watch is not None:
            self.watch(seen, self.memory, decision, after)
        self.memory = after
        self._steer(now_s, decision)
        self._sample(now_s)
        for tier in self.tiers:
            if tier.held:
                self._release(tier, now_s)
        busy = self.open > 0 or (self.video is not None and len(self.video.finished_s) < len(self.video.jobs))
        if now_s < self.horizon_s or (busy and now_s < self.horizon_s + LAST_CALL_S):
            self.schedule(now_s + self.scaler.tick_s, self._tick, 0)

    def _steer(self, now_s: float, decision: Decision) -> None:
        steered = [(tier, decision.tiers[tier.pool.name].replicas) for tier in self.tiers]
        moves = [(target - tier.size, tier.steer, target) for tier, target in steered]
        if self.video is not None and decision.video is not None:
            target = decision.video.replicas
            moves.append((target - self.video.size, self.video.steer, target))
        # What shrinks gives its GPUs to what grows.
        for _, steer, target in sorted(moves, key=lambda move: move[0]):
            steer(now_s, target)

    def _sample(self, now_s: float) -> None:
        if now_s > self.horizon_s:
            return
        arrived = [tier.counters.arrived_requests for tier in self.tiers]
        rates = {
            name: (now - before) / self.scaler.tick_s
            for name, now, before in zip(self.names, arrived, self.arrived_before, strict=True)
        }
        self.arrived_before = arrived
        ready = {tier.pool.name: float(tier.pool.ready()) for tier in self.tiers}
        held = {tier.pool.name: float(len(tier.held)) for tier in self.tiers}
        if self.video is not None:
            ready["video"], held["video"] = float(len(self.video.replicas)), float(len(self.video.waiting))
        self.samples.append(Sample(now_s, rates, ready, held, float(self.nodes.used_gpus)))

    def _report(self) -> Report:
        scenario, tally, workload = self.scenario, self.tally, self.workload
        for tier in self.tiers:
            for hold, since_s in tier.holds():
                self._bill(tier.pool.name, hold, since_s, self.horizon_s)
        for hold, since_s in self.video.holds() if self.video is not None else ():
            self._bill("video", hold, since_s, self.horizon_s)
        for index, end in enumerate(tally.end):
            if not end:
                tally.end[index] = "failed:never_served"
        spec, price = spec_of(scenario.family), scenario.family.gpu_usd_per_hour
        asked = np.array(tally.asked)
        floors = [
            floor_gpu_hours(_only(workload, asked == index), spec.tiers[name]) for index, name in enumerate(self.names)
        ]
        figures = tally.figures(sum(floors), price)
        if self.video is not None:
            figures = with_video(figures, self.video.jobs, self.video.finished_s)
        return Report(
            figures=figures,
            course=course(self.samples, tally),
            tiers={name: tally.figures(floors[index], price, index) for index, name in enumerate(self.names)},
        )


def _only(workload: Workload, mine: Any) -> Workload:
    return Workload(
        arrival_s=workload.arrival_s[mine],
        prompt_tokens=workload.prompt_tokens[mine],
        output_tokens=workload.output_tokens[mine],
        model=workload.model[mine],
        tenant=workload.tenant[mine],
        models=workload.models,
        tenants=workload.tenants,
    )
