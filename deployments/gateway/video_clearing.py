"""The files of video jobs and storyboards that are gone: deleted, failed or expired."""

import asyncio
import logging

from cluster.errors import Unavailable
from deployments.stores.files import Files
from deployments.stores.storyboards import StoryboardStore
from deployments.stores.threads import in_thread
from deployments.video.jobs import Jobs

log = logging.getLogger("ray.serve")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0  # before a store that does not answer is asked again


async def clear(files: Files, prefix: str) -> None:
    """Delete the file, or all files of a job or a storyboard, however long their store does not answer."""
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            return await files.delete(prefix)
        except Unavailable as failure:
            log.warning("%s: %s", prefix, failure)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


async def expire(store: Jobs, files: Files, now_s: float) -> None:
    """Delete what has expired, files first: what fails on the way is found again. Raises Unavailable."""
    for job in await in_thread(store.expired, now_s):
        await files.delete(job.id)
        await in_thread(store.delete, job.owner, job.id)


async def expire_storyboards(store: StoryboardStore, files: Files, now_s: float) -> None:
    """Likewise, with their cuts. Of one that is asked for again meanwhile only the cut goes, which it asks for anew."""
    for board in await in_thread(store.expired, now_s):
        await files.delete(board.id)
        await in_thread(store.forget, board)
