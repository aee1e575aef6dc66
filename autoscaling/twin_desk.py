"""The way of a request through the twin: choose, dispatch, hold, spill or refuse; step; finish, or go on elsewhere.

All judgement is the live cluster's: cluster.routing (or a peer), admission, tiering and fairness. Every request ends
once, as completed, rejected:<reason> or failed:<reason>.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from random import Random

from autoscaling.twin_nodes import Schedule
from autoscaling.twin_replica import NEVER_S, Replica, Request
from autoscaling.twin_scenario import Route, Scenario, routes
from autoscaling.twin_tally import Tally
from autoscaling.twin_tier import TwinTier
from cluster.admission import Due, decide, overdue_s, patience_from_s
from cluster.cost import prefill_us, prefill_us_per_token, request_gpu_s
from cluster.fairness import charged
from cluster.held import Action, Held
from cluster.loads import Ask, Choice, Router
from cluster.prefix import salted
from cluster.tiering import keeps, spill
from cluster.workload import Workload


class Desk:
    """`tiers` tell it what opens; it plans the events of their replicas with `schedule`. `open`: not ended yet."""

    def __init__(
        self, scenario: Scenario, workload: Workload, router: Router, tally: Tally, schedule: Schedule, rng: Random
    ) -> None:
        self.admission = scenario.admission
        self.workload, self.router, self.tally, self.schedule, self.rng = workload, router, tally, schedule, rng
        self.tiers: tuple[TwinTier, ...] = ()
        self.open = len(workload)
        self.fair = scenario.admission and len(workload.tenants) > 1
        self.apart = scenario.family.accounts.prefix_cache != "family" and len(workload.tenants) > 1
        self.prompt: list[int] = workload.prompt_tokens.tolist()
        self.output: list[int] = workload.output_tokens.tolist()
        self.routes, self.route_of = routes(scenario, workload)
        self.us: list[list[float]] = []

    def serve(self, tiers: tuple[TwinTier, ...]) -> None:
        self.tiers = tiers
        lengths = self.workload.prompt_tokens.astype(float)
        self.us = [prefill_us(tier.pool.service, lengths).tolist() for tier in tiers]

    # --- in

    def arrive(self, index: int, now_s: float) -> None:
        route = self.routes[self.route_of[index]]
        if isinstance(route, str):
            self._end(index, f"rejected:{route}")
            return
        self.tally.asked[index] = route.tiers[0]
        tier = self.tiers[route.tiers[0]]
        blocks = self.workload.blocks[index] if self.workload.blocks is not None else ()
        blocks = salted(blocks, route.tenant) if self.apart else blocks
        request = Request(index, now_s, now_s, self.prompt[index], self.output[index], blocks=blocks)
        # Those who wait could not use what is free now, so a newcomer may; but not before a higher priority.
        if tier.held and (not self.admission or tier.held.first_priority() > route.priority):
            self._hold(request, route, now_s, late=False)
            self.release(tier, now_s)
        else:
            self._admit(request, route, now_s)
        counters = tier.counters
        counters.arrived_requests += 1
        counters.arrived_prompt_tokens += request.prefill_tokens or request.prompt_tokens

    def _choose(self, index: int, request: Request, route: Route, now_s: float) -> tuple[Choice, Ask]:
        tier = self.tiers[index]
        pool = tier.pool
        ask = Ask(
            prompt_tokens=request.prompt_tokens,
            expected_output_tokens=tier.lengths.mean,
            us_per_token=self.us[index][request.index],
            draw=self.rng.random(),
            waited_s=now_s - request.asked_s + self._yielded_s(tier, route),
            left_tokens=tier.lengths.left,
            hit_tokens=pool.prefix.hits_tokens(request.blocks, pool.slots) if pool.prefix is not None else None,
        )
        return self.router(pool.loads, ask, pool.service, now_s, tier.packing), ask

    def _yielded_s(self, tier: TwinTier, route: Route) -> float:
        """Of the promised first token, what is left to a higher priority and to tenants served less."""
        if not self.fair:
            return 0.0
        return tier.held.yielded((route.priority, route.tenant), tier.served_gpu_s) * tier.pool.service.ttft_s

    def _place(self, request: Request, route: Route, now_s: float) -> Action:
        """Dispatch, spill or refuse; "hold" and "postpone" are for the caller to carry out."""
        choice, ask = self._choose(route.tiers[0], request, route, now_s)
        if choice.index is not None and (choice.feasible or not self.admission):
            self._dispatch(request, route, route.tiers[0], choice, ask, now_s)
            return "dispatch"
        if not self.admission:
            return "hold"
        if len(route.tiers) > 1 and self._spilled(request, route, now_s):
            return "dispatch"
        return self._judged(request, route, choice, ask, now_s)

    def _admit(self, request: Request, route: Route, now_s: float) -> None:
        action = self._place(request, route, now_s)
        if action in ("hold", "postpone"):
            self._hold(request, route, now_s, late=action == "postpone")

    def _spilled(self, request: Request, route: Route, now_s: float) -> bool:
        options = [self._choose(index, request, route, now_s) for index in route.tiers[1:]]
        asked = self.tiers[route.tiers[0]].pool.service
        left_s = asked.ttft_s - (now_s - request.asked_s)
        found = spill(route.range, [False, *(keeps(choice, left_s, asked.tpot_ms) for choice, _ in options)])
        if found is None:
            return False
        choice, ask = options[found[0] - 1]
        self._dispatch(request, route, route.tiers[found[0]], choice, ask, now_s)
        return True

    def _judged(self, request: Request, route: Route, choice: Choice, ask: Ask, now_s: float) -> Action:
        tier = self.tiers[route.tiers[0]]
        service = tier.pool.service
        due = Due(
            now_s=now_s,
            arrived_s=request.asked_s,
            ttft_s=service.ttft_s,
            tpot_ms=service.tpot_ms,
            patience_s=patience_from_s(service.patience_s, request.asked_s, _awake_s(tier)),
            wait_s=tier.next_ready_s(now_s),
        )
        verdict = decide(choice, due)
        if verdict.action == "dispatch":
            self._dispatch(request, route, route.tiers[0], choice, ask, now_s)
        elif verdict.action == "refuse":
            self._refuse(request)
        return verdict.action

    def _dispatch(
        self, request: Request, route: Route, index: int, choice: Choice, ask: Ask, now_s: float
    ) -> None:  # fmt: skip
        assert choice.index is not None
        tier = self.tiers[index]
        # Hashes are of the prompt that was sent, which grows with what a lost replica had answered.
        hit = 0 if ask.hit_tokens is None else min(int(ask.hit_tokens[choice.index]), self.prompt[request.index])
        request.us_per_token = ask.us_per_token
        request.prefill_tokens = max(1, request.prompt_tokens - hit)
        self.tally.served[request.index] = index
        replica = tier.pool.replicas[choice.index]
        version = replica.version
        replica.arrive(request, now_s)
        tier.pool.show(replica)
        if replica.version != version:
            self.schedule(replica.next_s, replica.due, replica.version)
        if self.fair:
            cost_gpu_s = request_gpu_s(tier.pool.service, request.prefill_tokens, ask.expected_output_tokens)
            before = tier.served_gpu_s.get(route.tenant, 0.0)
            tier.served_gpu_s[route.tenant] = charged(before, cost_gpu_s, route.share)

    # --- waiting

    def _hold(self, request: Request, route: Route, now_s: float, *, late: bool) -> None:
        tier = self.tiers[route.tiers[0]]
        held = Held((request, route), request.index, (0, ""), request.prompt_tokens)  # stock systems know one queue
        if self.admission:
            kind = (route.priority, route.tenant)
            deadline_s, cost_gpu_s = request.asked_s + tier.pool.service.ttft_s, 0.0
            if self.fair:
                cost_gpu_s = request_gpu_s(tier.pool.service, request.prompt_tokens, tier.lengths.mean)
                tier.held.lift(kind, tier.served_gpu_s)
            held = replace(held, kind=kind, deadline_s=deadline_s, cost_gpu_s=cost_gpu_s)
        tier.held.push(held, late=late)

    def release(self, tier: TwinTier, now_s: float) -> None:
        """Held requests go on, in their order, until one of them has to wait longer."""
        tier.held.release(now_s, tier.served_gpu_s, lambda held: self._place(*held, now_s))

    def shed(self, tier: TwinTier, now_s: float) -> None:
        """Refuse those whose patience is over."""
        service = tier.pool.service
        for held in tier.held.expired(overdue_s(now_s, service.ttft_s, service.patience_s, _awake_s(tier))):
            self._refuse(held.item[0])

    # --- under way

    def opened(self, now_s: float, tier: TwinTier, replica: Replica) -> None:
        replica.due = partial(self._stepped, tier, replica)
        self.release(tier, now_s)

    def _stepped(self, tier: TwinTier, replica: Replica, now_s: float, version: int) -> None:
        if replica.version != version:
            return  # planned anew since, or dead
        started, done = replica.complete()
        prefix = tier.pool.prefix
        if prefix is not None and started:
            # What is reserved for answers is not there for prompts; prompts that run share the blocks they are held in.
            free_tokens = max(0, replica.service.kv_tokens - replica.reserved_output_tokens)
            for request in started:
                prefix.insert(replica.slot, request.blocks, free_tokens // prefix.block_tokens)
        for request in done:
            self._finish(tier, request, now_s)
        if replica.draining and replica.sequences == 0:
            tier.leave(replica, now_s)
        else:
            tier.pool.show(replica)
            if replica.next_s < NEVER_S:
                self.schedule(replica.next_s, replica.due, replica.version)
        if tier.held:
            self.release(tier, now_s)

    def rescue(self, lost: Iterable[Request], now_s: float) -> None:
        """They go on elsewhere from the tokens that they have, once."""
        for request in lost:
            if request.retried:
                self._miss(request, "failed:replica_lost")
                continue
            request.retried, request.asked_s = True, now_s
            for tier, us in zip(self.tiers, self.us, strict=True):
                us[request.index] = prefill_us_per_token(tier.pool.service.cost, request.prompt_tokens)
            route = self.routes[self.route_of[request.index]]
            assert isinstance(route, Route)
            if request.first_s >= 0:  # an answer that has begun is not gone on with by another model
                route = replace(route, tiers=(self.tally.served[request.index],))
            self._admit(request, route, now_s)

    # --- out

    def _finish(self, tier: TwinTier, request: Request, now_s: float) -> None:
        index, tally, output = request.index, self.tally, self.output[request.index]
        ttft_s = request.first_s - request.arrival_s
        tpot_s = (now_s - request.first_s) / (output - 1) if output > 1 else 0.0
        tally.ttft_s[index], tally.tpot_ms[index] = ttft_s, tpot_s * 1000
        asked = self.tiers[tally.asked[index]].counters
        if tally.kept(index):
            asked.kept += 1
        else:
            asked.missed += 1
        tier.finished(self.prompt[index], output)
        counters = tier.counters
        counters.ttft_s_sum += ttft_s
        counters.tpot_s_sum += tpot_s
        counters.duration_s_sum += now_s - request.arrival_s
        self._end(index, "completed")

    def _refuse(self, request: Request) -> None:
        self._miss(request, "failed:replica_lost" if request.retried else "rejected:overloaded")

    def _miss(self, request: Request, end: str) -> None:
        self.tiers[self.tally.asked[request.index]].counters.missed += 1
        self._end(request.index, end)

    def _end(self, index: int, end: str) -> None:
        self.tally.end[index] = end
        self.open -= 1


def _awake_s(tier: TwinTier) -> float | None:
    return tier.awake_s if tier.pool.ready else None
