"""A video job as a value: what was asked, where it stands, and how it ended. Times are Unix seconds.

queued -> in_progress -> completed | failed. A job that is interrupted goes back to the queue; `attempts` counts its
starts, so that a job which kills its replica is not started for ever.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Literal, Self

from cluster.errors import MorayError
from deployments.video.engine import RenderSpec

Status = Literal["queued", "in_progress", "completed", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoRequest:
    """A parsed and validated request: every choice is made, defaults included. `size` is WIDTHxHEIGHT in pixels."""

    model: str
    prompt: str
    negative_prompt: str
    seconds: int
    size: str
    fps: int
    steps: int
    guidance: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoJob(VideoRequest):
    """`owner` is the id of the key that asked; no other key sees the job."""

    id: str
    owner: str
    created_at_s: int
    status: Status = "queued"
    steps_done: int = 0
    attempts: int = 0
    completed_at_s: int | None = None
    expires_at_s: int | None = None
    error_code: str | None = None
    error_message: str | None = None

    @property
    def progress(self) -> int:
        """Percent of denoising steps done; 100 only once the file is there."""
        if self.status == "completed":
            return 100
        return min(99, 100 * self.steps_done // self.steps)

    def spec(self) -> RenderSpec:
        width, height = (int(side) for side in self.size.split("x"))
        return RenderSpec(
            job_id=self.id,
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            width=width,
            height=height,
            frames=self.seconds * self.fps,
            fps=self.fps,
            steps=self.steps,
            guidance=self.guidance,
            seed=self.seed,
        )

    def begun(self) -> Self:
        """A replica has started on it, or goes on with it."""
        return replace(self, status="in_progress", attempts=self.attempts + 1)

    def requeued(self) -> Self:
        """Its steps count as done until a replica says otherwise."""
        return replace(self, status="queued")

    def preempted(self) -> Self:
        """Its replica was lent: no fault of the job."""
        return replace(self, status="queued", attempts=max(0, self.attempts - (self.status == "in_progress")))

    def stepped(self, done: int, total: int) -> Self:
        """`total` may exceed the steps asked for: some schedulers call the model twice per step."""
        return replace(self, steps_done=self.steps * done // total)

    def completed(self, now_s: int) -> Self:
        return replace(self, status="completed", steps_done=self.steps, completed_at_s=now_s)

    def failed(self, error: MorayError) -> Self:
        return replace(self, status="failed", error_code=error.code, error_message=error.message)


def video_id(token_hex: Callable[[int], str]) -> str:
    """`video_` and 24 hexadecimal digits, from a source such as secrets.token_hex."""
    return f"video_{token_hex(12)}"


def queued(request: VideoRequest, job_id: str, owner: str, now_s: int) -> VideoJob:
    return VideoJob(**asdict(request), id=job_id, owner=owner, created_at_s=now_s)
