"""The product as its user starts it: `moray up` in a process group of its own, and what can be seen of it outside."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import yaml
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

T = TypeVar("T")
START_S = 150.0
STOP_S = 30.0
QUIET_S = 120.0  # no answer of any test takes longer


def eventually(condition: Callable[[], T], timeout_s: float, what: str = "") -> T:
    """The first true value of the condition. Fails with the last value once timeout_s have passed."""
    pause, end_s = threading.Event(), time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < end_s, f"not within {timeout_s:g} s: {what or condition}: {value!r}"
        pause.wait(0.05)
    return value


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def temporary_folders(parent: Path) -> set[str]:
    return {folder.name for folder in parent.glob("moray-*")}


class Server:
    """`moray up` on a family file. Its temporary folders lie in `scratch`, its output in `scratch/output.txt`.

    `words`: more of the command line, behind `up`. `typed`: the whole of it for a shell instead, told in `scratch`.
    """

    def __init__(self, family: Path, port: int, scratch: Path, *words: str, typed: str = "") -> None:
        self.port = port
        self.family = family
        self.url = f"http://127.0.0.1:{port}"
        self.scratch = scratch
        self._output = scratch / "output.txt"
        self.started_s = time.monotonic()
        family_up = ("--family", str(family), "up", *words)
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                ["bash", "-c", typed] if typed else [sys.executable, "-m", "deployments.cli", *family_up],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                cwd=scratch if typed else None,
                env=os.environ | {"TMPDIR": str(scratch), "COLUMNS": "200"},
            )
        self._seen: dict[int, psutil.Process] = {}
        self._open = contextlib.ExitStack()

    @property
    def output(self) -> str:
        return self._output.read_text(encoding="utf-8", errors="replace")

    @property
    def key(self) -> str:
        found = re.search(r"API key \(shown once\): (sk-moray-\S+)", self.output)
        assert found, self.output
        return found[1]

    def ready(self) -> "Server":
        def shown() -> bool:
            assert self._process.poll() is None, f"exit code {self._process.returncode}:\n{self.output}"
            return "print(answer" in self.output

        eventually(shown, START_S, f"ready: {self._output}")
        assert temporary_folders(self.scratch), "the folder of the cluster lies elsewhere: nobody would miss it"
        return self

    def client(self, key: str | None = None) -> OpenAI:
        client = OpenAI(base_url=f"{self.url}/v1", api_key=key or self.key, max_retries=0, timeout=QUIET_S)
        self._open.callback(client.close)
        return client

    def http(self, key: str | None = None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key or self.key}"}
        return self._open.enter_context(httpx.Client(base_url=self.url, headers=headers, timeout=QUIET_S))

    def stranger(self) -> httpx.Client:
        """Somebody without a key."""
        return httpx.Client(base_url=self.url, timeout=QUIET_S)

    def moray(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another `moray` command on the same family file."""
        command = [sys.executable, "-m", "deployments.cli", "--family", str(self.family), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def edit(self, change: Callable[[dict[str, Any]], None]) -> None:
        """The family file, as an editor saves it: whole."""
        raw = yaml.safe_load(self.family.read_text(encoding="utf-8"))
        change(raw)
        edited = self.family.with_suffix(".new")
        edited.write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
        edited.replace(self.family)

    def samples(self, name: str, **labels: str) -> list[Any]:
        """The samples of that name on /metrics that carry these labels."""
        page = httpx.get(f"{self.url}/metrics", timeout=QUIET_S).raise_for_status().text
        families = text_string_to_metric_families(page)
        return [s for f in families for s in f.samples if s.name == name and labels.items() <= s.labels.items()]

    def metric(self, name: str, **labels: str) -> float:
        """Their sum."""
        return float(sum(sample.value for sample in self.samples(name, **labels)))

    def processes(self, title: str = "") -> list[psutil.Process]:
        """Live processes of this server whose command line begins with the title; all of them where it is empty."""
        found = []
        alive = self._process.poll() is None
        for process in psutil.Process(self._process.pid).children(recursive=True) if alive else ():
            self._seen[process.pid] = process
            try:
                if " ".join(process.cmdline()).startswith(title):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def replicas(self, tier: str) -> list[psutil.Process]:
        return self.processes(f"ray::ServeReplica:moray-{tier}:{tier}")

    def gateways(self) -> list[psutil.Process]:
        return self.processes("ray::ServeReplica:moray:gateway")

    def workers(self) -> list[psutil.Process]:
        """The processes of video replicas."""
        return self.processes("ray::VideoWorker")

    def control(self) -> list[psutil.Process]:
        return self.processes("ray::Control")

    def interrupt(self) -> None:
        """Ctrl-C, as a terminal sends it: to the whole process group."""
        self.processes()  # while the tree still hangs together
        os.killpg(self._process.pid, signal.SIGINT)

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def wait(self, timeout_s: float) -> int:
        """Its exit code, once it has ended."""
        return self._process.wait(timeout_s)

    def left_behind(self) -> list[str]:
        """What a stopped server should have taken with it."""
        _, alive = psutil.wait_procs(list(self._seen.values()), timeout=0)
        left = [f"process {p.pid} {' '.join(p.cmdline())}" for p in alive if p.status() != psutil.STATUS_ZOMBIE]
        left += [] if is_free(self.port) else [f"port {self.port}"]
        return left + [f"folder {name}" for name in temporary_folders(self.scratch)]

    def stop(self) -> None:
        """Ctrl-C; then everything that was started must be gone, in time."""
        try:
            assert self._process.poll() is None, f"exit code {self._process.returncode}:\n{self.output}"
            self.interrupt()
            assert self.wait(STOP_S) == 0, self.output
            assert self.left_behind() == []
            assert "Traceback" not in self.output, self.output
        finally:
            self.destroy()

    def destroy(self) -> None:
        """Nothing of a failed test may outlive it."""
        self._open.close()
        if self._process.poll() is None:
            self.processes()
        self._process.kill()
        self._process.wait()
        for process in self._seen.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
