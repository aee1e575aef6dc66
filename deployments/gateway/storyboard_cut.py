"""The cut of a storyboard: its shots' files joined, signed with the shots as ingredients, put and sent."""

import asyncio
import contextlib
import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fastapi import Request, Response

from cluster.errors import MorayError, RequestError, Unavailable
from cluster.family import Video
from deployments.gateway.storyboards_wire import digest
from deployments.gateway.video_clearing import clear
from deployments.gateway.video_content import Part, sent
from deployments.gateway.video_metrics import VideoMetrics
from deployments.stores.files import VIDEO, Files
from deployments.stores.storyboards import Storyboard
from deployments.video import cut
from deployments.video.credentials import Claim, Signer

log = logging.getLogger("ray.serve")


class Cuts:
    """`state_folder` has the signer's certificate where the family file names none."""

    def __init__(self, files: Files, state_folder: Path, metrics: VideoMetrics) -> None:
        self.files, self._state_folder, self.metrics = files, state_folder, metrics

    async def joined(self, board: Storyboard, video: Video, now_s: int) -> Storyboard | None:
        """With its cut, whose file is there, or why it has none. None where another try may do better."""
        clips = [each for each in board.videos if each is not None]
        try:
            with tempfile.TemporaryDirectory(prefix="moray-cut-") as made:
                folder = Path(made)
                files = [folder / f"{each}.mp4" for each in clips]
                for each, file in zip(clips, files, strict=True):
                    await self.files.get(f"{each}/{VIDEO}", file)
                await asyncio.to_thread(self._cut, board, video, files, folder / VIDEO)
                await self.files.put(_key(board.id, clips), folder / VIDEO)
        except (RequestError, ValueError) as error:
            log.warning("%s: not joined", board.id, exc_info=error)
            why = error.message if isinstance(error, RequestError) else "cut: the shots cannot be joined; fetch each"
            self.metrics.cut("failed")
            return replace(board, cut_error=why, state="failed", joining_until_s=0.0)
        except (MorayError, OSError) as error:  # a full disk, a signer that cannot sign: the operator mends it
            log.warning("%s: not joined now", board.id, exc_info=error)
            self.metrics.cut("hindered")
            return None
        self.metrics.cut("ok")
        whole = replace(board, joined=tuple(clips), joined_at_s=now_s, signed=video.provenance.sign)
        return replace(whole, state="completed", joining_until_s=0.0)

    def _cut(self, board: Storyboard, video: Video, clips: Sequence[Path], out: Path) -> None:
        """Blocking."""
        cut.join(clips, out)
        if not video.provenance.sign:
            return
        claim = Claim(
            title=board.id,
            model=video.names[0],
            job_id=board.id,
            seed=json.loads(board.takes[0].asked)["seed"],
            action="joined",
            ingredients=tuple((clip.stem, clip) for clip in clips),
        )
        Signer(video.provenance, self._state_folder).sign(out, claim)

    async def content(self, board: Storyboard, request: Request) -> Response:
        """Of one that is joined."""
        version = f"{board.id}-{board.joined_at_s}-{board.revision}"
        part = Part(key=_key(board.id, board.joined), media_type="video/mp4", name=board.id, version=version)
        return await sent(part, self.files, request, {})

    async def forget(self, board: Storyboard) -> None:
        """Of one that has another take. What cannot be deleted now goes with the storyboard."""
        if board.joined:
            with contextlib.suppress(Unavailable):
                await self.files.delete(_key(board.id, board.joined))

    async def clear(self, board: Storyboard) -> None:
        """However long the store does not answer."""
        await clear(self.files, _key(board.id, board.joined))

    async def delete(self, board: Storyboard) -> None:
        """Whatever was ever joined of it."""
        await self.files.delete(board.id)


def _key(board_id: str, videos: Sequence[str]) -> str:
    """Another for another cut, so that nobody reads half of one and half of the next."""
    return f"{board_id}/{digest({'videos': list(videos)})[:16]}.mp4"
