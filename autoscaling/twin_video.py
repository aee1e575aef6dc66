"""Video replicas of the twin: one job each; at a step boundary they may give their GPUs back.

A job given back keeps its finished steps. Waiting jobs go earliest deadline first.
"""

import math
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from heapq import heappop, heappush, nsmallest

from autoscaling.signals import JobSeen, VideoSeen
from autoscaling.twin_nodes import Lease, Nodes, Orders, Schedule
from autoscaling.twin_replica import ROUNDING
from autoscaling.twin_scenario import VIDEO
from cluster.workload import Jobs

MOST_SEEN = 256  # waiting jobs that a policy is shown, the most urgent ones


@dataclass(slots=True, eq=False)
class VideoReplica:
    """`leaving_steps`: of its job, done when it leaves."""

    lease: Lease
    job: int | None = None
    since_s: float = 0.0
    leaving: bool = False
    leaving_steps: int = 0


@dataclass(slots=True)
class VideoPool:
    """`gpus` of one replica."""

    jobs: Jobs
    gpus: int
    nodes: Nodes
    schedule: Schedule
    draw_s: InitVar[Callable[[], float]]
    orders: Orders = field(init=False)
    replicas: dict[int, VideoReplica] = field(default_factory=dict)
    waiting: list[tuple[float, int]] = field(default_factory=list)  # deadline and job
    left_steps: list[int] = field(init=False)
    finished_s: dict[int, float] = field(default_factory=dict)
    _count: int = 0

    def __post_init__(self, draw_s: Callable[[], float]) -> None:
        self.left_steps = self.jobs.steps.tolist()
        self.orders = Orders(VIDEO, self.gpus, self.nodes, self.schedule, draw_s, self.open)

    @property
    def size(self) -> int:
        """Replicas there or on their way, without those that leave."""
        return sum(not replica.leaving for replica in self.replicas.values()) + len(self.orders)

    def arrive(self, now_s: float, job: int) -> None:
        self._wait(job)
        self._begin_idle(now_s)

    def open(self, now_s: float, lease: Lease) -> None:
        self._count += 1
        self.replicas[self._count] = VideoReplica(lease)
        self._begin_idle(now_s)

    def _wait(self, job: int) -> None:
        heappush(self.waiting, (float(self.jobs.deadline_s[job]), job))

    def _begin_idle(self, now_s: float) -> None:
        for number, replica in self.replicas.items():
            if self.waiting and replica.job is None:
                self._begin(now_s, number, replica)

    def _begin(self, now_s: float, number: int, replica: VideoReplica) -> None:
        replica.job = heappop(self.waiting)[1]
        replica.since_s = now_s
        run_s = self.left_steps[replica.job] * float(self.jobs.step_s[replica.job])
        self.schedule(now_s + run_s, self._end, number)

    def _end(self, now_s: float, number: int) -> None:
        replica = self.replicas.get(number)
        if replica is None:
            return  # it died, or was taken back at a boundary
        assert replica.job is not None
        self.finished_s[replica.job] = now_s
        self.left_steps[replica.job] = 0
        replica.job = None
        if replica.leaving:
            self._leave(now_s, number)
        elif self.waiting:
            self._begin(now_s, number, replica)

    def _leave(self, now_s: float, number: int) -> None:
        self.nodes.give(self.replicas.pop(number).lease, now_s)

    def steer(self, now_s: float, target: int) -> None:
        """Order, cancel or take back replicas until `target` are there or on their way."""
        surplus = self.size - target
        if surplus <= 0:
            self.orders.order(now_s, -surplus)
            return
        surplus = self.orders.cancel(now_s, surplus)
        staying = [number for number, replica in self.replicas.items() if not replica.leaving]
        for number in nsmallest(surplus, staying, key=self._urgency):
            self._take_back(now_s, number)

    def _urgency(self, number: int) -> float:
        job = self.replicas[number].job
        return -math.inf if job is None else -float(self.jobs.deadline_s[job])

    def _take_back(self, now_s: float, number: int) -> None:
        replica = self.replicas[number]
        replica.leaving = True
        self.nodes.leave(replica.lease)
        if replica.job is None:
            self._leave(now_s, number)
            return
        step_s = float(self.jobs.step_s[replica.job])
        replica.leaving_steps = math.ceil((now_s - replica.since_s) / step_s - ROUNDING)
        if replica.leaving_steps < self.left_steps[replica.job]:  # otherwise its end is the next boundary
            boundary_s = max(now_s, replica.since_s + replica.leaving_steps * step_s)
            self.schedule(boundary_s, self._boundary, number)

    def _boundary(self, now_s: float, number: int) -> None:
        replica = self.replicas.get(number)
        if replica is None:
            return  # it died
        assert replica.job is not None
        self.left_steps[replica.job] -= replica.leaving_steps
        self._wait(replica.job)
        self._leave(now_s, number)
        self._begin_idle(now_s)

    def vacate(self, now_s: float, lease: Lease) -> None:
        """One starts elsewhere in its place."""
        if not self.orders.restart(now_s, lease):
            self.orders.order(now_s, 1)
            self._take_back(now_s, next(number for number, held in self.replicas.items() if held.lease is lease))

    def lose(self, now_s: float, node: int) -> None:
        """Everything on the node is gone; jobs go on elsewhere from their last finished step."""
        self.orders.lose(now_s, node)
        for number in [number for number, replica in self.replicas.items() if replica.lease.on(node)]:
            replica = self.replicas[number]
            if replica.job is not None:
                self.left_steps[replica.job] = self._left(replica.job, replica.since_s, now_s)
                self._wait(replica.job)
            self._leave(now_s, number)
        self._begin_idle(now_s)

    def _left(self, job: int, since_s: float, now_s: float) -> int:
        """Steps that are not finished now; the last one is until its end has been seen."""
        done = math.floor((now_s - since_s) / float(self.jobs.step_s[job]) + ROUNDING)
        return max(1, self.left_steps[job] - done)

    def seen(self, now_s: float) -> VideoSeen:
        jobs = [self._job_seen(job, self.left_steps[job]) for _, job in nsmallest(MOST_SEEN, self.waiting)]
        for replica in self.replicas.values():
            if replica.job is not None:
                jobs.append(self._job_seen(replica.job, self._left(replica.job, replica.since_s, now_s)))
        leaving = sum(replica.leaving for replica in self.replicas.values())
        return VideoSeen(
            ready=len(self.replicas) - leaving,
            starting=len(self.orders),
            draining=leaving,
            jobs=tuple(sorted(jobs, key=lambda job: job.deadline_s)),
            cold_start_s=self.orders.measured_s,
        )

    def _job_seen(self, job: int, steps: int) -> JobSeen:
        return JobSeen(
            left_gpu_s=steps * float(self.jobs.step_s[job]) * self.gpus,
            deadline_s=float(self.jobs.deadline_s[job]),
            value_usd=float(self.jobs.value_usd[job]),
        )
