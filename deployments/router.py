"""Serve's hook for choosing a replica. All judgement is in cluster.routing; here Serve's world is put into its words.

Serve ships this module by value: no module-level state, nothing that cannot be pickled. It must never raise into Serve,
where a raising router leaves the request pending for ever.
"""

import logging
import random
import time
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from cluster.cost import prefill_us_per_token, service
from cluster.family import Tier
from cluster.fleet import DEAD, Candidate, ReplicaReport, report_from_stats
from cluster.loads import Ask
from cluster.request import Chat
from cluster.routing import order
from deployments import seen

log = logging.getLogger("ray.serve")
CHARS_PER_TOKEN = 3  # a guess for routing only; the replica counts


class LatencyRouter(RequestRouter):  # type: ignore[misc]  # Ray's names count as Any
    """One per handle and process. Counts what it sent itself since each replica's last report."""

    def initialize_state(self, tier: str = "", spec: dict[str, Any] | None = None) -> None:
        self._tier = tier
        self._spec = Tier.model_validate(spec)
        self._service = service(self._spec, tier, chunking="fixed")  # the engines here take chunks of a fixed size
        self._rng = random.Random()
        self._reports: dict[str, ReplicaReport] = {}
        self._stats: dict[str, object] = {}
        self._sent: dict[str, list[int]] = {}

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        now_s = time.monotonic()
        for replica in replicas:
            key = replica.replica_id.unique_id
            if replica.routing_stats != self._stats.get(key):
                self._stats[key] = replica.routing_stats
                report = report_from_stats(replica.routing_stats, replica_id=key, received_s=now_s)
                if report is not None:
                    self._reports[key] = report
                    self._sent[key] = []
        known = {replica.replica_id.unique_id for replica in replicas}
        for gone in (self._stats.keys() | self._sent.keys()) - known:
            self._stats.pop(gone, None)
            self._reports.pop(gone, None)
            self._sent.pop(gone, None)
        seen.publish(
            self._tier,
            tuple(
                seen.SeenReplica(
                    replica_id=r.replica_id.unique_id, metrics_address=r.replica_metadata.get("metrics", "")
                )
                for r in replicas
            ),
        )

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # without it, "none free" is asked again at once
        try:
            return [[replica] for replica in self._ranked(candidate_replicas, pending_request)]
        except Exception:  # Serve must never see one of ours; the request still goes somewhere
            seen.routing_errors[self._tier] += 1
            log.exception("tier %s: router fell back to Serve's order", self._tier)
            return [list(candidate_replicas)]

    def _ranked(self, replicas: list[RunningReplica], pending: PendingRequest | None) -> list[RunningReplica]:
        if len(replicas) < 2:
            return list(replicas)
        by_key = {replica.replica_id.unique_id: replica for replica in replicas}
        candidates = [self._candidate(key, replica) for key, replica in by_key.items()]
        prompt_tokens = _prompt_tokens(pending)
        ask = Ask(
            prompt_tokens=prompt_tokens,
            expected_output_tokens=_output_tokens(pending),
            us_per_token=prefill_us_per_token(self._spec.cost, prompt_tokens),
            draw=self._rng.random(),
        )
        ranking = order(candidates, ask, self._service, time.monotonic())
        seen.routing_decisions[self._tier, ranking.method] += 1
        if log.isEnabledFor(logging.DEBUG):  # the sentence is only made for somebody who reads it
            log.debug("tier %s: %s first: %s", self._tier, ranking.ids[0], ranking.reason)
        return [by_key[key] for key in ranking.ids]

    def _candidate(self, key: str, replica: RunningReplica) -> Candidate:
        sent = self._sent.get(key, [])
        return Candidate(
            replica_id=key,
            ongoing_requests=self.replica_queue_len_cache.get(replica.replica_id) or 0,
            report=self._reports.get(key),
            sent_requests=len(sent),
            sent_prefill_tokens=sum(sent),
            dead=self._stats.get(key) == DEAD,
        )

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        self._sent.setdefault(replica_id.unique_id, []).append(_prompt_tokens(pending_request))


def _chat(pending: PendingRequest | None) -> Chat | None:
    first = pending.args[0] if pending is not None and pending.args else None
    return first if isinstance(first, Chat) else None


def _prompt_tokens(pending: PendingRequest | None) -> int:
    chat = _chat(pending)
    return sum(len(message.content) for message in chat.messages) // CHARS_PER_TOKEN + 1 if chat else 1


def _output_tokens(pending: PendingRequest | None) -> int:
    chat = _chat(pending)
    return chat.sampling.max_tokens or 128 if chat else 128
