"""Video replicas of the twin: one job each, at a step boundary they may give their GPUs back.

A job given back keeps its finished steps. Waiting jobs go earliest deadline first.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush

from autoscaling.signals import JobSeen, VideoSeen
from autoscaling.twin_pool import Nodes, Start
from autoscaling.twin_replica import Hold
from cluster.workload import Jobs

Schedule = Callable[[float, Callable[[float, int], None], int], None]  # when, what, its argument
MOST_SEEN = 256  # jobs that a policy is shown, the most urgent ones


@dataclass(slots=True)
class VideoReplica:
    hold: Hold
    order_s: float
    job: int | None = None
    since_s: float = 0.0
    leaving: bool = False
    run: int = 0  # counts what was begun, so that the end of something interrupted is not believed


@dataclass(slots=True)
class VideoPool:
    """`gpus` of one replica. `freed` is called whenever GPUs come back."""

    jobs: Jobs
    gpus: int
    nodes: Nodes
    schedule: Schedule
    cold_start_s: Callable[[], float]
    freed: Callable[[float], None]
    released: Callable[[Hold, float, float], None]
    replicas: dict[int, VideoReplica] = field(default_factory=dict)
    starting: dict[int, Start] = field(default_factory=dict)
    pending: int = 0
    waiting: list[tuple[float, int]] = field(default_factory=list)
    left_steps: list[int] = field(default_factory=list)
    finished_s: dict[int, float] = field(default_factory=dict)
    starts_s: list[float] = field(default_factory=list)
    _count: int = 0

    def __post_init__(self) -> None:
        self.left_steps = self.jobs.steps.tolist()

    def arrive(self, now_s: float, job: int) -> None:
        heappush(self.waiting, (float(self.jobs.deadline_s[job]), job))
        self._begin_idle(now_s)

    def _begin_idle(self, now_s: float) -> None:
        for number, replica in self.replicas.items():
            if not self.waiting:
                return
            if replica.job is None and not replica.leaving:
                self._begin(now_s, number, replica)

    def _begin(self, now_s: float, number: int, replica: VideoReplica) -> None:
        replica.job = heappop(self.waiting)[1]
        replica.since_s = now_s
        replica.run += 1
        step_s = float(self.jobs.step_s[replica.job])
        run = replica.run
        self.schedule(now_s + self.left_steps[replica.job] * step_s, lambda at_s, _: self._end(at_s, number, run), 0)

    def _end(self, now_s: float, number: int, run: int) -> None:
        replica = self.replicas.get(number)
        if replica is None or replica.run != run or replica.job is None:
            return
        self.finished_s[replica.job] = now_s
        self.left_steps[replica.job] = 0
        replica.job = None
        if replica.leaving:
            self._leave(now_s, number)
        elif self.waiting:
            self._begin(now_s, number, replica)

    def _leave(self, now_s: float, number: int) -> None:
        replica = self.replicas.pop(number)
        self.nodes.give(replica.hold)
        self.released(replica.hold, replica.order_s, now_s)
        self.freed(now_s)

    def steer(self, now_s: float, target: int) -> None:
        """Order, cancel or take back replicas until `target` are there or on their way."""
        staying = [number for number, replica in self.replicas.items() if not replica.leaving]
        surplus = self.size - target
        if surplus <= 0:
            self.pending += -surplus
            self.retry(now_s)
            return
        cancelled = min(surplus, self.pending)
        self.pending -= cancelled
        surplus -= cancelled
        for number in list(self.starting)[::-1][:surplus]:
            start = self.starting.pop(number)
            self.nodes.give(start.hold)
            self.released(start.hold, start.order_s, now_s)
            surplus -= 1
        for number in sorted(staying, key=self._urgency)[:surplus] if surplus > 0 else ():
            self._take_back(now_s, number)
        self.freed(now_s)

    def _urgency(self, number: int) -> float:
        job = self.replicas[number].job
        return -math.inf if job is None else -float(self.jobs.deadline_s[job])

    def _take_back(self, now_s: float, number: int) -> None:
        replica = self.replicas[number]
        replica.leaving = True
        if replica.job is None:
            self._leave(now_s, number)
            return
        job, step_s = replica.job, float(self.jobs.step_s[replica.job])
        done = math.ceil((now_s - replica.since_s) / step_s - 1e-9)
        if done >= self.left_steps[job]:
            return  # the end of the job is the next boundary
        replica.run += 1
        self.schedule(replica.since_s + done * step_s, lambda at_s, _: self._boundary(at_s, number, done), 0)

    def _boundary(self, now_s: float, number: int, done: int) -> None:
        replica = self.replicas.get(number)
        if replica is None or replica.job is None:
            return
        self.left_steps[replica.job] -= done
        heappush(self.waiting, (float(self.jobs.deadline_s[replica.job]), replica.job))
        self._leave(now_s, number)
        self._begin_idle(now_s)

    def retry(self, now_s: float) -> None:
        """Pending orders take the GPUs that are free now."""
        while self.pending:
            hold = self.nodes.take(self.gpus)
            if hold is None:
                return
            self.pending -= 1
            self._count += 1
            cold_s = self.cold_start_s()
            self.starting[self._count] = Start(hold=hold, order_s=now_s, ready_s=now_s + cold_s)
            self.schedule(now_s + cold_s, self._ready, self._count)

    def _ready(self, now_s: float, number: int) -> None:
        start = self.starting.pop(number, None)
        if start is None:
            return
        self.starts_s.append(now_s - start.order_s)
        self.replicas[number] = VideoReplica(hold=start.hold, order_s=start.order_s)
        self._begin_idle(now_s)

    def lose(self, now_s: float, node: int) -> None:
        """Everything on the node is gone; jobs go on elsewhere from their last finished step."""
        for number in [n for n, start in self.starting.items() if any(at == node for at, _ in start.hold)]:
            start = self.starting.pop(number)
            self.nodes.give(start.hold)
            self.released(start.hold, start.order_s, now_s)
        for number in [n for n, replica in self.replicas.items() if any(at == node for at, _ in replica.hold)]:
            replica = self.replicas.pop(number)
            if replica.job is not None:
                done = int((now_s - replica.since_s) / float(self.jobs.step_s[replica.job]))
                self.left_steps[replica.job] = max(1, self.left_steps[replica.job] - done)
                heappush(self.waiting, (float(self.jobs.deadline_s[replica.job]), replica.job))
            self.nodes.give(replica.hold)
            self.released(replica.hold, replica.order_s, now_s)
        self._begin_idle(now_s)

    @property
    def size(self) -> int:
        """Replicas there or on their way, without those that leave."""
        staying = sum(not replica.leaving for replica in self.replicas.values())
        return staying + len(self.starting) + self.pending

    def holds(self) -> list[tuple[Hold, float]]:
        """All GPUs held, and since when."""
        return [(one.hold, one.order_s) for one in self.replicas.values()] + [
            (one.hold, one.order_s) for one in self.starting.values()
        ]

    def seen(self, now_s: float) -> VideoSeen:
        jobs = [self._job_seen(job, self.left_steps[job]) for _, job in sorted(self.waiting)[:MOST_SEEN]]
        for replica in self.replicas.values():
            if replica.job is not None:
                done = int((now_s - replica.since_s) / float(self.jobs.step_s[replica.job]))
                jobs.append(self._job_seen(replica.job, self.left_steps[replica.job] - done))
        leaving = sum(replica.leaving for replica in self.replicas.values())
        return VideoSeen(
            ready=len(self.replicas) - leaving,
            starting=len(self.starting) + self.pending,
            draining=leaving,
            jobs=tuple(sorted(jobs, key=lambda job: job.deadline_s)),
            cold_start_s=sum(self.starts_s) / len(self.starts_s) if self.starts_s else None,
        )

    def _job_seen(self, job: int, steps: int) -> JobSeen:
        return JobSeen(
            left_gpu_s=max(1, steps) * float(self.jobs.step_s[job]) * self.gpus,
            deadline_s=float(self.jobs.deadline_s[job]),
            value_usd=float(self.jobs.value_usd[job]),
        )
