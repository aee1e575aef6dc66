"""A real PostgreSQL for tests, of the Debian package `postgresql`: in a folder of its own, on a unix socket alone.

Where the package is missing the test is skipped and says so. PostgreSQL refuses to run as root, so root's tests run it
as another user. Its password is in the file that PGPASSFILE names meanwhile, and nowhere else.
"""

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from integration.server import eventually, free_port

START_S = 60.0
STOP_S = 30.0
PASSWORD = "in the file alone"


def program(name: str) -> str:
    """Debian has a folder of programs per version, on no PATH. Skips the test where it is missing."""
    folders = [str(folder) for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    path = shutil.which(name, path=os.pathsep.join([*folders, os.environ["PATH"]]))
    if path is None:
        pytest.skip(f"{name} is missing: install the Debian package postgresql")
    return path


class Server:
    """`folder`: of the data, the socket and the log; it is its user's."""

    def __init__(self, folder: Path, user: dict[str, Any]) -> None:
        self.folder = folder
        self._user = user
        self._port = free_port()  # names the socket, where several share a folder
        self._schemas = itertools.count()
        password = folder / "initial"
        password.write_text(PASSWORD)
        initdb = [program("initdb"), f"--pgdata={folder / 'data'}", "--username=moray", f"--pwfile={password}"]
        words = ["--auth=scram-sha-256", "--no-sync", "--encoding=UTF8", "--locale=C"]
        subprocess.run([*initdb, *words], check=True, stdout=subprocess.DEVNULL, **user)

    def start(self) -> None:
        """Returns when it answers."""
        words = [program("postgres"), "-D", f"{self.folder / 'data'}", "-k", f"{self.folder}", "-p", f"{self._port}"]
        bound = shutil.which("setpriv")  # of util-linux: a killed test run takes the server along
        command = [*((bound, "--pdeathsig", "KILL") if bound else ()), *words, "-h", "", "-c", "fsync=off"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.folder, **self._user
            )
        eventually(self._ready, START_S, "PostgreSQL is ready")

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGQUIT ends it as a crash would: the next start recovers."""
        self._process.send_signal(how)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise

    def url(self, schema: str = "public") -> str:
        return f"postgresql://moray@/postgres?host={self.folder}&port={self._port}&options=-csearch_path%3D{schema}"

    @property
    def socket(self) -> Path:
        return self.folder / f".s.PGSQL.{self._port}"

    def fresh(self) -> str:
        """The URL of a schema of its own, with nothing in it."""
        schema = f"test_{next(self._schemas)}"
        self.run(f"CREATE SCHEMA {schema}")
        return self.url(schema)

    def run(self, statement: str) -> None:
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(statement)

    def cut(self) -> None:
        """Ends every connection but that which asks for it."""
        self.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")

    def _ready(self) -> bool:
        assert self._process.poll() is None, (self.folder / "log").read_text()
        try:
            self.run("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True


@contextlib.contextmanager
def postgres() -> Iterator[Server]:
    """A server that answers."""
    program("initdb")
    user: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="moray-pg-", dir="/tmp") as name:  # a socket's path is short
        folder = Path(name)
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        with pytest.MonkeyPatch.context() as patch:
            passwords = folder / "pgpass"
            passwords.write_text(f"*:*:*:*:{PASSWORD}\n")
            passwords.chmod(0o600)
            patch.setenv("PGPASSFILE", str(passwords))
            server = Server(folder, user)
            server.start()
            try:
                yield server
            finally:
                server.stop()
