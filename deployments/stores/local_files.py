"""The files of video jobs in a folder, which may be one that all nodes share.

A file is written beside its place, flushed to disk and renamed, so it is whole or not there, after a crash as well.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from cluster.errors import NotFound, Unavailable
from cluster.orphans import Stored

log = logging.getLogger("ray.serve")
CHUNK_BYTES = 1024 * 1024


class LocalFiles:
    def __init__(self, folder: Path) -> None:
        """`folder` is made when the first file is put."""
        self._folder = folder.resolve()  # workers have working directories of their own

    async def put(self, key: str, file: Path) -> None:
        await asyncio.to_thread(self._write, key, lambda place: shutil.copyfile(file, place))

    async def put_bytes(self, key: str, data: bytes) -> None:
        await asyncio.to_thread(self._write, key, lambda place: place.write_bytes(data))

    async def get(self, key: str, file: Path) -> None:
        with _told(key):
            await asyncio.to_thread(shutil.copyfile, self._path(key), file)

    async def read(self, key: str) -> bytes | None:
        with contextlib.suppress(NotFound), _told(key):
            return await asyncio.to_thread(self._path(key).read_bytes)
        return None

    async def size(self, key: str) -> int | None:
        with contextlib.suppress(NotFound), _told(key):
            path = self._path(key)
            found = await asyncio.to_thread(path.stat)
            return found.st_size if stat.S_ISREG(found.st_mode) else None
        return None

    async def stream(self, key: str, start: int, end: int) -> AsyncIterator[bytes]:
        with _told(key):
            file = await asyncio.to_thread(_opened, self._path(key), start)
            with file:  # a file that is deleted now is still read to its end
                while chunk := await asyncio.to_thread(file.read, max(0, min(CHUNK_BYTES, end - start))):
                    yield chunk
                    start += len(chunk)

    async def list(self) -> AsyncIterator[Stored]:
        with _told("the folder"):
            for found in await asyncio.to_thread(_listed, self._folder):
                yield found

    async def delete(self, prefix: str) -> None:
        with _told(prefix):
            await asyncio.to_thread(_remove, self._path(prefix))

    def _write(self, key: str, write: Callable[[Path], object]) -> None:
        place = self._path(key)
        partial = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
        with _told(key):
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                write(partial)
                _flush(partial)
                partial.replace(place)
                _flush(place.parent)
            finally:
                partial.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._folder.joinpath(*parts(key))


def parts(key: str) -> list[str]:
    """Its names. Raises ValueError for a key that leads elsewhere or is nobody's: `..`, an empty or a hidden name."""
    names = key.split("/")
    if any(not name or name.startswith(".") or "\0" in name for name in names):
        raise ValueError(f"key: given {key!r}; names with slashes between are allowed, none empty or with a dot before")
    return names


@contextlib.contextmanager
def _told(key: str) -> Iterator[None]:
    """Faults of the disk as ours."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise NotFound(f"files: {key} is not there; what was put is; ask for another", code="file_not_found") from error
    except OSError as error:
        log.warning("%s: %s", key, error)
        raise Unavailable(
            f"files: {key}: {error.strerror}; a disk that has room and may be written is allowed; try again soon"
        ) from error


def _listed(folder: Path) -> tuple[Stored, ...]:
    """Without what is just written or deleted, whose names are hidden."""
    found = []
    for at, folders, names in os.walk(folder):
        folders[:] = [each for each in folders if not each.startswith(".")]
        for path in (Path(at, name) for name in names if not name.startswith(".")):
            with contextlib.suppress(FileNotFoundError):
                found.append(Stored(key=path.relative_to(folder).as_posix(), written_s=path.stat().st_mtime))
    return tuple(found)


def _opened(path: Path, start: int) -> BinaryIO:
    file = path.open("rb")
    file.seek(start)
    return file


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Its name goes first: who is just putting a file below it finds no place for it, and no reader meets a part."""
    nameless = path.with_name(f".{path.name}.{secrets.token_hex(4)}.deleted")
    with contextlib.suppress(FileNotFoundError):
        path.rename(nameless)
        if nameless.is_dir():
            shutil.rmtree(nameless)
        else:
            nameless.unlink()
