"""The real Prometheus and Alertmanager, for tests: the Debian packages `prometheus` and `prometheus-alertmanager`.

Each server has a folder and a port of its own. Where a package is missing the test is skipped and says so; `make test`
installs it where it may.
"""

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from integration.server import eventually

START_S = 60.0
STOP_S = 30.0
PACKAGES = {
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "amtool": "prometheus-alertmanager",
}
LISTENS = re.compile(r'msg="Listening on" address=(\S+)')


def program(name: str) -> str:
    """The path of one of PACKAGES. Skips the test where it is missing."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is missing: install the Debian package {PACKAGES[name]}")
    return path


def promtool(*arguments: str | Path) -> str:
    return _printed("promtool", *arguments)


def amtool(*arguments: str | Path) -> str:
    return _printed("amtool", *arguments)


def _printed(name: str, *arguments: str | Path) -> str:
    """Fails where it does not exit with 0."""
    ran = subprocess.run([program(name), *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@contextlib.contextmanager
def prometheus(
    folder: Path,
    static_configs: Sequence[Mapping[str, Any]],
    *,
    scrape_interval: str = "1s",
    rules: Sequence[Path] = (),
    port: int = 0,
) -> Iterator[str]:
    """The URL of a server that is ready. `static_configs` as Prometheus knows them: {"targets": ["host:port"],

    "labels": {...}}, all of job `moray`. A second start in the same folder, with the port of the first, continues it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "prometheus.yml"
    file.write_text(
        yaml.safe_dump(
            {
                "global": {"scrape_interval": scrape_interval, "evaluation_interval": scrape_interval},
                "rule_files": [str(rule.resolve()) for rule in rules],
                "scrape_configs": [{"job_name": "moray", "static_configs": [dict(one) for one in static_configs]}],
            }
        )
    )
    with prometheus_of(file, folder / "data", port) as url:
        yield url


@contextlib.contextmanager
def prometheus_of(file: Path, data: Path, port: int = 0) -> Iterator[str]:
    """The same, of a prometheus.yml."""
    words = [f"--config.file={file}", f"--storage.tsdb.path={data}", f"--web.listen-address=127.0.0.1:{port}"]
    with served("prometheus", words, file.with_name("prometheus.log")) as url:
        yield url


@contextlib.contextmanager
def alertmanager_of(file: Path, data: Path, port: int = 0) -> Iterator[str]:
    """The URL of an Alertmanager that is ready, alone, on an alertmanager.yml."""
    words = [
        f"--config.file={file}",
        f"--storage.path={data}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]
    with served("prometheus-alertmanager", words, file.with_name("alertmanager.log")) as url:
        yield url


@contextlib.contextmanager
def served(name: str, words: Sequence[str], log: Path, folder: Path | None = None) -> Iterator[str]:
    """The URL of one of the two, which is ready. `folder`: where its words are told, if not here."""
    bound = shutil.which("setpriv")  # of util-linux: a killed test run takes the server along
    command = [*((bound, "--pdeathsig", "KILL") if bound else ()), program(name), *words]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=folder
        )
    try:
        yield eventually(lambda: _ready(name, process, log), START_S, f"{name} is ready")
    finally:
        _stop(process)


def query(url: str, expression: str) -> list[dict[str, Any]]:
    """The vector that the expression has now: {"metric": labels, "value": [unix time, text]} each."""
    return _got(url, "query", query=expression)["result"]  # type: ignore[no-any-return]


def alerts(url: str) -> list[dict[str, Any]]:
    """The alerts that fire now: labels, annotations, activeAt."""
    return [alert for alert in _got(url, "alerts")["alerts"] if alert["state"] == "firing"]


def _ready(name: str, process: subprocess.Popen[bytes], log: Path) -> str:
    """Its URL, or nothing yet."""
    written = log.read_text(errors="replace")
    assert process.poll() is None, f"{name} ended with {process.returncode}:\n{written}"
    listens = LISTENS.search(written)
    if listens is None:
        return ""
    url = f"http://{listens[1]}"
    try:
        return url if httpx.get(f"{url}/-/ready").status_code == httpx.codes.OK else ""
    except httpx.TransportError:  # it listens before it reads its rules, and may have ended since
        return ""


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


def _got(url: str, path: str, **parameters: str) -> dict[str, Any]:
    answer = httpx.get(f"{url}/api/v1/{path}", params=parameters)
    assert answer.status_code == httpx.codes.OK, answer.text
    return answer.json()["data"]  # type: ignore[no-any-return]
