"""Serve's hook for choosing a replica: the one that the gateway's desk has chosen. Serve's world is told to the desk.

Serve ships this module by value: no module-level state, nothing that cannot be pickled. It must never raise into Serve,
where a raising router leaves the request pending for ever.
"""

import logging
import time

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from cluster.fleet import DEAD, ReplicaReport, report_from_stats
from cluster.request import Chat
from deployments import seen

log = logging.getLogger("ray.serve")


class LatencyRouter(RequestRouter):  # type: ignore[misc]  # Ray's names count as Any
    """One per handle and process."""

    def initialize_state(self, tier: str = "") -> None:
        self._tier = tier
        self._reports: dict[str, ReplicaReport | None] = {}
        self._stats: dict[str, object] = {}

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        now_s = time.monotonic()
        for replica in replicas:
            key = replica.replica_id.unique_id
            if key not in self._stats or replica.routing_stats != self._stats[key]:
                self._stats[key] = replica.routing_stats
                report = report_from_stats(replica.routing_stats, replica_id=key, received_s=now_s)
                self._reports[key] = report or self._reports.get(key)
        for gone in self._stats.keys() - {replica.replica_id.unique_id for replica in replicas}:
            del self._stats[gone], self._reports[gone]
        seen.publish(self._tier, tuple(self._seen(replica) for replica in replicas))

    def _seen(self, replica: RunningReplica) -> seen.SeenReplica:
        key = replica.replica_id.unique_id
        return seen.SeenReplica(
            replica_id=key,
            metrics_address=replica.replica_metadata.get("metrics", ""),
            report=self._reports[key],
            dead=self._stats[key] == DEAD,
        )

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The chosen one first; all others in one rank, which Serve orders by their queues."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # without it, "none free" is asked again at once
        try:
            return _ranks(candidate_replicas, _pinned(pending_request))
        except Exception:  # Serve must never see one of ours; the request still goes somewhere
            seen.routing_errors[self._tier] += 1
            log.exception("tier %s: router fell back to Serve's order", self._tier)
            return [list(candidate_replicas)]


def _ranks(replicas: list[RunningReplica], pinned: str | None) -> list[list[RunningReplica]]:
    ranks: tuple[list[RunningReplica], ...] = ([], [])
    for replica in replicas:
        ranks[replica.replica_id.unique_id != pinned].append(replica)
    return [rank for rank in ranks if rank]


def _pinned(pending: PendingRequest | None) -> str | None:
    chat = pending.args[0] if pending is not None and pending.args else None
    return chat.served.replica if isinstance(chat, Chat) and chat.served is not None else None
