"""Which replica gets the next job. Replicas whose halt returns at once stand in for Ray's actors."""

import asyncio
from typing import Any

from deployments.control.words import Worker
from deployments.gateway.video_workers import VideoWorkers


class Actor:
    def __init__(self) -> None:
        self.halt: Any = self

    async def remote(self) -> None:
        pass


async def test_a_replica_that_a_job_is_to_have_alone_takes_no_other_though_one_that_was_there_before_ends() -> None:
    there = asyncio.Event()
    workers, worker = VideoWorkers(there.set), Worker(worker_id="w", node_id="n", actor=Actor())
    workers.take((worker,))
    await there.wait()
    workers.give("before", worker)
    assert workers.with_room(3) == worker
    workers.give("alone", worker, alone=True)
    assert workers.with_room(3) is None
    workers.over("before")
    assert workers.with_room(3) is None
    workers.over("alone")
    assert workers.with_room(3) == worker
