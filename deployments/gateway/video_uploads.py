"""Bodies of requests that are here, in memory or on disk, until they are answered: bounded together, in bytes.

What any request may have, `gateway.max_body_bytes`, is not counted, so that uploads hold up no request without files.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import Request
from starlette.types import Message

from cluster.errors import Overloaded
from deployments.gateway.asgi import header

RETRY_AFTER_S = 5.0


class Uploads:
    """Of one gateway, on one event loop."""

    def __init__(self) -> None:
        self._bytes = 0

    @contextmanager
    def counted(self, request: Request, *, free: int, most: int, together: int) -> Iterator[Request]:
        """The request, whose bytes beyond `free` count until the end of the block: those that it declares at once,

        others as they come. One has `most`, all have `together`; reading more of it raises Overloaded.
        """
        declared = header(request.scope, b"content-length")
        mine = came = 0

        def grow(size: int) -> None:
            nonlocal mine
            more = min(max(0, size - free), most) - mine
            if more > 0 and self._bytes + more > together:
                raise Overloaded(
                    f"videos: files of {self._bytes} bytes are being sent; at most {together} may be at once; try "
                    "again when some have come",
                    retry_after_s=RETRY_AFTER_S,
                )
            if more > 0:
                mine += more
                self._bytes += more

        async def receive() -> Message:
            nonlocal came
            message = await request.receive()
            came += len(message.get("body", b""))
            grow(came)
            return message

        try:
            grow(int(declared) if declared.isdigit() else 0)
            yield Request(request.scope, receive)
        finally:
            self._bytes -= mine
