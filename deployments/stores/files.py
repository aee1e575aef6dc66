"""Where the files of video jobs are: a folder or an object store behind one seam. Keys have slashes."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from cluster.family import Video
from cluster.orphans import Stored
from deployments.stores.local_files import LocalFiles
from deployments.stores.object_files import ObjectFiles

VIDEO, THUMBNAIL, SPRITESHEET = "video.mp4", "thumbnail.webp", "spritesheet.jpg"
MASTER, KEPT, STATE = "master.mkv", "kept.safetensors", "state"


class Files(Protocol):
    """A job's files are `<job id>/<name>`. A reader never meets half a file; what is put is durable on return.

    Any task of any event loop may call. Every call raises Unavailable where the store does not answer or has no room,
    and ValueError for a key that leads elsewhere. A file that is put while its job is deleted may stay: who puts looks
    whether the job is still there, and deletes again.
    """

    async def put(self, key: str, file: Path) -> None:
        """A copy of the file; what was there is replaced."""

    async def put_bytes(self, key: str, data: bytes) -> None: ...

    async def get(self, key: str, file: Path) -> None:
        """A copy in `file`. Raises NotFound; `file` is unfinished after a fault."""

    async def read(self, key: str) -> bytes | None:
        """All of it, for small files; None where there is none."""

    async def size(self, key: str) -> int | None:
        """In bytes; None where there is none."""

    def stream(self, key: str, start: int, end: int) -> AsyncIterator[bytes]:
        """Bytes [start, end), or to the end of the file, a few MiB at a time. Its first chunk raises NotFound."""

    def list(self) -> AsyncIterator[Stored]:
        """Every file that is there all the while; others may be among them."""

    async def delete(self, prefix: str) -> None:
        """The file, and all below it; what is not there is no fault. `video_1` is not above `video_10/a`."""


def files_of(video: Video, state_folder: Path) -> Files:
    """The store that the family names: a folder for file:///..., or an object store; else one in the state folder.

    Raises ConfigurationError for a URL that obstore cannot use.
    """
    return files_at(video.files, state_folder / "videos")


def files_at(url: str | None, folder: Path) -> Files:
    """As `files_of`; in `folder` where there is no URL."""
    if url is None:
        return LocalFiles(folder)
    scheme, _, shared = url.partition("://")
    return LocalFiles(Path(shared)) if scheme == "file" else ObjectFiles(url)
