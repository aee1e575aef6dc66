"""The network itself: every fault, and back."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from flaky import PAGE, Flaky
from prometheus_client import CollectorRegistry, Gauge, start_http_server


@pytest.fixture
def flaky() -> Iterator[Flaky]:
    """Before a server that tells one metric."""
    registry = CollectorRegistry()
    Gauge("moray_gpus", "x", registry=registry).set(4)
    server, thread = start_http_server(0, "127.0.0.1", registry)
    with Flaky("127.0.0.1", server.server_port) as flaky:
        yield flaky
    server.shutdown()
    server.server_close()
    thread.join()


def read(flaky: Flaky, answer_s: float = 10.0) -> str:
    return httpx.get(f"http://{flaky.address}/metrics", timeout=httpx.Timeout(10.0, read=answer_s)).text


def test_it_passes_until_told_otherwise(flaky: Flaky) -> None:
    assert "moray_gpus 4.0" in read(flaky)


def test_refusing_is_a_closed_port(flaky: Flaky) -> None:
    flaky.be("refuse")
    with pytest.raises(httpx.ConnectError):
        read(flaky)


def test_hanging_takes_the_connection_and_says_nothing(flaky: Flaky) -> None:
    flaky.be("hang")
    with pytest.raises(httpx.ReadTimeout):
        read(flaky, answer_s=0.05)


def test_garbage_is_not_even_http(flaky: Flaky) -> None:
    flaky.be("garbage")
    with pytest.raises(httpx.RemoteProtocolError):
        read(flaky)


def test_garbage_may_be_a_page_that_nobody_asked_for(flaky: Flaky) -> None:
    flaky.be("garbage", PAGE)
    assert "sign in" in read(flaky)


@pytest.mark.parametrize("fault", ["refuse", "hang", "garbage"])
def test_it_passes_again_at_the_same_address(flaky: Flaky, fault: str) -> None:
    before = flaky.address
    flaky.be(fault)  # type: ignore[arg-type]
    flaky.be("pass")
    assert flaky.address == before
    assert "moray_gpus 4.0" in read(flaky)


def test_a_connection_that_is_kept_open_is_cut(flaky: Flaky) -> None:
    with httpx.Client(base_url=f"http://{flaky.address}") as client:
        assert client.get("/metrics").status_code == httpx.codes.OK
        flaky.be("refuse")
        with pytest.raises(httpx.TransportError):
            client.get("/metrics")


def test_who_hangs_is_let_go_by_the_next_word(flaky: Flaky) -> None:
    flaky.be("hang")
    sent = threading.Event()

    def asked() -> str:
        hooks = {"request": [lambda request: sent.set()]}
        with httpx.Client(event_hooks=hooks, timeout=30) as client:
            return client.get(f"http://{flaky.address}/metrics").text

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(asked)
        assert sent.wait(10)
        flaky.be("refuse")
        with pytest.raises(httpx.TransportError):
            answer.result()


def test_a_server_that_is_gone_is_a_connection_that_ends() -> None:
    with Flaky("127.0.0.1", 1) as flaky, pytest.raises(httpx.TransportError):
        read(flaky)
