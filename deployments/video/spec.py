"""What a video replica is asked, as values, and the seams around it. What a job is to its client is in jobs.py."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from cluster.clip import Region, Span

Frames = NDArray[np.uint8]  # RGB [F, H, W, 3]
Task = Literal["create", "remix", "edit", "extend"]
Stage = Literal["queued", "rendering", "decoding", "encoding", "signing", "storing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Names of files in the job's folder of the file store; None where there is none of the kind.

    `first`, `last`: images that the clip begins and ends with. `references`: images of what is to appear. `source`: a
    video that an edit or an extension begins from, where no job of ours is its parent. `mask`: an image, white where
    an edit may change. `audio`: conditions the model where it takes any; is heard in the result anyway.
    """

    first: str | None = None
    last: str | None = None
    references: tuple[str, ...] = ()
    source: str | None = None
    mask: str | None = None
    audio: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """What of the parent is computed anew: all that is marked in time and in the frame. None: no bound in it."""

    span: Span | None = None
    region: Region | None = None
    mode: Literal["exact", "fast"] = "exact"


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderSpec:
    """`width`, `height`, `frames` and `fps` are rendered; `out_*` delivered: scaled and repeated up, never invented.

    guidance <= 1 turns classifier-free guidance off. `parent`: id of the job whose latents a remix, an edit or an
    extension begins from; `frames` of an extension count the parent's too. `strength`: of a remix, the share of the
    steps that are taken, from the parent's latents noised as far, 0 to 1: at 1 nothing of them is left.
    """

    job_id: str
    prompt: str
    negative_prompt: str = ""
    width: int
    height: int
    frames: int
    fps: int
    steps: int
    guidance: float
    seed: int
    task: Task = "create"
    parent: str | None = None
    edit: Edit | None = None
    inputs: Inputs = Inputs()
    strength: float = 1.0
    out_width: int = 0  # 0: as rendered
    out_height: int = 0
    out_fps: int = 0


class Rendering(Protocol):
    """One job inside an engine, between two steps."""

    spec: RenderSpec
    done: int
    total: int

    @property
    def way(self) -> str:
        """Which path runs: "pipeline" is the pipeline's own call; others are ours, see adapters.job."""


class StepEngine(Protocol):
    """Blocking; called from one thread. A step is one forward for jobs of one shape, at whatever steps they are.

    `key`: jobs of equal keys may share a step. `tokens`: what a step of the job costs, for bounds and costs.
    """

    def load(self) -> None:
        """Raises CheckpointError."""

    def key(self, spec: RenderSpec) -> tuple[object, ...]: ...

    def tokens(self, spec: RenderSpec) -> int: ...

    def open(self, spec: RenderSpec, folder: Path, saved: bytes | None) -> Rendering:
        """`folder` has the job's inputs by name and `parent.safetensors`, the parent's kept latents, where it has one.

        With `saved` it goes on from there; a state that is not its own is refused with ValueError. Raises
        InvalidRequest where the model cannot do what is asked.
        """

    def step(self, renderings: Sequence[Rendering]) -> None:
        """One step of each. Whatever it raises, see cluster.faults; what is done of the jobs is then unknown."""

    def free(self) -> None:
        """Give memory back that is held for later use."""

    def save(self, rendering: Rendering) -> bytes: ...

    def kept(self, rendering: Rendering) -> bytes:
        """After the last step: what later edits begin from, as safetensors with the metadata layer."""

    def decode(self, rendering: Rendering) -> Iterator[Frames]:
        """After the last step: the delivered frames in order, a few at a time. Memory is bounded by one chunk."""
