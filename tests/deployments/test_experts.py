"""`moray experts` against a gateway's page as Prometheus reads it: rendered by replicas, merged, served on a port."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import numpy as np
import prometheus_client
import pytest
from integration.server import free_port
from matplotlib.image import imread
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from deployments.cli import main
from deployments.engines.engine import EngineReport, ExpertReport
from deployments.gateway.metrics import Merged
from deployments.measure import ReplicaMetrics
from deployments.observe import Meters
from monitoring.metrics import GATEWAY

ROWS = np.zeros((2, 2, 4, 2), np.int64)  # "" and math; two layers of four experts; two ranks
ROWS[1, 0] = [[60, 20], [0, 0], [10, 0], [0, 0]]
ROWS[0, 0] = [[0, 0], [0, 10], [0, 0], [0, 0]]
EXPERTS = ExpertReport(
    domains=("", "math"),
    tokens=ROWS,
    window=ROWS.sum(0),
    slots=((0, 2, 3, 0, 1, 3), (0, 1, 2, 1, 2, 3)),
    imbalance=(1.4, float("nan")),
    rebalances=2,
    moved=5,
    stall_s=0.0125,
)
Serve = Callable[[dict[str, ExpertReport | None]], str]


class Engine:
    """As much of an engine as is measured."""

    def __init__(self, experts: ExpertReport | None) -> None:
        self._experts = experts

    def report(self) -> EngineReport:
        return EngineReport(
            running=0,
            waiting=0,
            waiting_prefill_tokens=0,
            kv_used_tokens=0,
            kv_capacity_tokens=0,
            steps=0,
            step_ms=0,
            prefill_us_per_token=0,
            experts=self._experts,
        )


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a gateway's page with a replica of each tier, and of `asleep` none; gives its URL."""
    with ExitStack() as stack:

        def start(*arguments: Any, **named: Any) -> Any:
            server, thread = prometheus_client.start_http_server(*arguments, **named)
            stack.callback(thread.join)
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            return server, thread

        def served(tiers: dict[str, ExpertReport | None]) -> str:
            own = Meters(CollectorRegistry(), GATEWAY)
            for tier in (*tiers, "asleep"):
                own.gauge("moray_replicas_running").labels(tier=tier).set(tier != "asleep")
            pages = {f"{tier}-1": _page(tier, report) for tier, report in tiers.items()}
            merged = CollectorRegistry(auto_describe=False)
            merged.register(Merged(own.registry, pages))
            server, _ = start(0, "127.0.0.1", merged)
            return f"http://127.0.0.1:{server.server_port}"

        stack.enter_context(patch("deployments.measure.start_http_server", start))
        yield served


def _page(tier: str, report: ExpertReport | None) -> list[Any]:
    engine: Any = Engine(report)
    metrics = ReplicaMetrics(tier, engine, "127.0.0.1", 1.0)
    return list(text_string_to_metric_families(httpx.get(f"http://{metrics.address}/metrics").text))


