"""What a gateway knows of the unfinished video jobs of all gateways: its own as they are, others as last seen."""

from collections.abc import Collection, Sequence

from autoscaling.signals import JobSeen
from cluster.family import Video
from cluster.queueing import JobAhead, Outlook, left_s, outlooks, urgency
from deployments.gateway.video_workers import VideoWorkers
from deployments.video.jobs import VideoJob


class VideoQueue:
    def __init__(self, video: Video) -> None:
        self.video = video  # as it is served now
        self._jobs: dict[str, VideoJob] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._jobs

    def put(self, job: VideoJob) -> None:
        """New, or as it is now."""
        self._jobs[job.id] = job

    def pop(self, job_id: str) -> None:
        self._jobs.pop(job_id, None)

    def now(self, job: VideoJob) -> VideoJob:
        """The job as it was put last."""
        return self._jobs.get(job.id, job)

    def ids(self) -> frozenset[str]:
        return frozenset(self._jobs)

    def seen(self, rows: Sequence[VideoJob], before: Collection[str], own: Collection[str]) -> None:
        """The store's rows, read since there were the jobs `before`; what came or went meanwhile stays so.

        Of models that are not served there is nothing to estimate.
        """
        served = {job.id: job for job in rows if job.model in self.video.names}
        known = {job_id: job for job_id, job in self._jobs.items() if job_id in own or job_id not in before}
        gone = set(before) - self._jobs.keys()
        self._jobs = {job_id: job for job_id, job in {**served, **known}.items() if job_id not in gone}

    def waits(self, owner: str, key: str | None) -> bool:
        """Whether an unfinished job has this idempotency key."""
        return key is not None and any((job.owner, job.idempotency_key) == (owner, key) for job in self._jobs.values())

    def due_s(self, job: VideoJob) -> float:
        return job.created_at_s + self.video.slo.deadline_s

    def backlog_gpu_s(self) -> float:
        return sum(map(self._left_s, self._jobs.values())) * self.video.gpus

    def oldest_s(self) -> float | None:
        """When the first of those that are queued was accepted."""
        return min((job.created_at_s for job in self._jobs.values() if job.status == "queued"), default=None)

    def for_scaling(self) -> tuple[JobSeen, ...]:
        """The most urgent first."""
        return tuple(
            JobSeen(
                left_gpu_s=self._left_s(job) * self.video.gpus,
                deadline_s=self.due_s(job),
                value_usd=job.seconds * self.video.price.usd_per_second,
            )
            for job in sorted(self._jobs.values(), key=lambda job: urgency(job.priority, self.due_s(job)))
        )

    def outlooks(self, workers: VideoWorkers) -> dict[str, Outlook]:
        """By job. What runs for another gateway counts as waiting."""
        ahead = (
            JobAhead(
                job_id=job.id,
                left_s=self._left_s(job),
                due_s=self.due_s(job),
                priority=job.priority,
                replica=workers.of(job.id),
            )
            for job in self._jobs.values()
        )
        return outlooks(ahead, workers.names(), self.video.concurrent, self.video.cold_start.p50_s)

    def _left_s(self, job: VideoJob) -> float:
        return left_s(self.video, job.size, job.spec().frames, job.steps - job.steps_done)
