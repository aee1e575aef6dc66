"""One server at a time: each is started when a test first asks for it, and stopped when one asks for another."""

import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.families import shipped, small, written
from integration.server import Server, free_port

Family = Callable[[Path, int], dict[str, Any]]


class Stage:
    """What is served now. Its folders are short: the path of a Unix socket must fit 107 bytes."""

    def __init__(self) -> None:
        self._name = ""
        self._server: Server | None = None

    def serve(self, name: str, family: Family, nodes: int | None = None) -> Server:
        if self._server is None or self._name != name:
            self.clear()
            self._server, self._name = self.start(family, nodes), name
            self._server.ready()
        return self._server

    def start(self, family: Family, nodes: int | None = None) -> Server:
        """Not waited for; to be stopped by the caller. `nodes`: simulated ones."""
        self.clear()
        folder = Path(tempfile.mkdtemp(prefix="it-", dir="/tmp"))
        port = free_port()
        words = () if nodes is None else ("--nodes", str(nodes))
        return Server(written(folder, family(folder, port)), port, folder, *words)

    def restart(self) -> Server:
        """What is served now, stopped and begun anew with the state that it left."""
        before = self._server
        assert before is not None
        before.stop()
        self._server = Server(before.family, before.port, before.scratch).ready()
        return self._server

    def clear(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.stop()
            shutil.rmtree(server.scratch)


@pytest.fixture(scope="session")
def stages() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.clear()


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[FAILED] = report.failed or (report.when != "setup" and item.stash.get(FAILED, False))
    return report


@pytest.fixture
def stage(stages: Stage, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """What a failed test leaves is not trusted: the next one begins on a new server."""
    yield stages
    if request.node.stash.get(FAILED, False):
        stages.clear()


@pytest.fixture
def laptop(stage: Stage) -> Server:
    """The family that ships."""
    return stage.serve("laptop", shipped)


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose answers are as long as asked."""
    from torch_checkpoint import save_checkpoint  # imports transformers, which takes seconds

    return save_checkpoint(tmp_path_factory.mktemp("endless"), eos_token_id=None, max_position_embeddings=2048)


@pytest.fixture
def small_family(endless: Path) -> Family:
    return lambda folder, port: small(folder, port, endless)


@pytest.fixture(scope="session")
def told() -> dict[str, str]:
    """Texts that one server told, for another to tell again."""
    return {}