def told(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["experts", *words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What it says on stderr, in one line, where it ends with exit code 1."""
    assert main(["experts", *words]) == 1
    shown = capsys.readouterr()
    assert (shown.out, len(shown.err.splitlines())) == ("", 1)
    return shown.err


def test_json_tells_of_each_layer_its_ranks_experts_and_domains(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    (group,) = told(capsys, "--url", serve({"ultra": EXPERTS}))["replicas"]
    layers = group.pop("layers")
    assert group == {
        "tier": "ultra",
        "replica": "ultra-1",
        "ranks": 2,
        "rebalances": 2,
        "moves": 5,
        "stall_s": 0.0125,
    }
    first = layers[0]
    assert (first["layer"], first["imbalance"], first["window_rows"]) == (0, 1.4, 100)
    assert first["ranks"] == [{"rank": 0, "rows": 70, "share": 0.7}, {"rank": 1, "rows": 30, "share": 0.3}]
    assert first["experts"][0] == {"expert": 0, "rows": 80, "share": 0.8, "copies": 2, "ranks": [0, 1]}
    assert first["experts"][2] == {"expert": 2, "rows": 10, "share": 0.1, "copies": 1, "ranks": [0]}
    assert first["domains"]["math"] == {
        "rows": 90,
        "share": 0.9,
        "expert_shares": [pytest.approx(8 / 9), 0, pytest.approx(1 / 9), 0],
        "most_used": [0, 2],
    }
    assert first["domains"]["unknown"]["most_used"] == [1]


def test_a_layer_that_routed_nothing_has_figures_of_nothing(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    (group,) = told(capsys, "--url", serve({"ultra": EXPERTS}))["replicas"]
    second = group["layers"][1]
    assert (second["imbalance"], second["window_rows"], second["domains"]) == (None, 0, {})
    assert [each["share"] for each in second["experts"]] == [None] * 4
    assert [each["ranks"] for each in second["experts"]] == [[0], [0, 1], [0, 1], [1]]


def test_a_table_tells_the_same_in_words(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experts", "--url", serve({"ultra": EXPERTS, "mini": None})]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in (
        "ultra, replica ultra-1: 2 ranks, 2 rebalances, 5 copies moved, the last one stalled decoding for 0.0125 s",
        "layer 0: 100 rows in the window: rank 0 70.0%, rank 1 30.0%; most/mean 1.40",
        "0 80 80.0% 2 0, 1",
        "math 90 0 (89%), 2 (11%)",
        "layer 1: 0 rows in the window: rank 0 -, rank 1 -; most/mean -",
        "mini shows no experts: its model is dense, or its engine is one that does not tell",
        "asleep shows no experts: no replica of it runs now; a request wakes it",
    ):
        assert words in shown


def test_one_tier_may_be_asked_for(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "--url", serve({"ultra": EXPERTS, "pro": EXPERTS, "mini": None}), "--tier", "pro")
    assert [group["tier"] for group in found["replicas"]] == ["pro"]
    assert found["without"] == {}


def test_a_large_layer_shows_the_experts_with_the_most_rows_and_sums_the_others(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = np.arange(1, 41).reshape(1, 1, 40, 1)
    report = ExpertReport(domains=("",), tokens=rows, window=rows[0], slots=(tuple(range(40)),), imbalance=(1.0,))
    assert main(["experts", "--url", serve({"mini": report})]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[5].startswith("39 40 4.9% 1 0 unknown 820 39 (5%), 38 (5%), 37 (5%)")
    assert lines[21] == "24 more 300 36.6%"


def test_a_model_that_is_too_large_for_a_page_shows_the_balance_of_its_layers(
    serve: Serve, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = np.ones((5, 2, 256, 2), np.int64)
    report = ExpertReport(
        domains=("", "a", "b", "c", "d"),
        tokens=rows,
        window=rows.sum(0),
        slots=(tuple(range(256)),) * 2,
        imbalance=(1.25, 1.5),
    )
    url = serve({"ultra": report})
    assert main(["experts", "--url", url]) == 0
    shown = capsys.readouterr().out
    assert "layer 1: most/mean 1.50" in shown
    assert "too large for a page" in shown
    assert "--plot: no layer is shown" in refused(capsys, "--url", url, "--plot", str(tmp_path / "none.png"))


def test_a_plot_is_a_png_with_something_in_it(serve: Serve, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "experts.png"
    assert main(["experts", "--url", serve({"ultra": EXPERTS}), "--plot", str(file)]) == 0
    assert "ultra, replica ultra-1" in capsys.readouterr().out
    pixels = imread(file)
    assert pixels.shape[1] == 1540
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 20


def test_a_picture_of_a_deep_model_ends_after_its_first_layers(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, whole, short = serve({"ultra": EXPERTS}), tmp_path / "whole.png", tmp_path / "short.png"
    assert main(["experts", "--url", url, "--plot", str(whole)]) == 0
    monkeypatch.setattr("deployments.experts_plot.MOST_LAYERS", 1)
    assert main(["experts", "--url", url, "--plot", str(short)]) == 0
    assert imread(whole).shape[0] - imread(short).shape[0] == 286  # 2.6 inches of 110 dots


def test_where_nothing_listens_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    words = refused(capsys, "--url", url)
    assert words.startswith(f"moray: --url: {url}: ")
    assert "start one with `moray up`" in words


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "http://[", "nowhere"])
def test_an_address_that_is_none_is_one_clear_line(capsys: pytest.CaptureFixture[str], url: str) -> None:
    assert f"--url: {url}: " in refused(capsys, "--url", url)


def test_a_page_of_another_server_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    server, thread = prometheus_client.start_http_server(0, "127.0.0.1", CollectorRegistry())
    try:
        words = refused(capsys, "--url", f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert "names no tiers" in words


@pytest.mark.parametrize(
    ("tier", "words"),
    [
        ("max", "--tier: 'max'; tiers there are ultra, mini, asleep; choose one of them"),
        ("mini", "--tier: mini shows no experts: its model is dense, or its engine"),
        ("asleep", "--tier: asleep shows no experts: no replica of it runs now"),
    ],
)
def test_a_tier_that_has_nothing_to_show_is_told_why(
    serve: Serve, capsys: pytest.CaptureFixture[str], tier: str, words: str
) -> None:
    assert words in refused(capsys, "--url", serve({"ultra": EXPERTS, "mini": None}), "--tier", tier)


def test_a_picture_that_cannot_be_written_is_refused_before_anything_is_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "--plot: experts.jpg; a file name that ends in .png" in refused(capsys, "--plot", "experts.jpg")
