"""Where somebody types what a document says: a clone of the project, its environment on the path, `make up` running."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from types import TracebackType

import pytest
from documents.defaults import ALERTMANAGER, GATEWAY, PROMETHEUS, UP, is_about_a_server, moved, spelt_out
from documents.fences import FOLDERS, ROOT
from integration.conftest import Stage
from integration.families import shipped
from integration.server import Server, free_port
from prometheus import PACKAGES, served

TRACES = ROOT.parent / "shared" / "traces"
PUBLIC = re.compile(r"(?:azure:azure2023|mooncake:mooncake|servegen:servegen)_")
MISSED = {**PACKAGES, "kubectl": "kubectl"}  # program: its package; a command is skipped without
PATIENCE_S = 120.0
KEPT = "set -a -o pipefail; . ./.variables; "  # variables last from command to command
KEEP = "\nstatus=$?; export -p > .variables; exit $status"


class Terminal:
    """Each document has one. What began in it is stopped with it, but for the server that tests share."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._server: Server | None = None
        # By program: who begins one anew has stopped it by Ctrl-C.
        self._begun: defaultdict[str, contextlib.ExitStack] = defaultdict(contextlib.ExitStack)
        self._ports = {PROMETHEUS: free_port(), ALERTMANAGER: free_port()}
        self._program = ""
        self.folder = Path(tempfile.mkdtemp(prefix="it-", dir="/tmp"))  # as short as the scratch of a server
        for name in FOLDERS:
            shutil.copytree(ROOT / name, self.folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        (self.folder / ".venv").symlink_to(sys.prefix)
        variables = {"PATH": f"{Path(sys.executable).parent}:$PATH", "COLUMNS": "200", "CURL_HOME": self.folder}
        (self.folder / ".variables").write_text("".join(f"export {name}={it}\n" for name, it in variables.items()))
        (self.folder / ".curlrc").write_text("fail-with-body\n")  # else a refusal looks like an answer
        for trace in TRACES.glob("*"):
            (self.folder / trace.name).symlink_to(trace)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with contextlib.ExitStack() as ended:
            ended.callback(shutil.rmtree, self.folder)
            for begun in self._begun.values():
                ended.push(begun)

    def save(self, name: str, text: str) -> None:
        """A file that the document shows."""
        (self.folder / name).write_text(self._here(text), encoding="utf-8")

    def program(self, text: str) -> None:
        """Python that goes on where the document's last left off."""
        self._program += text
        self.save("program.py", self._program)
        self.type("python program.py")

    def type(self, command: str, status: int = 0) -> None:
        """Until it has ended with that status; if it serves, until it is ready. Skips where something is missing."""
        self._need(command)
        if UP.match(command):
            self._up(command)
            return
        command = self._here(spelt_out(command))
        if command.startswith(("prometheus ", "prometheus-alertmanager ")):
            name, *words = shlex.split(command.removesuffix("&"), comments=True)
            self._begun[name].close()
            self._begun[name].enter_context(served(name, words, self.folder / f"{name}.log", self.folder))
        else:
            self._run(command, status)

    def _need(self, command: str) -> None:
        for program in set(MISSED) & set(command.split()):
            if shutil.which(program) is None:
                pytest.skip(f"{program} is missing: install the package {MISSED[program]}")
        if PUBLIC.search(command) and not TRACES.is_dir():
            pytest.skip(f"public traces do not ship: {TRACES} is missing")

    def _here(self, text: str) -> str:
        if not is_about_a_server(text):
            return text
        if self._server is None:
            self._server = self._stage.serve("laptop", shipped)
            (self.folder / ".moray").symlink_to(self._server.family.with_name("state"))
        return moved(text, self._server.key, {GATEWAY: self._server.port, **self._ports})

    def _up(self, command: str) -> None:
        """The document's own server, instead of what ran until now."""
        self._begun["moray up"].close()
        self._stage.clear()
        if (self.folder / ".moray").is_symlink():
            (self.folder / ".moray").unlink()
        port = free_port()
        typed = moved(spelt_out(command).removesuffix("&"), "", {GATEWAY: port})
        self._server = Server(self.folder, port, self.folder, typed=KEPT + typed)
        try:
            self._server.ready()
        except BaseException:
            self._server.destroy()
            raise
        self._begun["moray up"].callback(self._server.stop)

    def _run(self, command: str, status: int) -> None:
        with (self.folder / ".output").open("w+b") as output:
            typing = subprocess.Popen(
                ["bash", "-c", KEPT + command + KEEP],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                ended = typing.wait(PATIENCE_S)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(typing.pid, signal.SIGKILL)
                typing.wait()
            output.seek(0)
            assert ended == status, f"{command}\nexit status {ended}:\n{output.read().decode(errors='replace')[-4000:]}"
