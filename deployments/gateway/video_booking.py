"""Around each video job: what it may take of its plan's limits is put aside before it is kept, what it took is settled.

A reservation has the job's id, so that whichever gateway sees the job's end settles it: once, however often it is told.
Settled is what the ledger says: a completed video by its seconds, one that failed or was deleted by its GPU-seconds
alone. A gateway that dies in the middle of a deletion, or while the store of limits is away, leaves what was reserved
spent.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from cluster.access import DEFAULT, KeyRecord
from cluster.clip import Grid, marked
from cluster.delivery import sides
from cluster.errors import Unavailable
from cluster.family import Family, Plan, Video
from cluster.limits import CURRENCIES, JOB_LEASE_S, Currency, Reservation, judged
from cluster.quota import taken, videos_need
from cluster.usage import Usage, video_nusd, video_use_gpu_s
from deployments.gateway.asgi import Header
from deployments.gateway.limits_wire import refusal, tell
from deployments.gateway.quota import AGAIN_S, NOTHING, WAIT_S, Quotas, tenant_of
from deployments.stores.key_rows import KeyRows
from deployments.stores.threads import in_thread
from deployments.stores.usage_journal import Journal
from deployments.video.jobs import VideoJob, VideoRequest

T = TypeVar("T")


class VideoBookings:
    """One per gateway, on one event loop. `family`: as it is served now. `now_s`: Unix seconds."""

    def __init__(
        self,
        journal: Journal,
        quotas: Quotas,
        keys: KeyRows,
        family: Callable[[], Family],
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._journal, self._keys, self._quotas, self._family, self._now_s = journal, keys, quotas, family, now_s
        self._tasks: set[asyncio.Task[None]] = set()

    async def reserve(self, owner: str, jobs: Mapping[str, VideoRequest], headers: list[Header]) -> None:
        """For all of them, by their ids, or for none; `headers` gain what is left. Raises RateLimited, Unavailable."""
        record = await in_thread(self._keys.get, owner)
        plan, video = self._plan(record), self._family().video
        if record is None or plan is None or not plan.limits or not jobs:
            return
        assert video is not None
        needs = videos_need(video, plan, [(job.seconds, _gpu_s(video, job, job.steps)) for job in jobs.values()])
        _grantable(plan, needs)
        tenant, reserved, verdict = tenant_of(record), list[str](), None
        try:
            for job_id, amounts in zip(jobs, needs, strict=True):
                asked = Reservation(id=job_id, amounts=amounts, lease_s=JOB_LEASE_S)
                verdict = await self._quotas.reserve(tenant, plan.limits, asked)
                if not verdict.granted:
                    raise refusal(verdict)
                reserved.append(job_id)
        except BaseException:
            for job_id in reserved:
                self._quotas.settle(tenant, job_id, NOTHING)
            raise
        finally:
            tell(headers, verdict.standings if verdict else ())

    def unmade(self, owner: str, job_ids: Sequence[str], kept: Callable[[], bool] = lambda: False) -> None:
        """Nothing came of them, unless `kept`, which may block, says that they were written after all."""
        if job_ids:
            self._spawn(self._unmade(owner, job_ids, kept))

    async def ended(self, job: VideoJob) -> None:
        """Before its end is told. What a job that failed is given back is waited for, however long."""
        record = await self._owner(job.owner)
        event = self._event(job, record, job.error_code or "ok")
        await self._journal.settle(event)
        await self._settled(record, event, job.id, wait_s=WAIT_S if job.status == "completed" else None)

    async def deleted(self, job: VideoJob) -> None:
        """Before its end, once its row is gone. Returns when it is settled, or after WAIT_S; then it still will be."""
        await asyncio.wait((self._spawn(self._deleted(job)),), timeout=WAIT_S)

    async def _deleted(self, job: VideoJob) -> None:
        record = await self._owner(job.owner)
        event = self._event(job, record, "deleted")
        self._journal.put(event)
        await self._settled(record, event, job.id, wait_s=None)

    async def _unmade(self, owner: str, job_ids: Sequence[str], kept: Callable[[], bool]) -> None:
        record = await self._owner(owner)
        if not (self._limited(record) and await _surely(kept)):
            for job_id in job_ids:
                self._settle(record, job_id, NOTHING)

    async def _settled(self, record: KeyRecord | None, event: Usage, job_id: str, wait_s: float | None) -> None:
        settling = self._settle(record, job_id, taken(event))
        if settling is not None:
            await asyncio.wait((settling,), timeout=wait_s)

    def _settle(
        self, record: KeyRecord | None, job_id: str, actual: Mapping[Currency, float]
    ) -> asyncio.Task[None] | None:
        """None where nothing is limited."""
        if record is None or not self._limited(record):
            return None
        return self._quotas.settle(tenant_of(record), job_id, actual, once=False)

    def _limited(self, record: KeyRecord | None) -> bool:
        plan = self._plan(record)
        return plan is not None and bool(plan.limits)

    def _plan(self, record: KeyRecord | None) -> Plan | None:
        return None if record is None or record.plan is None else self._family().plans.get(record.plan)

    def _event(self, job: VideoJob, record: KeyRecord | None, code: str) -> Usage:
        video, done = self._family().video, job.status == "completed"
        assert video is not None
        return Usage(
            id=f"{job.id}/video",
            at_s=int(self._now_s()),
            kind="video",
            org=record.org if record else DEFAULT,
            project=record.project if record else DEFAULT,
            key_id=job.owner,
            model=job.model,
            tier_asked="video",
            tier_served="video",
            code=code,
            video_s=job.seconds if done else 0,
            gpu_s=_gpu_s(video, job, job.steps_done),
            price_nusd=video_nusd(video, job.seconds) if done else 0,
        )

    async def _owner(self, key_id: str) -> KeyRecord | None:
        return await _surely(lambda: self._keys.get(key_id))

    def _spawn(self, coroutine: Any) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _surely(ask: Callable[[], T]) -> T:
    """However long its store does not answer. `ask` may block."""
    while True:
        with contextlib.suppress(Unavailable):
            return await in_thread(ask)
        await asyncio.sleep(AGAIN_S)


def _grantable(plan: Plan, needs: Sequence[Mapping[Currency, float]]) -> None:
    """Raises RateLimited for more together than a limit ever grants."""
    together: dict[Currency, float] = {key: sum(each.get(key, 0.0) for each in needs) for key in CURRENCIES}
    verdict = judged(plan.limits, dict.fromkeys(CURRENCIES, 0.0), together, 0.0, 0.0)
    if not verdict.granted:
        raise refusal(verdict)


def _gpu_s(video: Video, job: VideoRequest, steps: int) -> float:
    """Of so many of its steps, as far as they run: a remix begins in the middle, a fast edit computes what it marks."""
    run = max(1, round(job.steps * job.strength)) / job.steps if job.task == "remix" else 1.0
    frames = job.frames or job.seconds * job.fps
    return video_use_gpu_s(video, job.size, frames / video.fps, steps * run, _share(video, job, frames))


def _share(video: Video, job: VideoRequest, frames: int) -> float:
    """Of the tokens, that a step computes on average. A mask that is a picture is taken for the whole frame."""
    edit, how = job.edit, video.acceleration
    way = job.way if isinstance(job, VideoJob) else None
    fast = video.takes is not None and video.takes.fast and how.context_parallel == 1 and not how.first_block_cache
    if edit is None or edit.mode != "fast" or not (way == "per-token-fast" if way else fast):
        return 1.0
    width, height = sides(job.size)
    grid = Grid(width=width, height=height, frames=frames)
    tokens = marked(grid, job.fps, edit.span, edit.region)
    share = float(tokens.mean()) if tokens.size else 1.0
    return share + (1.0 - share) / how.refresh_steps
