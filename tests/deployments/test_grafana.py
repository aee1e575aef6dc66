"""`moray grafana` against a stand-in for Grafana's HTTP API (grafana_stand_in.py); no real Grafana was ever asked."""

import ast
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import promql_parser
import pytest
from grafana_stand_in import TOKEN, StandIn, grafana

from autoscaling.parameters import Parameters
from autoscaling.policy import Memory, step
from autoscaling.record import Scaling, line
from autoscaling.signals import Seen, Spec, TierSeen, spec_of
from autoscaling.story import Event
from cluster.errors import ConfigurationError, MorayError
from cluster.family import load
from deployments import cli, grafana_reasons
from deployments.control.record_file import RecordFile
from deployments.grafana_port import WAITS_S, GrafanaError, GrafanaPort
from deployments.grafana_sync import FOLDER, SOURCE, Step, items, sync
from monitoring.alerts import ALERTS
from monitoring.dashboards import BOARDS

CHECKOUT = Path(__file__).parents[2]
PROMETHEUS = "http://prometheus:9090"
ITEMS = items(PROMETHEUS, alerts=True)


@pytest.fixture
def there() -> Iterator[StandIn]:
    with grafana() as stand_in:
        yield stand_in


@pytest.fixture
def waited() -> list[float]:
    return []


@pytest.fixture
def port(there: StandIn, waited: list[float]) -> Iterator[GrafanaPort]:
    with closing(GrafanaPort(there.url, TOKEN, waited.append)) as made:
        yield made


def never(seconds: float) -> None:
    raise AssertionError(f"waited {seconds} s")


def brought(port: GrafanaPort, *, dry_run: bool = False) -> list[Step]:
    return list(sync(port, ITEMS, dry_run=dry_run))


def actions(steps: list[Step]) -> set[str]:
    return {step.action for step in steps}


def test_the_first_run_makes_everything(there: StandIn, port: GrafanaPort) -> None:
    assert actions(brought(port)) == {"create"}
    assert set(there.folders) == {FOLDER}
    assert there.sources[SOURCE]["url"] == PROMETHEUS
    assert set(there.dashboards) == {board.uid for board in BOARDS}
    assert {one["meta"]["folderUid"] for one in there.dashboards.values()} == {FOLDER}
    titles = {rule["title"] for group in there.groups.values() for rule in group["rules"]}
    assert titles == {alert.name for alert in ALERTS}


def test_the_second_run_changes_nothing(there: StandIn, port: GrafanaPort) -> None:
    brought(port)
    there.calls.clear()
    assert actions(brought(port)) == {"same"}
    assert there.writes() == []


def test_a_dry_run_only_looks_and_says_what_the_run_does(there: StandIn, port: GrafanaPort) -> None:
    told = [(step.item.uid, step.action) for step in brought(port, dry_run=True)]
    assert there.writes() == []
    assert told == [(step.item.uid, step.action) for step in brought(port)]


def test_what_was_changed_there_is_put_right_and_shown_as_a_diff(there: StandIn, port: GrafanaPort) -> None:
    brought(port)
    there.dashboards["moray-video"]["dashboard"]["title"] = "Mine"
    (step,) = [step for step in brought(port) if step.action != "same"]
    assert (step.item.uid, step.action) == ("moray-video", "change")
    assert [line for line in step.diff() if line[0] in "+-"][2:] == [
        '-    "title": "Mine",',
        '+    "title": "Moray: video",',
    ]
    assert there.dashboards["moray-video"]["dashboard"]["title"] == "Moray: video"
    assert actions(brought(port)) == {"same"}


def test_a_folder_a_source_and_a_rule_are_put_right(there: StandIn, port: GrafanaPort) -> None:
    brought(port)
    there.folders[FOLDER]["title"] = "Mine"
    there.sources[SOURCE]["url"] = "http://elsewhere"
    next(iter(there.groups.values()))["rules"].pop()
    assert [step.item.kind for step in brought(port) if step.action == "change"] == [
        "folder",
        "data source",
        "alert rules",
    ]
    assert actions(brought(port)) == {"same"}


