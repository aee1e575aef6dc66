"""A network that can be told to fail: it stands between a client and a server, on a port of its own."""

import contextlib
import socket
import threading
from socketserver import BaseRequestHandler, ThreadingTCPServer
from types import TracebackType
from typing import Any, Literal, Self

Mode = Literal["pass", "refuse", "hang", "garbage"]
NOISE = b"\x00\xff\x16\x03 nothing that is known\r\n\r\n"  # not even HTTP
PAGE = b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\nConnection: close\r\n\r\n<html>sign in</html>"  # not what was asked
CHUNK_BYTES = 65536


class Flaky:
    """Passes bytes both ways to host:port until told otherwise."""

    def __init__(self, host: str, port: int) -> None:
        self._far = (host, port)
        self._server: _Server | None = None
        self._port = 0

    def __enter__(self) -> Self:
        self.be("pass")
        return self

    def __exit__(self, kind: type[BaseException] | None, it: BaseException | None, at: TracebackType | None) -> None:
        self.be("refuse")

    @property
    def address(self) -> str:
        """host:port, the same in all modes."""
        return f"127.0.0.1:{self._port}"

    def be(self, mode: Mode, answer: bytes = NOISE) -> None:
        """From now on, for new connections; those that are open are cut. `answer`: what garbage is."""
        if self._server is not None:
            self._server.end()
            self._server = None
        if mode != "refuse":
            self._server = _Server(self._port, mode, answer, self._far)
            self._port = int(self._server.server_address[1])


class _Server(ThreadingTCPServer):
    allow_reuse_address = True

    def __init__(self, port: int, mode: Mode, answer: bytes, far: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", port), BaseRequestHandler)
        self._mode, self._answer, self._far = mode, answer, far
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), name="flaky")
        self._thread.start()

    def end(self) -> None:
        """Returns when no thread and no connection is left."""
        self.shutdown()
        self._thread.join()
        for client in list(self._open):
            _cut(client)
        self.server_close()  # waits for the threads of the clients

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def finish_request(self, request: Any, client_address: Any) -> None:
        with contextlib.suppress(OSError):  # either side may go; the other one then sees it
            if self._mode == "pass":
                self._passed(request)
                return
            while request.recv(CHUNK_BYTES):  # one that hangs, until the client gives up
                if self._mode == "garbage":
                    request.sendall(self._answer)
                    return

    def _passed(self, client: socket.socket) -> None:
        with socket.create_connection(self._far) as server:
            back = threading.Thread(target=_pumped, args=(server, client))
            back.start()
            _pumped(client, server)
            back.join()


def _pumped(source: socket.socket, sink: socket.socket) -> None:
    """Where one side ends, both do."""
    with contextlib.suppress(OSError):
        while chunk := source.recv(CHUNK_BYTES):
            sink.sendall(chunk)
    _cut(source)
    _cut(sink)


def _cut(side: socket.socket) -> None:
    with contextlib.suppress(OSError):
        side.shutdown(socket.SHUT_RDWR)
