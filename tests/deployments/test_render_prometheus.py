"""Files for Prometheus, Alertmanager and people, as `moray render` writes them and as their own tools judge them."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from integration.families import watched, written
from prometheus import amtool, promtool

from cluster.family import load
from deployments.cli import main
from monitoring.alerts import ALERTS
from monitoring.runbook import runbook
from monitoring.slo import ALLOWED, DEADLINE

FILES = ("prometheus.yml", "rules.yml", "alertmanager.yml")


def family(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    return written(folder, watched(folder, 8000) | changes)


def rendered(folder: Path, *words: str) -> dict[str, Any]:
    assert main(["render", "prometheus", "--out", str(folder), *words]) == 0
    return {name: yaml.safe_load((folder / name).read_text(encoding="utf-8")) for name in FILES}


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["render", *words]) == 1
    return capsys.readouterr().err


def targets(files: dict[str, Any]) -> list[str]:
    (job,) = files["prometheus.yml"]["scrape_configs"]
    return job["static_configs"][0]["targets"]  # type: ignore[no-any-return]


def test_prometheus_and_alertmanager_take_what_is_rendered(tmp_path: Path) -> None:
    rendered(tmp_path, "--family", "h200")
    promtool("check", "config", tmp_path / "prometheus.yml")
    amtool("check-config", tmp_path / "alertmanager.yml")


def test_without_more_the_gateway_of_the_family_file_is_scraped(tmp_path: Path) -> None:
    gateway = load("laptop").gateway
    assert targets(rendered(tmp_path)) == [f"{gateway.host}:{gateway.port}"]


def test_a_gateway_that_listens_everywhere_is_asked_here(tmp_path: Path) -> None:
    everywhere = family(tmp_path / "family", gateway={"host": "0.0.0.0", "port": 8001})
    assert targets(rendered(tmp_path / "out", "--family", str(everywhere))) == ["127.0.0.1:8001"]


def test_gateways_are_scraped_where_they_are_said_to_be(tmp_path: Path) -> None:
    files = rendered(tmp_path, "--gateway", "https://a.example", "--gateway", "https://[::1]:8443/")
    assert targets(files) == ["a.example:443", "[::1]:8443"]
    assert files["prometheus.yml"]["scrape_configs"][0]["scheme"] == "https"


def test_everything_is_scraped_before_the_control_loop_calls_it_stale(tmp_path: Path) -> None:
    assert rendered(tmp_path)["prometheus.yml"]["global"]["scrape_interval"] == "2000ms"
    assert rendered(tmp_path, "--every", "5")["prometheus.yml"]["global"]["scrape_interval"] == "5000ms"


@pytest.mark.parametrize("every", ["5.5", "0.5", "nan"])
def test_scrapes_that_are_too_seldom_or_too_dear_are_refused(every: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "1 to 5 s are allowed" in refused(capsys, "prometheus", "--every", every)


def test_several_gateways_behind_one_address_are_asked_which_pages_there_are(tmp_path: Path) -> None:
    """Scraped behind one address they would answer in turns, and counters jump."""
    two = family(tmp_path / "family", gateway={"replicas": 2})
    (job,) = rendered(tmp_path, "--family", str(two), "--gateway", "https://a")["prometheus.yml"]["scrape_configs"]
    assert job["http_sd_configs"] == [{"url": "https://a:443/metrics/targets", "refresh_interval": "2000ms"}]
    assert job["scheme"] == "http"
    assert "static_configs" not in job
    promtool("check", "config", tmp_path / "prometheus.yml")


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "http://host:port", "http://host/page"])
def test_an_address_that_is_none_is_refused(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"--gateway: {url!r}" in refused(capsys, "prometheus", "--gateway", url)


def test_a_webhook_that_is_no_address_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--webhook: 'pager'" in refused(capsys, "prometheus", "--webhook", "pager")


def test_windows_and_waits_are_shortened_to_try_alerts_out(tmp_path: Path) -> None:
    files = rendered(tmp_path, "--scale", "0.1")
    assert "[30000ms]" in str(files["rules.yml"])
    assert files["alertmanager.yml"]["route"]["group_interval"] == "6000ms"
    promtool("check", "config", tmp_path / "prometheus.yml")
    amtool("check-config", tmp_path / "alertmanager.yml")


@pytest.mark.parametrize("scale", ["0", "2", "nan"])
def test_a_scale_that_leaves_no_windows_or_widens_them_is_refused(
    scale: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "0.01 to 1 is allowed" in refused(capsys, "prometheus", "--scale", scale)


def test_http_and_https_are_not_mixed(capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, "prometheus", "--gateway", "http://a", "--gateway", "https://b")
    assert "all http or all https are allowed" in told


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert "a folder is needed" in refused(capsys, "prometheus", "--out", str(tmp_path / "file" / "folder"))


def test_the_rules_hold_what_the_family_promises(tmp_path: Path) -> None:
    (group,) = rendered(tmp_path)["rules.yml"]["groups"]
    recorded = {rule["record"]: rule["expr"] for rule in group["rules"] if "record" in rule}
    assert recorded[DEADLINE] == "vector(120)"
    assert recorded[ALLOWED].endswith("+ 0.01")


def test_all_goes_to_the_webhook_and_its_end_too(tmp_path: Path) -> None:
    files = rendered(tmp_path, "--webhook", "https://example.test/hook", "--alertmanager", "pager:9093")
    (receiver,) = files["alertmanager.yml"]["receivers"]
    assert receiver["webhook_configs"] == [{"url": "https://example.test/hook", "send_resolved": True}]
    assert files["prometheus.yml"]["alerting"]["alertmanagers"] == [{"static_configs": [{"targets": ["pager:9093"]}]}]


def test_an_alert_silences_only_alerts_that_there_are(tmp_path: Path) -> None:
    names = {alert.name for alert in ALERTS}
    for rule in rendered(tmp_path)["alertmanager.yml"]["inhibit_rules"]:
        for matcher in (*rule["source_matchers"], *rule["target_matchers"]):
            assert set(matcher.split('"')[1].split("|")) <= names


def test_without_a_folder_all_files_are_one_stream(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "prometheus"]) == 0
    assert len(list(yaml.safe_load_all(capsys.readouterr().out))) == len(FILES)


def test_the_runbook_is_written_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "runbook"]) == 0
    assert capsys.readouterr().out == runbook()
    assert main(["render", "runbook", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "runbook.md").read_text(encoding="utf-8") == runbook()
