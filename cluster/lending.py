"""Which video replicas make room for expert groups, and where new ones start."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """One node. `free_gpus`: that nobody holds now. `cell`: the cell that it belongs to."""

    node: str
    cell: str
    gpus: int
    free_gpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerHeld:
    """A video replica. `lost_gpu_s`: work since its last saved step that is lost when it stops now; 0 when idle."""

    worker_id: str
    node: str
    gpus: int
    leaving: bool
    idle: bool
    lost_gpu_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Awaiting:
    """An expert group that waits for GPUs: `ranks` on one node of `cells` (of several nodes where none is so large)."""

    tier: str
    ranks: int
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """Nodes on which a video replica starts (once per replica), workers that stop at their next step, and why."""

    start: tuple[str, ...] = ()
    vacate: tuple[str, ...] = ()
    reason: str = ""
