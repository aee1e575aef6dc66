"""A way to PostgreSQL that can be told to lose things: it stands before the server, on a socket of its own."""

import contextlib
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

CHUNK_BYTES = 65536


class Lossy:
    """Passes bytes both ways between `at`/.s.PGSQL.5432 and the server's socket until told otherwise.

    `lose`: the answer to the next statement that has these bytes is not passed on; who asked is cut off, once the
    server has answered, and so has done it. With `then_gone` nobody is let in afterwards. `deaf`: nothing is passed on.
    """

    def __init__(self, at: Path, server: Path) -> None:
        self.path, self._server = at / ".s.PGSQL.5432", server
        self.lose: bytes | None = None
        self.then_gone = self.deaf = False
        self.lost = 0
        self._open: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, it: BaseException | None, at: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        for side in self._open:
            _cut(side)
        self._listener.close()

    def _accept(self) -> None:
        threads: list[threading.Thread] = []
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.then_gone and self.lost:
                    client.close()
                    continue
                server = socket.socket(socket.AF_UNIX)
                server.connect(str(self._server))
                self._open += [client, server]
                threads.append(threading.Thread(target=self._serve, args=(client, server)))
                threads[-1].start()
        for side in self._open:
            _cut(side)
        for thread in threads:
            thread.join()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        losing = threading.Event()
        back = threading.Thread(target=self._back, args=(server, client, losing))
        back.start()
        with contextlib.suppress(OSError):
            while chunk := client.recv(CHUNK_BYTES):
                if self.lose is not None and self.lose in chunk:
                    self.lose = None
                    losing.set()
                if not self.deaf:
                    server.sendall(chunk)
        _cut(server)
        back.join()
        client.close()
        server.close()

    def _back(self, server: socket.socket, client: socket.socket, losing: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while chunk := server.recv(CHUNK_BYTES):
                if losing.is_set():
                    self.lost += 1
                    break
                client.sendall(chunk)
        _cut(client)


def _cut(side: socket.socket) -> None:
    with contextlib.suppress(OSError):
        side.shutdown(socket.SHUT_RDWR)
