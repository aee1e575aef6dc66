"""A client's media are read in a process of their own, which may crash, run out of its memory or of its time.

libav and Pillow decode in C whatever they are sent, so their faults end that process and no other, and the kernel
bounds it. A server that has both loaded forks such a process for each file, over a socket on which bytes go in and one
line of JSON comes out, beside a file. The server begins with the first that is read, once more where it has ended, and
ends with the process that began it. A fork costs some ms, the server's start a second.
"""

import atexit
import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any, Literal, TypeVar

from cluster.errors import InvalidRequest
from deployments.inputs.look import Look
from deployments.video.fit import Clip, refused

MOST_BYTES = 3 << 30  # of memory, writable and private
MOST_CPU_S = 300
MOST_WALL_S = 600
BEGUN = b"\n"  # the first word of a process: who ends without another met a bound
Kind = Literal["video", "sound", "image", "mask", "seen", "heard", "clip", "document"]
LOOK_CPU_S = 30  # of what a chat waits for


def run(kind: Kind, data: bytes, fit: Clip | Look, out: Path, param: str) -> int:
    """What its reader says of it. Blocking. Raises InvalidRequest; OSError where the disk says no."""
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".reading-") as folder:
        made = Path(folder) / out.name
        cpu_s = LOOK_CPU_S if isinstance(fit, Look) else MOST_CPU_S
        asked = {"kind": kind, "fit": asdict(fit), "out": str(made), "param": param, "cpu_s": cpu_s}
        heard = _asked(json.dumps(asked).encode() + b"\n", data)
        if heard == BEGUN:
            raise _too_much(param, cpu_s)
        if not heard:
            raise OSError(f"{kind}: its reader did not begin")
        return _told(json.loads(heard), made, out, param)


def _asked(head: bytes, data: bytes) -> bytes:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            SERVER.fork(theirs)
        ours.settimeout(MOST_WALL_S + 1)
        with contextlib.suppress(BrokenPipeError):  # it has ended already; what it said is still to be heard
            ours.sendall(head)
            ours.sendall(data)
            ours.shutdown(socket.SHUT_WR)
        heard = b""
        with contextlib.suppress(ConnectionResetError, TimeoutError):  # it has not read all of it
            while said := ours.recv(65_536):
                heard += said
        return heard


def _told(answer: dict[str, int | str], made: Path, out: Path, param: str) -> int:
    match answer:
        case {"refused": str(message)}:
            raise InvalidRequest(message, param=param)
        case {"errno": int(number), "error": str(text)}:
            raise OSError(number, text)
        case {"failed": str(text)}:
            raise OSError(f"{param}: its reader failed: {text}")
        case {"made": int(value)}:
            made.replace(out)
            return value
    raise AssertionError(answer)


def _too_much(param: str, cpu_s: int) -> InvalidRequest:
    allowed = f"{cpu_s} s and {MOST_BYTES >> 30} GiB are allowed"
    return refused(param, "takes too much time or memory to read", allowed, "send a smaller one")


Reader = Callable[[bytes, dict[str, Any], Path, str], int]
_F = TypeVar("_F", Clip, Look)


class Server:
    """One is enough for a process, `SERVER`."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._lock = Lock()

    def fork(self, client: socket.socket) -> None:
        """A process on the other end of `client`."""
        with self._lock:
            if self._control is None or self.process is None or self.process.poll() is not None:
                self._end()
                self._control, theirs = socket.socketpair()
                with theirs:
                    command = [sys.executable, "-m", __name__]
                    self.process = subprocess.Popen(command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL)
            socket.send_fds(self._control, [b"."], [client.fileno()])

    def end(self) -> None:
        """Another begins with the next that is read."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._control is not None and self.process is not None:
            self._control.close()
            self.process.wait()
        self._control = self.process = None


SERVER = Server()
atexit.register(SERVER.end)


def serve(control: socket.socket) -> None:
    """Until who began it has ended."""
    readers = _readers()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who began it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    while True:
        word, given, _, _ = socket.recv_fds(control, 1, 1)
        if not word:
            return
        with socket.socket(fileno=given[0]) as client, contextlib.suppress(OSError):
            if os.fork() == 0:
                try:
                    control.close()
                    _answer(client, readers)
                finally:
                    os._exit(0)


def _readers() -> Mapping[str, Reader]:
    import pypdfium2  # noqa: F401 - once, not in each process

    from deployments.inputs import documents, pictures, sounds
    from deployments.video import demux, raster

    fitted: dict[str, Callable[[bytes, Clip, Path, str], int]] = {
        "video": demux.video,
        "sound": demux.sound,
        "image": raster.image,
        "mask": raster.mask,
    }
    looked: dict[str, Callable[[bytes, Look, Path, str], int]] = {
        "seen": pictures.image,
        "heard": sounds.sound,
        "clip": sounds.clip,
        "document": documents.document,
    }
    return {name: _with(Clip, read) for name, read in fitted.items()} | {
        name: _with(Look, read) for name, read in looked.items()
    }


def _with(kind: type[_F], read: Callable[[bytes, _F, Path, str], int]) -> Reader:
    return lambda data, fit, out, param: read(data, kind(**fit), out, param)


def _bound(cpu_s: int) -> None:
    signal.alarm(2 * cpu_s)
    for bound, most in (
        (resource.RLIMIT_DATA, MOST_BYTES),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(bound)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(bound, (most, most))


def _answer(client: socket.socket, readers: Mapping[str, Reader]) -> None:
    client.sendall(BEGUN)
    with client.makefile("rb") as given:
        asked = json.loads(given.readline())
        param, cpu_s = asked["param"], asked["cpu_s"]
        _bound(cpu_s)
        answer: dict[str, int | str]
        try:
            made = readers[asked["kind"]](given.read(), asked["fit"], Path(asked["out"]), param)
            answer = {"made": made}
        except MemoryError:
            answer = {"refused": _too_much(param, cpu_s).message}
        except InvalidRequest as error:
            answer = {"refused": error.message}
        except OSError as error:
            answer = {"errno": error.errno or 0, "error": str(error.strerror or error)}
        except Exception as error:
            answer = {"failed": repr(error)[:500]}
    client.sendall(json.dumps(answer).encode())


if __name__ == "__main__":
    serve(socket.socket(fileno=os.dup(sys.stdin.fileno())))
