"""A replica in a process of its own that renders one job and stands still where it is told to: `FOLDER STAGE`.

It prints its name once it stands there.
"""

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from video_replica import FREE, asked, replica, video

from deployments.stores.files import VIDEO
from deployments.stores.local_files import LocalFiles
from deployments.video.finish import Finish
from deployments.video.messages import Asked
from deployments.video.simulated import Simulated, SimulatedVideoEngine
from deployments.video.spec import Frames, Rendering, RenderSpec, Stage

FOLDER, STAGE = Path(sys.argv[1]), sys.argv[2]
AMID_STEPS = STAGE.startswith("step")
COST = FREE | {"base_s": 0.5 if AMID_STEPS else 0.05}  # long steps: however busy the machine, a save is due after each
written = threading.Event()


def reached(stage: str) -> None:
    if stage == STAGE:
        print(stage, flush=True)
        threading.Event().wait()


class Engine(SimulatedVideoEngine):
    def open(self, spec: RenderSpec, folder: Path, saved: bytes | None) -> Simulated:
        reached("queued")
        return super().open(spec, folder, saved)

    def step(self, renderings: Sequence[Rendering]) -> None:
        """It begins once the state before it is written: what a write takes would be lost, too."""
        if AMID_STEPS and renderings[0].done:
            assert written.wait(20)
            written.clear()
        reached(f"step {renderings[0].done + 1}")
        super().step(renderings)


class Finishing(Finish):
    def make(self, asked: Asked, chunks: Iterator[Frames], folder: Path, at: Callable[[Stage], None]) -> None:  # type: ignore[override]
        def held(stage: Stage) -> None:
            at(stage)
            reached(stage)

        super().make(asked, chunks, folder, held)


class Store(LocalFiles):
    async def put_bytes(self, key: str, data: bytes) -> None:
        await super().put_bytes(key, data)
        written.set()

    async def put(self, key: str, file: Path) -> None:
        if key.endswith(VIDEO):
            reached("storing")
        await super().put(key, file)
        if key.endswith(VIDEO):
            reached("stored")


async def main() -> None:
    worker = replica(FOLDER, Engine(video(cost=COST)))
    await worker.load()
    worker._files = Store(FOLDER / "state" / "videos")
    worker._finish = Finishing(video(), FOLDER / "state")
    async for _ in worker.render(asked()):
        pass


asyncio.run(main())
