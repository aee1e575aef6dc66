"""Dashboards over the family that ships: under load the real Prometheus has something to show in every panel."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_stand_in import TOKEN, grafana
from integration.server import Server, eventually
from integration.talk import whole
from prometheus import prometheus, query

from monitoring.alerts import rules
from monitoring.dashboards import BOARDS

pytestmark = pytest.mark.slow
FILLED = {
    "$__rate_interval": "30s",
    "$__range": "60s",
    "$usd_per_gpu_hour": "2.5",
    "$usd_per_mtok_in": "10",
    "$usd_per_mtok_out": "30",
    "$tier": "ultra",
    "$layer": "0",
}
QUIET = {  # what a family in good health may not show
    "moray_requests_total{code!~": "no request failed",
    "moray_rejections_total": "no request was refused",
    "moray_signal_faults_total": "every signal was believed",
    "moray_control_errors_total": "no part of a tick failed",
    "moray_expert_rebalance_stall_seconds": "the load lay even: nothing was moved",
}
SHOWN_S = 90.0


def silent(url: str, domain: str) -> list[str]:
    """Queries without a finite figure, but for those of QUIET."""
    found = []
    for board in BOARDS:
        for row in board.rows:
            for panel in row.panels:
                for asked in panel.queries:
                    expr = asked.expr.replace("$domain", domain)
                    for name, value in FILLED.items():
                        expr = expr.replace(name, value)
                    known = any(name in expr for name in QUIET)
                    if not known and not any(math.isfinite(float(s["value"][1])) for s in query(url, expr)):
                        found.append(f"{board.uid}: {panel.title}: {expr}")
    return found


@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
def test_every_panel_shows_figures_under_load(laptop: Server, tmp_path: Path) -> None:
    (tmp_path / "moray.yml").write_text(yaml.safe_dump(rules(scale=0.1)))
    targets = [{"targets": [laptop.url.removeprefix("http://")]}]
    whole(laptop, "gpt-5.2-ultra", 8)
    videos: Any = laptop.client().videos
    short: Any = {"model": "sora-2", "prompt": "a red circle", "extra_body": {"num_inference_steps": 4}}
    video = videos.create(**short)
    with prometheus(tmp_path / "prometheus", targets, rules=[tmp_path / "moray.yml"]) as url:
        eventually(lambda: query(url, "count_over_time(moray_gpus[1m]) > 2"), SHOWN_S)
        domain = laptop.samples("moray_expert_tokens_total", tier="ultra", layer="0")[0].labels["domain"]

        def shown() -> bool:
            nonlocal video
            if videos.retrieve(video.id).status == "completed":  # rates look back over half a minute
                video = videos.create(**short)
            whole(laptop, "gpt-5.2-ultra", 24)
            still = silent(url, domain)
            print(*still, sep="\n")  # pytest shows the last ones where it fails
            return not still

        eventually(shown, SHOWN_S, "a figure in every panel")


def test_reasons_of_a_running_control_loop_are_posted_once(laptop: Server) -> None:
    whole(laptop, "gpt-5.2-ultra", 4)  # which woke it
    with grafana() as stand_in:
        token = laptop.scratch / "token"
        token.write_text(TOKEN)
        words = ("grafana", "annotate", "--url", stand_in.url, "--token-file", str(token))
        first = laptop.moray(*words)
        assert first.returncode == 0, first.stderr
        posted = list(stand_in.annotations)
        assert any("ultra" in one["tags"] and "0 to 1" in one["text"] for one in posted), posted
        again = laptop.moray(*words)
        assert again.returncode == 0, again.stderr
        assert stand_in.annotations[: len(posted)] == posted
        told = [(one["time"], one["text"]) for one in stand_in.annotations]
        assert len(set(told)) == len(told)