def test_what_others_have_set_beside_ours_stays(there: StandIn, port: GrafanaPort) -> None:
    brought(port)
    there.sources[SOURCE]["jsonData"]["tlsSkipVerify"] = True
    assert actions(brought(port)) == {"same"}
    there.sources[SOURCE]["url"] = "http://elsewhere"
    brought(port)
    assert there.sources[SOURCE]["jsonData"] == {"httpMethod": "POST", "timeInterval": "15s", "tlsSkipVerify": True}


@pytest.mark.parametrize(
    "where", [("POST", "/datasources"), ("POST", "/dashboards/db"), ("PUT", "/v1/provisioning"), ("GET", "/dashboards")]
)
def test_a_run_that_fails_half_way_is_completed_by_the_next(
    where: tuple[str, str], there: StandIn, port: GrafanaPort
) -> None:
    there.faults[where] = [0, 0][: where[1].startswith("/dash") and 2] + [500] * (len(WAITS_S) + 1)
    with pytest.raises(
        GrafanaError, match="500 as the test wants it; a success is needed; see Grafana's log, then run"
    ):
        brought(port)
    done = set(there.dashboards)
    steps = brought(port)
    assert {step.item.uid for step in steps if step.action == "same"} >= done | {FOLDER}
    assert actions(brought(port)) == {"same"}


def test_a_failure_that_passes_is_waited_for_longer_each_time(
    there: StandIn, port: GrafanaPort, waited: list[float]
) -> None:
    there.faults["POST", "/folders"] = [503, 502]
    assert actions(brought(port)) == {"create"}
    assert waited == list(WAITS_S[:2])


def test_a_refusal_is_not_tried_again(there: StandIn, port: GrafanaPort, waited: list[float]) -> None:
    there.faults["POST", "/folders"] = [403]
    with pytest.raises(GrafanaError, match=r"POST /folders: 403 .*give the token's account the right"):
        brought(port)
    assert waited == []


def test_a_wrong_token_is_told_without_saying_it(there: StandIn) -> None:
    with closing(GrafanaPort(there.url, "glsa_wrong", never)) as port:
        with pytest.raises(GrafanaError, match=r"401 Unauthorized; .*--token-file") as caught:
            port.health()
        assert "glsa_wrong" not in str(caught.value)


def test_a_user_with_a_password_is_let_in_too(there: StandIn) -> None:
    with closing(GrafanaPort(there.url, ("admin", TOKEN), never)) as port:
        assert port.health() == "12.0.0"


def test_a_name_that_is_taken_says_so(there: StandIn, port: GrafanaPort) -> None:
    there.sources["theirs"] = {"name": "Moray Prometheus"}
    with pytest.raises(GrafanaError, match=r"409 data source with the same name .*rename or delete it"):
        brought(port)


def test_a_dashboard_that_changes_meanwhile_is_not_overwritten(there: StandIn, port: GrafanaPort) -> None:
    brought(port)
    stored = there.dashboards["moray-tier"]["dashboard"]
    stored["title"] = "Mine"
    item = next(item for item in ITEMS if item.uid == "moray-tier")
    read = port.read("dashboard", "moray-tier")
    assert read is not None
    stored["version"] += 1
    with pytest.raises(GrafanaError, match=r"412 .*run it again"):
        port.write("dashboard", "moray-tier", item.body, read)
    assert stored["title"] == "Mine"


def test_somebody_else_at_the_address_is_told(there: StandIn, port: GrafanaPort) -> None:
    there.faults["GET", "/health"] = [-1] * 9
    with pytest.raises(GrafanaError, match=r"no JSON; .*mend --url"):
        port.health()


def test_nobody_at_the_address_is_told_after_all_tries(waited: list[float]) -> None:
    with grafana() as gone:
        url = gone.url
    with closing(GrafanaPort(url, TOKEN, waited.append)) as port, pytest.raises(GrafanaError, match="mend --url"):
        port.health()
    assert waited == list(WAITS_S)


