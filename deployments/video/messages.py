"""What a video replica is asked and what it says, as values: they cross process borders.

`render(asked)` is a stream: Begun, then a StepDone for each step and a StageBegun for each stage after them, then one
Rendered. A replica has up to `video.concurrent` jobs under way. The rest of an actor's calls:

load()            reads the weights, once
withdraw(job_id)  the job was deleted: it stops at its next step, nothing of it is saved; returns once it writes no more
halt()            all jobs stop at their next step, saved; returns once there is none
vacate()          the same, and it takes no more
watch()           Doing at every change, None every BEAT_S: it is still there; never ends
"""

from dataclasses import dataclass

from cluster.errors import MorayError
from deployments.video.spec import RenderSpec, Stage

BEAT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """`model`: by the name that its client used. `deadline_s`: Unix seconds. The higher `priority` goes first.

    `alone`: it waits until no other job uses the device, and others wait for it: it may be what breaks replicas.

    Files are found by the job's id, and its parent's: all that RenderSpec.inputs names is in the job's folder of the
    file store before it is asked for; of the parent `kept.safetensors`, `master.mkv` and `video.mp4` are read.
    """

    spec: RenderSpec
    model: str
    deadline_s: float
    priority: int = 0
    alone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """The replica has started on the job: from now on its end may be the job's doing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone:
    """`seconds`: of the forward, which it shared with `together` - 1 other jobs. `way`: what runs, see Rendering."""

    done: int
    total: int
    seconds: float
    together: int = 1
    way: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageBegun:
    """After the last step: decoding, encoding, signing, storing, in this order."""

    stage: Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """How a job ended: one of four, or its files are in the store, video.mp4 the last of them to come there.

    `error`: it failed for good. `preempted`: it did not end, its state is saved and the replica leaves, was halted, or
    has no room. `broke`: why the replica is of no use any more, by this job's doing or not; it leaves, and the job goes
    on elsewhere from its last saved state. `hindered`: why it did not end though nothing is wrong with it, say a full
    disk or a file store that does not answer; its state is saved where that could be done: try again later; `lasting`:
    but not for ever, for it does not pass by itself.
    """

    error: MorayError | None = None
    preempted: bool = False
    broke: str | None = None
    hindered: str | None = None
    lasting: bool = False
    signed: bool = False
    simulated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Doing:
    """What a replica is at; said at every change, and now and then when states were saved."""

    idle: bool
    leaving: bool


News = Begun | StepDone | StageBegun | Rendered
