"""Folders that live as long as what is done in them. What a killed process left is removed by the next one.

Each is locked (flock) by its process: the kernel lets go of it however the process ends. A folder may hold gigabytes,
so it is removed in a thread.
"""

import asyncio
import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

PREFIX = "moray-video-"


@contextlib.asynccontextmanager
async def scratch(parent: Path) -> AsyncIterator[Path]:
    """An empty folder below `parent`. Raises OSError."""
    folder, lock = await asyncio.to_thread(_made, parent)
    try:
        yield folder
    finally:
        await asyncio.to_thread(_removed, folder, lock)


def sweep(parent: Path) -> None:
    """Remove the folders below `parent` whose process is gone."""
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # it is removed by another at this moment, or belongs to another user
            lock = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(lock)


def _made(parent: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():  # it may have been swept before it was locked
            return folder, lock
        os.close(lock)


def _removed(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)
