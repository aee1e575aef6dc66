"""What this process's routers see of the replicas, for parts of the process that Serve gives no view of them.

Written by the request router, which Serve ships by value with its module: state that others read must live outside it.
"""

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenReplica:
    replica_id: str
    metrics_address: str


_replicas: dict[str, tuple[SeenReplica, ...]] = {}
routing_decisions: Counter[tuple[str, str]] = Counter()  # by tier and method
routing_errors: Counter[str] = Counter()  # by tier


def publish(deployment: str, replicas: tuple[SeenReplica, ...]) -> None:
    _replicas[deployment] = replicas


def replicas(deployment: str) -> tuple[SeenReplica, ...]:
    """The running replicas of a deployment; empty where it sleeps, or where nothing has been routed yet."""
    return _replicas.get(deployment, ())


def everywhere() -> dict[str, tuple[SeenReplica, ...]]:
    """All that is known, by deployment."""
    return dict(_replicas)