def test_a_grafana_that_hangs_is_left(there: StandIn, waited: list[float]) -> None:
    there.held = threading.Event()
    try:
        port = GrafanaPort(there.url, TOKEN, waited.append, patience_s=0.05)
        with closing(port), pytest.raises(GrafanaError, match="no answer in time"):
            port.health()
    finally:
        there.held.set()


def test_a_grafana_under_a_path_is_reached(there: StandIn) -> None:
    there.prefix = "/tools/grafana/api"
    with closing(GrafanaPort(f"{there.url}/tools/grafana/", TOKEN, never)) as port:
        assert port.health() == "12.0.0"


@pytest.mark.parametrize("url", ["grafana:3000", "ftp://grafana", "http://", "http://a:b", "http://me:pw@grafana"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--url: .*are allowed") as caught:
        GrafanaPort(url, TOKEN, never)
    assert "pw" not in str(caught.value)


def test_rules_fire_wherever_the_alert_has_anything_and_tell_its_value() -> None:
    (group,) = [item.body for item in ITEMS if item.kind == "alert rules"]
    for rule in group["rules"]:
        value, fires, decides = rule["data"]
        promql_parser.parse(value["model"]["expr"])
        promql_parser.parse(fires["model"]["expr"])
        assert (fires["model"]["expr"], decides["model"]["expression"]) == (
            f"({value['model']['expr']}) >= bool -Inf",
            "B",
        )
        assert "$value " not in rule["annotations"]["summary"]
        assert len(rule["uid"]) <= 40, "Grafana's limit"


def test_one_module_knows_the_package() -> None:
    def imported(file: Path) -> set[str]:
        nodes = list(ast.walk(ast.parse(file.read_text("utf-8"))))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        return names | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}

    roots = ("cluster", "autoscaling", "monitoring", "deployments", "tests")
    files = [file for root in roots for file in (CHECKOUT / root).rglob("*.py")]
    knowing = [file for file in files if any(name.split(".")[0] == "grafana_api" for name in imported(file))]
    assert [str(file.relative_to(CHECKOUT)) for file in knowing] == ["deployments/grafana_port.py"]


def event(at_s: float, after: int, name: str = "mini") -> Event:
    return Event(at_s=at_s, name=name, before=1, after=after, cause="rise", reason=f"{after} wanted")


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Event]:
    """What the decisions of tmp_path tell; reading them is specified below."""
    found: list[Event] = []
    (tmp_path / "decisions.jsonl").touch()
    monkeypatch.setattr(grafana_reasons, "told", lambda texts: iter(found))
    return found


def test_a_reason_becomes_an_annotation_once(
    there: StandIn, port: GrafanaPort, events: list[Event], tmp_path: Path
) -> None:
    events += [event(10.5, 2), event(12.5, 3), event(12.5, 3, "pro")]
    assert grafana_reasons.annotate(port, tmp_path, most=10) == (3, 3)
    assert {k: v for k, v in there.annotations[0].items() if k != "id"} == {
        "time": 10500,
        "tags": ["moray", "decision", "mini", "rise"],
        "text": "mini 1 to 2 (rise): 2 wanted",
    }
    events.append(event(14.5, 1))
    assert grafana_reasons.annotate(port, tmp_path, most=10) == (1, 4)
    assert there.annotations[-1]["text"] == "mini stays at 1 (rise): 1 wanted"


def test_only_the_newest_reasons_are_posted(
    there: StandIn, port: GrafanaPort, events: list[Event], tmp_path: Path
) -> None:
    events += [event(float(n), n) for n in range(2, 20)]
    assert grafana_reasons.annotate(port, tmp_path, most=2) == (2, 2)
    assert [one["time"] for one in there.annotations] == [18000, 19000]


def test_reasons_that_were_posted_half_way_are_completed_without_doubles(
    there: StandIn, port: GrafanaPort, events: list[Event], tmp_path: Path
) -> None:
    events += [event(float(n), n) for n in range(2, 6)]
    there.faults["POST", "/annotations"] = [0, 0, 500]
    with pytest.raises(GrafanaError):
        grafana_reasons.annotate(port, tmp_path, most=9)
    assert grafana_reasons.annotate(port, tmp_path, most=9) == (2, 4)
    assert len(there.annotations) == 4


