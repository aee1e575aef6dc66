"""Where weights lie on NVMe: a folder that goes with its process, however that ends."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deepspeed.git_version_info import installed_ops

from cluster.errors import CheckpointError

PREFIX = "moray-weights-"


def check_nvme(folder: str | None) -> None:
    """Raises CheckpointError where nothing can be offloaded to the folder."""
    if not installed_ops.get("async_io"):
        raise CheckpointError(
            "offload.to: 'nvme'; DeepSpeed was installed without its async_io op, cpu is allowed; install libaio-dev, "
            "then DeepSpeed anew with DS_BUILD_AIO=1, or offload to cpu"
        )
    if folder is None or not Path(folder).is_dir():
        raise CheckpointError(f"offload.folder: {folder}; a directory on NVMe is allowed; make it")


@contextmanager
def own_folder(parent: Path) -> Iterator[Path]:
    """A new folder there. Those of processes that were killed are removed first: they would fill the disk."""
    with _locked(parent):  # nobody may take a folder for a dead process' that is not locked yet
        for left in parent.glob(f"{PREFIX}*"):
            try:
                with _locked(left, fcntl.LOCK_NB):
                    shutil.rmtree(left, ignore_errors=True)
            except BlockingIOError:
                continue  # of another replica
        own = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = os.open(own, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)
        os.close(lock)


@contextmanager
def _locked(folder: Path, how: int = 0) -> Iterator[None]:
    """While its process lives, at most. Raises BlockingIOError where it is told not to wait."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | how)
        yield
    finally:
        os.close(lock)
