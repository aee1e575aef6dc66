"""A real Redis for tests, of the Debian package `redis-server`: in a folder of its own, on a port of its own.

Where the package is missing the test is skipped and says so. Its data lie in an append-only file, or nowhere.
"""

import contextlib
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from integration.server import eventually, free_port

START_S = 30.0
STOP_S = 30.0


def program() -> str:
    """Skips the test where it is missing."""
    path = shutil.which("redis-server")
    if path is None:
        pytest.skip("redis-server is missing: install the Debian package redis-server")
    return path


class Server:
    """`words`: options beside those below, such as `--appendonly yes`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *words: str) -> None:
        """Returns when it answers."""
        plain = ["--port", f"{self.port}", "--bind", "127.0.0.1", "--dir", f"{self.folder}", "--save", ""]
        bound = shutil.which("setpriv")  # of util-linux: a killed test run takes the server along
        command = [*((bound, "--pdeathsig", "KILL") if bound else ()), program(), *plain, *words]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        eventually(self._ready, START_S, "Redis is ready")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        assert self._process is not None
        self._process.send_signal(how)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise

    def pause(self) -> None:
        """It takes connections, and answers nobody."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def run(self, *words: Any) -> Any:
        with redis.Redis.from_url(self.url) as client:
            return client.execute_command(*words)

    def cut(self) -> None:
        """Ends every connection but that which asks for it."""
        self.run("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def _ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log").read_text()
        try:
            self.run("PING")
        except redis.AuthenticationError:
            return True
        except redis.ConnectionError:
            return False
        return True


@contextlib.contextmanager
def redis_server(*words: str) -> Iterator[Server]:
    """A server that answers."""
    program()
    with tempfile.TemporaryDirectory(prefix="moray-redis-", dir="/tmp") as name:
        server = Server(Path(name))
        server.start(*words)
        try:
            yield server
        finally:
            server.stop()