def test_no_log_of_decisions_is_told(port: GrafanaPort, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such file; the log of decisions is needed"):
        grafana_reasons.annotate(port, tmp_path / "nowhere", most=1)


def blind_at(now_s: float, memory: Memory | None, spec: Spec, blind: bool) -> Scaling:
    seen = Seen(now_s=now_s, gpus=8, tiers=dict.fromkeys(spec.tiers, None if blind else TierSeen(ready=1)))
    decision, after = step(seen, memory, spec, Parameters())
    return Scaling(seen=seen, memory=memory, spec=spec, parameters=Parameters(), decision=decision, after=after)


def test_ticks_tell_the_same_as_whole_decisions_and_a_torn_line_tells_nothing(tmp_path: Path) -> None:
    spec, memory, records = spec_of(load("laptop")), None, list[Scaling]()
    for number in range(6):
        records.append(blind_at(2.0 * number, memory, spec, blind=number in (3, 4)))
        memory = records[-1].after
    with closing(RecordFile(tmp_path, most_mib=1)) as file:
        for record in records:
            file.write(record)
    texts = (tmp_path / "decisions.jsonl").read_text().splitlines()
    assert len({text[:20] for text in texts}) == 2, "whole ones and ticks"
    events = list(grafana_reasons.told(texts))
    assert events == list(grafana_reasons.told(line(record) for record in records))
    assert {(one.at_s, one.cause) for one in events} >= {(6.0, "blind")}
    assert {one.at_s for one in grafana_reasons.told([texts[0], "torn", *texts[1:]])} <= {0.0}


def run(there: StandIn, tmp_path: Path, *arguments: str) -> int:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    return cli.main(["grafana", *arguments, "--url", there.url, "--token-file", str(tmp_path / "token")])


def test_the_command_says_what_it_does(there: StandIn, tmp_path: Path, capsys: Any) -> None:
    assert run(there, tmp_path, "sync", "--dry-run", "--diff", "--without-alerts") == 0
    told = capsys.readouterr().out
    assert "would create: folder moray\n" in told
    assert '+  "title": "Moray"' in told
    assert "alert rules" not in told
    assert run(there, tmp_path, "sync") == 0
    assert "created: alert rules moray/" in capsys.readouterr().out
    assert run(there, tmp_path, "sync") == 0
    told = capsys.readouterr().out
    assert "created" not in told
    assert "changed" not in told
    assert TOKEN not in told


def test_annotate_reads_the_state_folder_of_the_family(
    there: StandIn, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(there, tmp_path, "annotate", "--most", "5") == 1
    assert f"{tmp_path / '.moray' / 'decisions.jsonl'}: no such file" in capsys.readouterr().err
    spec = spec_of(load("laptop"))
    first = blind_at(2.0, None, spec, blind=False)
    records = (first, blind_at(4.0, first.after, spec, blind=True))
    (tmp_path / ".moray").mkdir()
    (tmp_path / ".moray" / "decisions.jsonl").write_text("".join(line(record) + "\n" for record in records))
    assert run(there, tmp_path, "annotate", "--most", "3") == 0
    assert "3 of 3 reasons posted" in capsys.readouterr().out
    assert run(there, tmp_path, "annotate", "--most", "0") == 1


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "nobody to sign in as"),
        (("--token-file", "/nowhere"), "--token-file: /nowhere: No such file"),
        (("--user", "admin"), "nobody to sign in as"),
    ],
)
def test_secrets_come_from_files_alone(arguments: tuple[str, ...], why: str, capsys: Any) -> None:
    assert cli.main(["grafana", "sync", *arguments]) == 1
    assert why in capsys.readouterr().err


def test_errors_are_of_the_one_tree() -> None:
    assert issubclass(GrafanaError, MorayError)
