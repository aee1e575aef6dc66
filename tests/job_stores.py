"""Both stores of jobs, for tests, and jobs to put into them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from postgres import Server

from deployments.stores.jobs import JobStore
from deployments.stores.postgres import PostgresJobs
from deployments.video.jobs import Jobs, VideoJob

Open = Callable[[], Jobs]  # another connection to one set of rows


def sqlite(folder: Path) -> Open:
    return lambda: JobStore(folder / "jobs.sqlite")


def postgresql(server: Server) -> Open:
    url = server.fresh()
    return lambda: PostgresJobs(url)


def video_id(number: int) -> str:
    return f"video_{number:024x}"


def job(number: int, owner: str = "key_a", **given: Any) -> VideoJob:
    asked: dict[str, Any] = {
        "model": "sora-2", "prompt": "a red ball ✓", "negative_prompt": "", "seconds": 1, "size": "64x64", "fps": 8,
        "steps": 12, "guidance": 5.0, "seed": 2**63 - 1, "created_at_s": 1000,
    }  # fmt: skip
    return VideoJob(id=video_id(number), owner=owner, **asked | given)


def numbers(jobs: tuple[VideoJob, ...]) -> list[int]:
    return [int(each.id.removeprefix("video_"), 16) for each in jobs]
