"""One tier as this gateway's desk sees it: its replicas, what was sent there since they reported, and who waits."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from cluster.admission import Due, patience_from_s, queue_wait_s
from cluster.breaker import CLOSED, Breaker, after
from cluster.cost import Chunking, Service, fluid_rps, prefill_us_per_token, request_gpu_s, service
from cluster.fairness import charged
from cluster.family import Tier
from cluster.fleet import Candidate, ReplicaReport
from cluster.held import HeldQueue, Kind
from cluster.loads import Answers, Ask, Choice, Loads
from cluster.request import Usage
from cluster.routing import attainable, choose, idle, least_correction, reported, slowness
from cluster.spare import Busy, TierLoad
from deployments import seen

T = TypeVar("T")


SLOW_HALF_S = 30.0  # an idle replica that was slow is given another chance: half of it is forgotten in this time


@dataclass(slots=True)
class Replica:
    """`ongoing`: sent from here and not ended. What was sent and what ended since the report is not in it.

    `slowness`: measured over modelled step, at `slow_at_s`, when it last ran something.
    """

    report: ReplicaReport | None = None
    ongoing: int = 0
    sent_requests: int = 0
    sent_tokens: int = 0
    sent_done_s: float = 0.0
    ended_requests: int = 0
    ended_tokens: int = 0
    breaker: Breaker = CLOSED
    slowness: float = 1.0
    slow_at_s: float = 0.0

    def hear(self, report: ReplicaReport, service: Service) -> None:
        self.report, self.sent_done_s = report, 0.0
        found = slowness(report, service)
        if found is not None:
            self.slowness, self.slow_at_s = found, report.at_s
        self.sent_requests = self.sent_tokens = self.ended_requests = self.ended_tokens = 0

    def slow(self, now_s: float) -> float:
        """What is still remembered of it."""
        return 1.0 + (self.slowness - 1.0) * math.pow(0.5, max(0.0, now_s - self.slow_at_s) / SLOW_HALF_S)

    def send(self, prompt_tokens: int, done_s: float, now_s: float) -> None:
        self.ongoing += 1
        self.sent_requests += 1
        self.sent_tokens += prompt_tokens
        self.sent_done_s = done_s
        self.breaker = after(self.breaker, "sent", now_s)

    def end(self, prompt_tokens: int, output_tokens: int, sent_s: float) -> None:
        """What is known of it is the report's, or what was sent since; of that it is taken away."""
        self.ongoing = max(0, self.ongoing - 1)
        if not self.ongoing:
            self.sent_done_s = 0.0
        if self.report is not None and sent_s <= self.report.at_s:
            self.ended_requests += 1
            self.ended_tokens += prompt_tokens + output_tokens
        elif self.sent_requests:
            self.sent_requests -= 1
            self.sent_tokens = max(0, self.sent_tokens - prompt_tokens)


class Wants(NamedTuple):
    """A request, for one look at a tier. `avoid`: the replica that lost it; `draw`: uniform in [0, 1)."""

    kind: Kind
    prompt_tokens: int
    waited_s: float
    draw: float
    avoid: str | None


class Offer(NamedTuple):
    """The best replica now, and what that rests on; `service` with the pace that can be kept here."""

    choice: Choice
    replicas: tuple[str, ...]
    loads: Loads
    ask: Ask
    service: Service


