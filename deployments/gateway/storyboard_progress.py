"""What becomes of storyboards: takes that are accepted and end, cuts, and what expires."""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from cluster.errors import MorayError, Unavailable
from cluster.family import Family
from deployments.gateway.storyboard_cut import Cuts
from deployments.gateway.storyboards_wire import digest, noted, status_of
from deployments.gateway.video_clearing import expire_storyboards
from deployments.gateway.video_requests import Caller, created
from deployments.gateway.videos import Videos
from deployments.stores.storyboards import Storyboard, StoryboardStore, Take
from deployments.stores.threads import in_thread
from deployments.video.jobs import Jobs, VideoJob

log = logging.getLogger("ray.serve")
TURN_S = 1.0  # between looks at what is unsettled
SWEEP_S = 60.0  # between looks for what has expired
JOIN_S = 60.0  # whoever joins has so long before another may


class Progress:
    """`now_s`: Unix seconds."""

    def __init__(
        self,
        videos: Videos,
        boards: StoryboardStore,
        jobs: Jobs,
        cuts: Cuts,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._videos, self._boards, self._jobs, self._cuts, self._now_s = videos, boards, jobs, cuts, now_s
        self._sweep_s = 0.0  # when next, on the loop's clock

    def follow(self, family: Family) -> None:
        assert family.video is not None
        self._video = family.video

    async def run(self) -> None:
        """Sees to what is unsettled. Never ends."""
        while True:
            try:
                for board in await in_thread(self._boards.unsettled):
                    await self._tried(board)
                await self._sweep()
            except Unavailable as failure:
                self._cuts.metrics.store_failed()
                log.warning("storyboards: %s", failure)
            except Exception:  # none of it may end the loop; the next turn tries again
                log.exception("storyboards: not seen to; tried again")
            await asyncio.sleep(TURN_S)

    async def _tried(self, board: Storyboard) -> None:
        """One that fails holds up no other. Raises Unavailable."""
        try:
            await self._see_to(board)
        except Unavailable:
            raise
        except Exception:
            log.exception("%s: not seen to; tried again", board.id)

    async def _sweep(self) -> None:
        loop_s = asyncio.get_running_loop().time()
        if loop_s >= self._sweep_s:
            self._sweep_s = loop_s + SWEEP_S
            await expire_storyboards(self._boards, self._cuts.files, self._now_s())

    async def begun(self, board: Storyboard) -> Storyboard:
        """With a video for every take that had none. What is accepted once stays so, whoever asks again."""
        takes = [await self._accepted(board, index, take) for index, take in enumerate(board.takes)]
        if tuple(takes) == board.takes:
            return board
        now = await in_thread(self._boards.update, replace(board, takes=tuple(takes)))
        if now is not None:
            self.dropped(board.owner, [take for take in takes if take.refused is not None])
        return now or await in_thread(self._boards.get, board.owner, board.id) or board

    def dropped(self, owner: str, takes: Iterable[Take]) -> None:
        """Takes that are not rendered any more: what was reserved for those without a video comes back."""
        for take in takes:
            if take.job_id is not None and take.video_id is None:
                self._videos.unmade(owner, take.job_id)

    async def jobs_of(self, board: Storyboard) -> dict[str, VideoJob]:
        videos = [video for video in board.videos if video is not None]
        found = await in_thread(lambda: [self._jobs.get(board.owner, video) for video in videos])
        return {job.id: job for job in found if job is not None}

    def count(self, before: Storyboard, seen: Storyboard) -> None:
        """What ended between the two, by whoever has written it down."""
        for was, take in zip(before.takes, seen.takes, strict=True):
            if was.ended is None and take.ended is not None:
                self._cuts.metrics.shot(take.ended)

    async def _accepted(self, board: Storyboard, index: int, take: Take) -> Take:
        if take.video_id is not None or take.refused is not None:
            return take
        fields = json.loads(take.asked)
        caller = Caller(seed=fields["seed"], priority=board.priority, highest=board.priority)
        key = f"{board.id}/{index}/{len(take.earlier)}/{digest(fields)[:16]}"
        try:
            async with self._videos.inputs.ready(created(fields, self._video, caller), board.owner) as (asked, files):
                job = await self._videos.accept(asked, board.owner, key, files, reserved=take.job_id)
                return replace(take, video_id=job.id)
        except Unavailable:
            return take  # at the next turn
        except MorayError as error:
            return replace(take, refused=error.message)

    async def _see_to(self, board: Storyboard) -> None:
        board = await self.begun(board)
        jobs = await self.jobs_of(board)  # once: what is not counted yet is not joined yet
        seen = await self._counted(board, noted(board, jobs))
        if seen is None:
            return
        status = status_of(seen, jobs)
        if status == "joining" and seen.joining_until_s <= self._now_s():
            held = replace(seen, state="joining", joining_until_s=self._now_s() + JOIN_S)
            mine = await in_thread(self._boards.update, held)
            if mine is not None:
                await self._join(mine)
        elif status in ("incomplete", "completed", "failed"):
            settled = self._settled(replace(seen, state=status), int(self._now_s()))
            await in_thread(self._boards.update, settled)

    async def _counted(self, board: Storyboard, seen: Storyboard) -> Storyboard | None:
        """As it is written down now; None where another is doing so."""
        if seen == board:
            return board
        now = await in_thread(self._boards.update, seen)
        if now is not None:
            self.count(board, seen)
        return now

    def _settled(self, board: Storyboard, now_s: int) -> Storyboard:
        """It expires as a video does that ends now."""
        expires_s = self._video.expires_s
        return replace(board, expires_at_s=None if expires_s is None else now_s + expires_s)

    async def _join(self, board: Storyboard) -> None:
        """The shots stay whatever comes of it."""
        now_s = int(self._now_s())
        made = await self._cuts.joined(board, self._video, now_s)
        if made is None or await in_thread(self._boards.update, self._settled(made, now_s)) is not None:
            return
        now = await in_thread(self._boards.get, board.owner, board.id)
        if made.joined and (now is None or now.videos != board.videos):  # it was deleted, or a retake came between
            await self._cuts.clear(made)
