"""What this process's routers see of the replicas, for parts of the process that Serve gives no view of them.

Written by the request router, which Serve ships by value with its module: state that others read must live outside it.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from cluster.fleet import ReplicaReport


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenReplica:
    """`report`: its last one, None before the first. `dead`: it says that its engine has ended."""

    replica_id: str
    metrics_address: str
    report: ReplicaReport | None = None
    dead: bool = False


_replicas: dict[str, tuple[SeenReplica, ...]] = {}
_listeners: list[Callable[[str], None]] = []
routing_decisions: Counter[tuple[str, str]] = Counter()  # by tier and method
routing_errors: Counter[str] = Counter()  # by tier


def publish(deployment: str, replicas: tuple[SeenReplica, ...]) -> None:
    """Every listener is told which deployment has changed."""
    _replicas[deployment] = replicas
    for listener in _listeners:
        listener(deployment)


def listen(listener: Callable[[str], None]) -> None:
    _listeners.append(listener)


def replicas(deployment: str) -> tuple[SeenReplica, ...]:
    """The running replicas of a deployment; empty where it sleeps, or where nothing has been routed yet."""
    return _replicas.get(deployment, ())


def everywhere() -> dict[str, tuple[SeenReplica, ...]]:
    """All that is known, by deployment."""
    return dict(_replicas)
