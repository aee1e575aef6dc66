"""The files of video jobs in an object store: S3 and what speaks like it, Google Cloud Storage, Azure (obstore).

Credentials are those of the machine, as obstore finds them: a role of the instance or the pod, or the provider's own
variables. Uploads of more than a part are in parts; a rule of the bucket should delete parts of uploads that were cut
off. Tested on obstore's stores in memory and in a folder; never run on a real S3.
"""

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import ObjectStore, from_url

from cluster.errors import ConfigurationError, NotFound, Unavailable
from cluster.orphans import Stored
from deployments.stores.local_files import parts

if TYPE_CHECKING:
    from obstore import GetOptions

log = logging.getLogger("ray.serve")
CHUNK_BYTES = 4 * 1024 * 1024


class ObjectFiles:
    def __init__(self, url: str) -> None:
        """A bucket and a prefix, such as s3://bucket/prefix. Raises ConfigurationError; asks nothing of the store."""
        try:
            self._store: ObjectStore = from_url(url)
        except (BaseError, ValueError) as error:
            why = str(error).partition("\n")[0]
            raise ConfigurationError(
                f"video.files: {url}: {why}; an object store such as s3://bucket/prefix is allowed; mend the URL"
            ) from error

    async def put(self, key: str, file: Path) -> None:
        with _told(key):
            await obstore.put_async(self._store, _checked(key), file)

    async def put_bytes(self, key: str, data: bytes) -> None:
        with _told(key):
            await obstore.put_async(self._store, _checked(key), data)

    async def get(self, key: str, file: Path) -> None:
        with _told(key), file.open("wb") as out:
            async for chunk in self.stream(key, 0, sys.maxsize):
                await asyncio.to_thread(out.write, chunk)

    async def read(self, key: str) -> bytes | None:
        with contextlib.suppress(NotFound), _told(key):
            found = await obstore.get_async(self._store, _checked(key))
            return bytes(await found.bytes_async())
        return None

    async def size(self, key: str) -> int | None:
        with contextlib.suppress(NotFound), _told(key):
            return (await obstore.head_async(self._store, _checked(key)))["size"]
        return None

    async def stream(self, key: str, start: int, end: int) -> AsyncIterator[bytes]:
        """A request for each chunk, so that a slow reader holds no connection until it times out."""
        with _told(key):
            found = await obstore.head_async(self._store, _checked(key))
            for begin in range(start, end := min(end, found["size"]), CHUNK_BYTES):
                part = (begin, min(begin + CHUNK_BYTES, end))
                same: GetOptions = {"range": part, "if_match": found["e_tag"]}
                got = await obstore.get_async(self._store, key, options=same)
                yield bytes(await got.bytes_async())

    async def list(self) -> AsyncIterator[Stored]:
        with _told("the store"):
            async for page in obstore.list(self._store):
                for found in page:
                    yield Stored(key=found["path"], written_s=found["last_modified"].timestamp())

    async def delete(self, prefix: str) -> None:
        with _told(prefix):
            keys = [found["path"] for found in await obstore.list(self._store, _checked(prefix)).collect_async()]
            if await self.size(prefix) is not None:
                keys.append(prefix)
            for key in keys:
                with contextlib.suppress(NotFoundError):  # another deletes it too; of many one would hide the others
                    await obstore.delete_async(self._store, key)


def _checked(key: str) -> str:
    return "/".join(parts(key))


@contextlib.contextmanager
def _told(key: str) -> Iterator[None]:
    """Faults of the store as ours."""
    try:
        yield
    except (NotFoundError, FileNotFoundError) as error:
        raise NotFound(f"files: {key} is not there; what was put is; ask for another", code="file_not_found") from error
    except (BaseError, OSError) as error:
        log.warning("%s: %s", key, str(error).partition("\n")[0])
        raise Unavailable(
            f"files: {key}: the store does not answer as it should; one that may be written is allowed; try again soon"
        ) from error