@dataclass(slots=True)
class DeskTier(Generic[T]):
    """Call `look` before anything that depends on the replicas. `awake_s`: since when there are any; None: none are.

    `asleep_s`: since when there are none. `served_gpu_s`: by tenant, shares applied.
    """

    key: str
    spec: Tier
    service: Service = field(init=False)
    held: HeldQueue[T] = field(default_factory=HeldQueue)
    served_gpu_s: dict[str, float] = field(default_factory=dict)
    lengths: Answers = field(default_factory=Answers)
    replicas: dict[str, Replica] = field(default_factory=dict)
    ongoing: int = 0
    awake_s: float | None = None
    asleep_s: float = 0.0
    woken_s: float = 0.0  # when somebody was last told that a request waits for its first replica
    correction: float = 1.0  # the least among its replicas: how much slower than the family file this machine is
    _told: tuple[seen.SeenReplica, ...] | None = None

    def __post_init__(self) -> None:
        self.follow(self.spec)

    def follow(self, spec: Tier) -> None:
        chunking: Chunking = "slack" if spec.engine == "simulated" else "fixed"  # as the engine reads prompts
        self.spec, self.service = spec, service(spec, self.key, chunking=chunking)

    def look(self, now_s: float) -> None:
        told = seen.replicas(self.key)
        if told is self._told:
            return
        first, self._told = self._told is None, told
        alive = {one.replica_id: one.report for one in told if not one.dead}
        for gone in self.replicas.keys() - alive.keys():
            del self.replicas[gone]
        for key, report in alive.items():
            known = self.replicas.get(key)
            if known is None:
                known = self.replicas[key] = Replica(report=self._empty(key, now_s))
            if report is not None and report != known.report:
                known.hear(report, self.service)
        if alive and self.awake_s is None:
            self.awake_s = now_s
        elif not alive and (first or self.awake_s is not None):
            self.awake_s, self.asleep_s = None, now_s

    def _empty(self, key: str, now_s: float) -> ReplicaReport:
        """Of a replica that is new here: were nothing known of it, all who are held would be sent there at once."""
        return ReplicaReport(
            replica_id=key,
            at_s=now_s,
            running=0,
            waiting=0,
            waiting_prefill_tokens=0,
            kv_used_tokens=0,
            kv_capacity_tokens=self.service.kv_tokens,
            step_ms=0.0,
            prefill_us_per_token=0.0,
        )

    def offer(self, wants: Wants, now_s: float) -> Offer:
        """No engine here caches prefixes, so none is counted on; and nobody tells whether the tier scales in."""
        ask = Ask(
            prompt_tokens=wants.prompt_tokens,
            expected_output_tokens=self.lengths.mean,
            us_per_token=prefill_us_per_token(self.spec.cost, wants.prompt_tokens),
            draw=wants.draw,
            waited_s=wants.waited_s + self.held.yielded(wants.kind, self.served_gpu_s) * self.service.ttft_s,
            left_tokens=self.lengths.left,
        )
        loads, ask = reported(self._candidates(wants.avoid, now_s), ask, self.service)
        self.correction = least_correction(loads)
        slow = attainable(self.service, self.correction)
        return Offer(choose(loads, ask, slow, now_s, False), tuple(self.replicas), loads, ask, slow)

    def idle(self, offer: Offer, now_s: float) -> Offer | None:
        """The best of those that have nothing to do: waiting for them gains nothing, whatever they can keep."""
        free = idle(offer.loads)
        if free is None:
            return None
        return offer._replace(choice=choose(free, offer.ask, offer.service, now_s, False))

    def due(self, offer: Offer, asked_s: float | None, now_s: float, patience: float = 1.0) -> Due:
        """Nobody here knows of replicas that start, so none is waited for where there are others.

        `asked_s`: None for a request whose replica was lost; it is never refused.
        """
        own_s = self.service.patience_s * patience
        patience_s = math.inf if asked_s is None else patience_from_s(own_s, asked_s, self.awake_s)
        return Due(
            now_s=now_s,
            arrived_s=now_s if asked_s is None else asked_s,
            ttft_s=self.service.ttft_s,
            tpot_ms=offer.service.tpot_ms,
            patience_s=patience_s,
            wait_s=math.inf,
        )

    def _candidates(self, avoid: str | None, now_s: float) -> list[Candidate]:
        """Where all are out, breakers do not count, but for a request that was lost on one of them."""
        allowed = {key for key, replica in self.replicas.items() if replica.breaker.allows(now_s)}
        allowed = allowed or set(self.replicas)
        lost = self.replicas.get(avoid) if avoid is not None else None
        if avoid is not None and lost is not None and now_s < lost.breaker.until_s:
            allowed.discard(avoid)
        return [
            Candidate(
                replica_id=key,
                ongoing_requests=replica.ongoing,
                report=replica.report,
                sent_requests=replica.sent_requests,
                sent_prefill_tokens=replica.sent_tokens,
                sent_done_s=replica.sent_done_s,
                ended_requests=replica.ended_requests,
                ended_kv_tokens=replica.ended_tokens,
                open=key in allowed,
                slowness=replica.slow(now_s),
            )
            for key, replica in self.replicas.items()
        ]

    def send(self, offer: Offer, wants: Wants, share: float, now_s: float) -> tuple[str, float]:
        """The replica that it goes to, and the GPU-seconds that its tenant is charged."""
        index = offer.choice.index
        assert index is not None
        done_s = max(now_s, float(offer.loads.prefill_done_s[index])) + offer.choice.own_s
        key = offer.replicas[index]
        self.replicas[key].send(wants.prompt_tokens, done_s if math.isfinite(done_s) else now_s, now_s)
        self.ongoing += 1
        cost_gpu_s = self.cost_gpu_s(wants.prompt_tokens)
        self.charge(wants.kind[1], cost_gpu_s, share)
        return key, cost_gpu_s

    def charge(self, tenant: str, cost_gpu_s: float, share: float) -> None:
        self.served_gpu_s[tenant] = charged(self.served_gpu_s.get(tenant, 0.0), cost_gpu_s, share)

    def cost_gpu_s(self, prompt_tokens: int) -> float:
        return request_gpu_s(self.service, prompt_tokens, self.lengths.mean)

    def end(self, key: str, sent_s: float, prompt_tokens: int, usage: Usage | None) -> Replica | None:
        """None where the replica is gone."""
        self.ongoing -= 1
        output_tokens = usage.completion_tokens if usage is not None else 0
        if output_tokens:  # vectors have none
            self.lengths.learn(output_tokens)
        replica = self.replicas.get(key)
        if replica is not None:
            replica.end(prompt_tokens, output_tokens, sent_s)
        return replica

    def wait_s(self, priority: int) -> float:
        """Until those of that priority or a higher one who wait here now have gone."""
        ahead = self.held.ahead(priority)
        if not ahead:
            return 0.0
        prompt_tokens = self.held.prefill_tokens / len(self.held)
        rps = fluid_rps(self.service, max(1.0, prompt_tokens), self.lengths.mean) / max(1.0, self.correction)
        return queue_wait_s(ahead, len(self.replicas), rps)

    def load(self, prompt_tokens: int) -> TierLoad:
        """What each replica said, or what was sent to it from here, where that is more."""
        replicas = [
            Busy(
                running=max(one.ongoing, (one.report.running if one.report else 0) + one.sent_requests),
                waiting=one.report.waiting if one.report else 0,
            )
            for one in self.replicas.values()
        ]
        rps = fluid_rps(self.service, max(1.0, prompt_tokens), self.lengths.mean) / max(1.0, self.correction)
        places = self.spec.max_running
        return TierLoad(
            held=len(self.held), replicas=replicas, places=places, rps=rps, start_s=self.spec.start_timeout_s
        )

    @property
    def rescue_s(self) -> float:
        """How long a request whose replica was lost waits for another."""
        return max(self.service.patience_s, self.spec.start_timeout_s)

    def breakers_open(self) -> int:
        return sum(replica.breaker.failures > 0 for replica in self.replicas.values())


def renewed(tiers: Mapping[str, DeskTier[T]], specs: Mapping[str, Tier]) -> dict[str, DeskTier[T]]:
    """Those that are known follow their new figures. What is no longer there is kept for those who wait for it."""
    for key, spec in specs.items():
        if key in tiers and tiers[key].spec != spec:
            tiers[key].follow(spec)
    return {**tiers, **{key: DeskTier[T](key, spec) for key, spec in specs.items() if key not in tiers}}
