"""A video job as a value: what was asked, where it stands, and how it ended. Times are Unix seconds. Pure.

queued -> in_progress -> completed | failed. A job that is interrupted goes back to the queue; `attempts` counts its
starts, so that a job which kills its replica is not started for ever.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Protocol, Self

from cluster.errors import MorayError
from deployments.video.spec import Edit, Inputs, RenderSpec, Stage, Task

Status = Literal["queued", "in_progress", "completed", "failed"]
Order = Literal["asc", "desc"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoRequest:
    """A parsed and validated request: every choice is made, defaults included. `size` is WIDTHxHEIGHT in pixels.

    `size`, `frames` and `fps` are rendered, frames 0 meaning seconds * fps; `out_size` and `out_fps` are delivered,
    None: as rendered. `style` names a preset; its phrase is kept too, so that a preset which changes later changes no
    job. `parent_id`: the job that a remix, an edit or an extension begins from. Of two jobs that wait, that of the
    higher `priority` begins first. `inputs_sha256`: of the files that came with it, which may have gone since; None
    where none did.
    """

    model: str
    prompt: str
    negative_prompt: str
    seconds: int
    size: str
    fps: int
    steps: int
    guidance: float
    seed: int
    task: Task = "create"
    parent_id: str | None = None
    edit: Edit | None = None
    inputs: Inputs = field(default_factory=Inputs)
    style: str | None = None
    style_phrase: str = ""
    frames: int = 0
    out_size: str | None = None
    out_fps: int | None = None
    strength: float = 1.0
    priority: int = 0
    inputs_sha256: str | None = None

    @property
    def delivered_size(self) -> str:
        return self.out_size or self.size

    @property
    def delivered_fps(self) -> int:
        return self.out_fps or self.fps


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoJob(VideoRequest):
    """`owner` is the id of the key that asked; no other key sees the job.

    `idempotency_key`: an owner's second request with the same one is answered with this job. `claimed_by`: the gateway
    that sees to the job, until `lease_until_s` unless it renews. `signed`: whether the finished file carries content
    credentials; None before its end. `broke`: replicas that left since their device or disk broke under the job. `way`:
    what took its last step, see Rendering; None before the first.
    """

    id: str
    owner: str
    created_at_s: int
    status: Status = "queued"
    stage: Stage = "queued"
    steps_done: int = 0
    attempts: int = 0
    broke: int = 0
    way: str | None = None
    completed_at_s: int | None = None
    expires_at_s: int | None = None
    error_code: str | None = None
    error_message: str | None = None
    signed: bool | None = None
    idempotency_key: str | None = None
    claimed_by: str | None = None
    lease_until_s: float | None = None

    @property
    def finished(self) -> bool:
        return self.status in ("completed", "failed")

    @property
    def progress(self) -> int:
        """Percent of denoising steps done; 100 only once the file is there."""
        if self.status == "completed":
            return 100
        return min(99, 100 * self.steps_done // self.steps)

    @property
    def asked(self) -> VideoRequest:
        """Without what became of it: equal for two requests that ask for the same, seeds included."""
        return VideoRequest(**_asked(self))

    def spec(self) -> RenderSpec:
        """All that its replica is told."""
        width, height = _sides(self.size)
        out_width, out_height = _sides(self.out_size) if self.out_size else (0, 0)
        return RenderSpec(
            job_id=self.id,
            prompt=", ".join(filter(None, (self.prompt, self.style_phrase))),
            negative_prompt=self.negative_prompt,
            width=width,
            height=height,
            frames=self.frames or self.seconds * self.fps,
            fps=self.fps,
            steps=self.steps,
            guidance=self.guidance,
            seed=self.seed,
            task=self.task,
            parent=self.parent_id,
            edit=self.edit,
            inputs=self.inputs,
            strength=self.strength,
            out_width=out_width,
            out_height=out_height,
            out_fps=self.out_fps or 0,
        )

    def begun(self) -> Self:
        """A replica has started on it, or goes on with it."""
        return replace(self, status="in_progress", stage="rendering", attempts=self.attempts + 1)

    def requeued(self) -> Self:
        """Its steps count as done until a replica says otherwise."""
        return replace(self, status="queued", stage="queued")

    def preempted(self) -> Self:
        """Its replica was lent: no fault of the job."""
        return replace(self.requeued(), attempts=max(0, self.attempts - (self.status == "in_progress")))

    def broken(self) -> Self:
        """Its replica leaves, by the job's doing or not."""
        return replace(self.requeued(), broke=self.broke + 1)

    def stepped(self, done: int, total: int) -> Self:
        """`total` may exceed the steps asked for: some schedulers call the model twice per step."""
        return replace(self, stage="rendering", steps_done=self.steps * done // total)

    def staged(self, stage: Stage) -> Self:
        """What its replica does now; the denoising is over once that is not rendering."""
        return replace(self, stage=stage, steps_done=self.steps_done if stage == "rendering" else self.steps)

    def completed(self, now_s: int, *, signed: bool | None = None, expires_s: int | None = None) -> Self:
        """Its files are there. They are deleted `expires_s` later, or never."""
        return replace(
            self,
            status="completed",
            steps_done=self.steps,
            completed_at_s=now_s,
            expires_at_s=None if expires_s is None else now_s + expires_s,
            signed=signed,
        )

    def failed(self, error: MorayError) -> Self:
        why = error.message.replace("\0", "")  # PostgreSQL keeps no such character
        return replace(self, status="failed", error_code=error.code, error_message=why)


@dataclass(frozen=True, slots=True, kw_only=True)
class Character:
    """Who appears in several videos. `file`: a key of the file store, of a video or an image."""

    id: str
    owner: str
    name: str
    file: str
    created_at_s: int


class Jobs(Protocol):
    """Where jobs are rows: SQLite or PostgreSQL. Blocking; any thread may call.

    What returned is on disk. A job of another owner is answered as if it did not exist. A gateway sees to a job under a
    lease: it claims, renews, and writes only while no other has claimed since. Every call raises Unavailable where the
    database does not answer; nothing was changed then, or all of it was.
    """

    def create(self, job: VideoJob) -> VideoJob:
        """The job, or the earlier one of its owner with its idempotency key. Raises ValueError where its id is taken.

        A job that names `claimed_by` and `lease_until_s` is claimed from the start.
        """

    def update(self, job: VideoJob) -> bool:
        """Write what became of it, but for its lease. False where it may be written no more: it was deleted, or

        claimed by another than `job.claimed_by`, or is finished already. Then its rendering may stop.
        """

    def get(self, owner: str, job_id: str) -> VideoJob | None: ...

    def asked(self, owner: str, idempotency_key: str | None) -> VideoJob | None:
        """The job of that key; None where there is none."""

    def page(
        self, owner: str, *, after: str | None = None, limit: int = 20, order: Order = "desc"
    ) -> tuple[tuple[VideoJob, ...], bool]:
        """A page in order of creation, and whether more follow. Raises InvalidRequest where `after` is no job."""

    def delete(self, owner: str, job_id: str) -> bool:
        """False where there is none."""

    def unfinished(self) -> tuple[VideoJob, ...]:
        """Every owner's queued and interrupted jobs, oldest first, claimed or not."""

    def children(self, owner: str, job_ids: Collection[str]) -> dict[str, tuple[str, ...]]:
        """By job, the ids of those that were made from it, oldest first; jobs without any are left out."""

    def counts(self) -> dict[str, int]:
        """How many jobs of all owners there are, by status."""

    def claim(
        self, gateway: str, now_s: float, lease_s: float, models: Collection[str] | None = None
    ) -> VideoJob | None:
        """The next job that nobody holds, now held by `gateway`: of the highest priority, of those the oldest.

        A job whose lease has run out counts as nobody's and comes back as queued. `models`: jobs of others stay where
        they are. None where there is none.
        """

    def renew(self, gateway: str, job_ids: Collection[str], now_s: float, lease_s: float) -> frozenset[str]:
        """Of these, the unfinished ones that the gateway still holds, now for longer. Others were deleted, are

        finished, or were claimed by another gateway.
        """

    def release(self, gateway: str, job_id: str | None = None) -> None:
        """Its unfinished job, or all of them, are nobody's, and queued."""

    def expired(self, now_s: float) -> tuple[VideoJob, ...]:
        """Finished jobs whose files are due to be deleted, but for those that an unfinished job is made from."""

    def present(self, ids: Collection[str]) -> frozenset[str]:
        """Of these, at most 100, the ids of jobs and characters, whosever."""

    def put_character(self, character: Character, most: int) -> bool:
        """Add it. False where its owner has `most` already. Raises ValueError where its id is taken.

        PostgreSQL counts none that another connection is just adding.
        """

    def character(self, owner: str, character_id: str) -> Character | None: ...

    def characters(self, owner: str) -> tuple[Character, ...]:
        """Oldest first."""

    def delete_character(self, owner: str, character_id: str) -> bool: ...

    def close(self) -> None: ...


def video_id(token_hex: Callable[[int], str]) -> str:
    """`video_` and 24 hexadecimal digits, from a source such as secrets.token_hex."""
    return f"video_{token_hex(12)}"


def queued(
    request: VideoRequest, job_id: str, owner: str, now_s: int, *, idempotency_key: str | None = None
) -> VideoJob:
    given = _asked(request)
    return VideoJob(**given, id=job_id, owner=owner, created_at_s=now_s, idempotency_key=idempotency_key)


def _sides(size: str) -> tuple[int, int]:
    width, height = (int(side) for side in size.split("x"))
    return width, height


def _asked(request: VideoRequest) -> dict[str, Any]:
    return {each.name: getattr(request, each.name) for each in fields(VideoRequest)}
