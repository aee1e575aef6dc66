"""Where the files of video jobs are: a local folder or an object store behind one seam (obstore). Keys have slashes."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

VIDEO, THUMBNAIL, SPRITESHEET = "video.mp4", "thumbnail.webp", "spritesheet.jpg"
MASTER, KEPT, STATE = "master.mkv", "kept.safetensors", "state"


class Files(Protocol):
    """A job's files are `<job id>/<name>`. A reader never meets half a file."""

    async def put(self, key: str, file: Path) -> None: ...

    async def put_bytes(self, key: str, data: bytes) -> None: ...

    async def get(self, key: str, file: Path) -> None:
        """Raises NotFound."""

    async def read(self, key: str) -> bytes | None: ...

    async def size(self, key: str) -> int | None: ...

    def stream(self, key: str, start: int, end: int) -> AsyncIterator[bytes]:
        """Bytes [start, end)."""

    async def delete(self, prefix: str) -> None:
        """All below it; what is not there is no fault."""
