"""The files of video jobs that are gone: deleted, failed or expired."""

import asyncio
import logging

from cluster.errors import Unavailable
from deployments.stores.files import Files
from deployments.video.jobs import Jobs

log = logging.getLogger("ray.serve")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0  # before a store that does not answer is asked again


async def clear(files: Files, job_id: str) -> None:
    """Delete its files, however long their store does not answer."""
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            return await files.delete(job_id)
        except Unavailable as failure:
            log.warning("video %s: %s", job_id, failure)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


async def expire(store: Jobs, files: Files, now_s: float) -> None:
    """Delete what has expired, files first: what fails on the way is found again. Raises Unavailable."""
    for job in await asyncio.to_thread(store.expired, now_s):
        await files.delete(job.id)
        await asyncio.to_thread(store.delete, job.owner, job.id)
