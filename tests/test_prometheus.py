"""The fixture itself, on an exposition of two series."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from integration.server import eventually
from prometheus import prometheus, promtool, query
from prometheus_client import CollectorRegistry, Gauge, start_http_server

pytestmark = pytest.mark.slow


@pytest.fixture
def address() -> Iterator[str]:
    registry = CollectorRegistry()
    Gauge("moray_streams", "x", ["tier"], registry=registry).labels(tier="mini").set(3)
    server, thread = start_http_server(0, "127.0.0.1", registry)
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_it_scrapes_what_it_is_told_and_is_gone_afterwards(tmp_path: Path, address: str) -> None:
    with prometheus(tmp_path, [{"targets": [address], "labels": {"replica": "a"}}]) as url:
        (found,) = eventually(lambda: query(url, "moray_streams"), 30)
        assert found["value"][1] == "3"
        assert {"job": "moray", "replica": "a", "tier": "mini"}.items() <= found["metric"].items()
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_a_second_start_on_its_port_remembers_the_first(tmp_path: Path, address: str) -> None:
    with prometheus(tmp_path, [{"targets": [address]}]) as url:
        eventually(lambda: query(url, "moray_streams"), 30)
    with prometheus(tmp_path, [], port=int(url.rsplit(":", 1)[1])) as again:
        assert again == url
        assert query(url, "last_over_time(moray_streams[5m])")


def test_a_broken_rule_file_is_told_with_what_prometheus_said(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text("groups: 3")
    with pytest.raises(AssertionError, match="prometheus ended with"), prometheus(tmp_path, [], rules=[rules]):
        pass


def test_a_missing_package_is_named_by_the_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(pytest.skip.Exception, match="promtool is missing: install the Debian package prometheus"):
        promtool("--version")
