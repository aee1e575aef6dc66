"""What this process's routers see of the replicas, for parts of the process that Serve gives no view of them.

Written by the request router, which Serve ships by value with its module: state that others read must live outside it.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenReplica:
    replica_id: str
    metrics_address: str


_replicas: dict[str, tuple[SeenReplica, ...]] = {}


def publish(deployment: str, replicas: tuple[SeenReplica, ...]) -> None:
    _replicas[deployment] = replicas


def replicas(deployment: str) -> tuple[SeenReplica, ...]:
    """The running replicas of a deployment; empty where it sleeps, or where nothing has been routed yet."""
    return _replicas.get(deployment, ())


def everywhere() -> tuple[SeenReplica, ...]:
    return tuple(replica for each in _replicas.values() for replica in each)
