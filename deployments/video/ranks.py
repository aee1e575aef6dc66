"""The ranks of a video replica: processes of it, each with a GPU of its bundle. The replica itself is rank 0.

Rank 0 runs jobs, schedulers and decoding; the others hold the transformers alone. The inputs of each forward on rank 0
go to them over pipes first, then all compute it at once, as deployments.video.adapters.shards says: over gloo on a CPU,
nccl on GPUs (never run on a GPU).

A rank that ends amid a forward shows at once over gloo, as a closed connection; over nccl after COLLECTIVE_TIMEOUT_S,
at which torch ends the process. Either way the replica is lost. When the replica ends, so do its ranks, at once.
"""

import io
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from cluster.errors import CheckpointError
from cluster.video import Acceleration

JOIN_TIMEOUT_S = 1800.0  # loading may take long, and not equally long on all ranks
COLLECTIVE_TIMEOUT_S = 120.0  # more than any forward takes: over nccl a collective waits from when it was queued
END_TIMEOUT_S = 10.0


class RankLost(Exception):
    """Another rank has ended, or a forward was left in its middle: nothing can be computed here any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a rank loads. `meeting`: a file where no group has met yet."""

    checkpoint: Path
    dtype: Literal["float32", "bfloat16"]
    device: str
    acceleration: Acceleration
    rank: int
    meeting: Path

    @property
    def ranks(self) -> int:
        return self.acceleration.context_parallel


class Ranks:
    """Rank 0's view of the others, from one thread. Their processes start at once, and load meanwhile."""

    def __init__(
        self, checkpoint: Path, dtype: Literal["float32", "bfloat16"], device: str, acceleration: Acceleration
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ranks-")
        given: dict[str, Any] = {"checkpoint": checkpoint, "dtype": dtype, "device": device}
        meeting = Path(self._folder.name) / "meeting"
        tasks = [
            Task(**given, acceleration=acceleration, rank=rank, meeting=meeting)
            for rank in range(acceleration.context_parallel)
        ]
        self._own = tasks[0]
        self._others = {task.rank: _started(task) for task in tasks[1:]}
        self._joined = False
        self._amid = False  # a forward was sent to the others and has not ended here

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(process.pid for process, _ in self._others.values())

    def lead(self, models: dict[str, Any]) -> None:
        """Once all have loaded: from now on these transformers are everybody's. Raises CheckpointError."""
        for rank, (_, pipe) in self._others.items():
            try:
                fault = pipe.recv() if pipe.poll(JOIN_TIMEOUT_S) else "it has not loaded in time"
            except (EOFError, OSError):
                fault = "it ended"
            if fault:
                raise CheckpointError(f"video rank {rank}: {fault}; all ranks must load; see the replica's log")
        self._send(b"")  # so that nobody waits for others to load within a collective's time
        _join(self._own)
        self._joined = True
        _share(models, self._own)
        for name, model in models.items():
            model.register_forward_pre_hook(self._sending(name), with_kwargs=True)
            model.register_forward_hook(self._ended)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Around forwards. Raises RankLost where the others can no longer be in step with this one."""
        try:
            if self._amid:
                raise RankLost("the ranks are out of step since an earlier forward failed")
            yield
        except Exception as error:
            if not self._amid:
                raise
            self._dismiss()
            codes = {rank: process.returncode for rank, (process, _) in self._others.items() if process.returncode}
            # Not from the error: memory that is out leaves the others amid a forward, and to free some mends nothing.
            raise RankLost(
                f"video ranks: exit codes by rank {codes}; {type(error).__name__}: {error}; all ranks are needed; the "
                "replica starts anew"
            ) from None

    def close(self) -> None:
        """The others end."""
        self._dismiss()
        if self._joined:
            import torch.distributed as dist

            self._joined = False
            with suppress(RuntimeError):  # of a broken group
                dist.destroy_process_group()
        self._folder.cleanup()

    def _sending(self, name: str) -> Any:
        import torch

        def send(_model: Any, args: Any, named: dict[str, Any]) -> None:
            file = io.BytesIO()
            torch.save((name, args, named), file)
            self._amid = True
            self._send(file.getbuffer())

        return send

    def _send(self, order: "bytes | memoryview") -> None:
        for rank, (_, pipe) in self._others.items():
            try:
                pipe.send_bytes(order)
            except OSError as error:
                raise RankLost(f"rank {rank} takes no orders: {error}") from error

    def _ended(self, *_: Any) -> None:
        self._amid = False

    def _dismiss(self) -> None:
        for process, pipe in self._others.values():
            pipe.close()
            try:
                process.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _started(task: Task) -> "tuple[subprocess.Popen[bytes], Connection[Any, Any]]":
    ours, theirs = Pipe()
    with theirs:
        handle = theirs.fileno()
        process = subprocess.Popen([sys.executable, "-m", __name__, str(handle)], pass_fds=[handle])
    ours.send(task)
    return process, ours


def _join(task: Task) -> None:
    import torch.distributed as dist

    dist.init_process_group(
        "gloo" if task.device == "cpu" else "nccl",
        init_method=f"file://{task.meeting}",
        rank=task.rank,
        world_size=task.ranks,
        timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S),
    )


def _share(models: dict[str, Any], task: Task) -> None:
    from deployments.video.adapters.shards import Shard, share

    for model in models.values():
        share(model, Shard(task.rank, task.ranks))


def follow(pipe: "Connection[Any, Any]") -> None:
    """Serve as one of the ranks 1 .. ranks - 1 until rank 0 closes the pipe, which ends this process."""
    task: Task = pipe.recv()
    orders: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, orders), daemon=True).start()
    import torch

    from deployments.video.adapters.load import load_transformers

    device = task.device
    if device != "cpu":
        device = f"{device}:{task.rank}"
        torch.cuda.set_device(task.rank)
    try:
        models = load_transformers(task.checkpoint, task.dtype, device, task.acceleration)
        _share(models, task)
    except Exception as error:  # rank 0 says it
        pipe.send(f"{type(error).__name__}: {error}")
        raise
    pipe.send("")
    orders.get()
    _join(task)
    with torch.no_grad():
        while True:
            name, args, named = torch.load(io.BytesIO(orders.get()), map_location=device, weights_only=True)
            models[name](*args, **named)


def _listen(pipe: "Connection[Any, Any]", orders: "queue.SimpleQueue[bytes]") -> None:
    """A rank that waits for a collective that never comes must end with its replica, too."""
    try:
        while True:
            orders.put(pipe.recv_bytes())
    except (EOFError, OSError):
        os._exit(0)


if __name__ == "__main__":
    follow(Connection(int(sys.argv[1])))
