"""What gateways and the control loop tell each other, and under which names actors are found."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autoscaling.readings import Count
from autoscaling.signals import JobSeen
from autoscaling.story import Story
from cluster.family import Family
from cluster.lending import Awaiting, Room

NAMESPACE = "moray"
CONTROL = "moray-control"  # the one control loop that is followed has this name
WORKER = "moray-video-"  # and the worker's id: the actor of a video replica, and its placement group


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """What a gateway says about once a second. `metrics`: addresses (host:port) of all expositions that it knows, its

    own first; `replica_of` names the replica behind an address of one. `jobs`: its unfinished video jobs, most urgent
    first; None where it keeps none.
    """

    gateway_id: str
    metrics: tuple[str, ...]
    replica_of: Mapping[str, str]
    jobs: tuple[JobSeen, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A video replica that is ready for jobs. `actor`: Ray's handle."""

    worker_id: str
    node_id: str
    actor: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """GPUs of one node that a replica holds. `owner`: its tier, or "video"; `replica`: its id, or the worker's."""

    owner: str
    replica: str
    node: str
    gpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What people want to see of the loop: who runs where, who waits, what was decided and why.

    `age_s`: since the cluster was last looked at. `gpus`: that the family may hold now. `leaving`: video replicas that
    make room. Its size is that of the cluster, and of the story, which is bounded.
    """

    age_s: float
    gpus: int
    rooms: tuple[Room, ...]
    holdings: tuple[Holding, ...]
    awaiting: tuple[Awaiting, ...]
    leaving: tuple[str, ...]
    counts: Mapping[str, Count]
    story: Story


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The answer. `version` grows with every change of the family while it is served.

    `picture`: None before the first look at the cluster. `pages`: addresses of the expositions that any gateway has
    told of lately, with the replica behind each, None for a gateway's. `moray`: the version that the loop runs.
    """

    version: int
    family: Family
    workers: tuple[Worker, ...]
    metrics_address: str
    targets: Mapping[str, int]
    picture: Picture | None = None
    pages: Mapping[str, str | None] = field(default_factory=dict)
    moray: str = ""
