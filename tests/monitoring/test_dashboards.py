"""Each dashboard as it is committed: what Grafana will be given. The schema of Grafana is read where it lies."""

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import promql_parser
import pytest

import monitoring.dashboards
from monitoring.alerts import rules
from monitoring.dashboards import BOARDS
from monitoring.dashboards.panels import Board
from monitoring.dashboards.render import text
from monitoring.metrics import CATALOGUE, LABELS

FOLDER = Path(monitoring.dashboards.__file__).parent
SCHEMA = Path(__file__).parents[3] / "shared" / "schemas" / "grafana-dashboard.schema.json.gz"
RECORDED = {rule["record"] for group in rules()["groups"] for rule in group["rules"] if "record" in rule}
METRICS = {metric.name: metric for metric in CATALOGUE}
BUILT_IN = {"$__rate_interval": "1m", "$__range": "5m"}
COUNTING = ("rate", "increase", "irate")
LOOKED_UP = re.compile(r"label_values\((?P<selector>.*), (?P<label>\w+)\)")

every = pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)


def committed(board: Board) -> dict[str, Any]:
    return json.loads((FOLDER / f"{board.uid}.json").read_text("utf-8"))  # type: ignore[no-any-return]


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def filled(expr: str) -> str:
    """With every variable replaced."""
    for name, value in BUILT_IN.items():
        expr = expr.replace(name, value)
    return re.sub(r"\$usd_per_\w+", "2.5", expr).replace("$", "")


def queries(board: Board) -> list[str]:
    return [target["expr"] for panel in panels(committed(board)) for target in panel["targets"]]


@every
@pytest.mark.filterwarnings("ignore:Prefer using dashboardv2:DeprecationWarning")  # which /dashboards/db does not take
def test_what_is_committed_is_what_is_built(board: Board) -> None:
    where = FOLDER / f"{board.uid}.json"
    assert where.exists(), "make dashboards"
    assert where.read_text("utf-8") == text(board), "make dashboards"


def test_no_file_is_left_of_a_dashboard_that_is_gone() -> None:
    assert {file.stem for file in FOLDER.glob("*.json")} == {board.uid for board in BOARDS}


@every
def test_it_is_what_grafana_calls_a_dashboard(board: Board) -> None:
    if not SCHEMA.exists():
        pytest.skip(f"{SCHEMA.name} is missing: Grafana's dashboard schema, expected in {SCHEMA.parent}")
    schema = json.loads(gzip.decompress(SCHEMA.read_bytes()))
    faults = jsonschema_rs.validator_for(schema).iter_errors(committed(board))
    assert [f"{fault.instance_path}: {fault.message}" for fault in faults] == []


@every
def test_every_panel_says_what_it_shows(board: Board) -> None:
    for panel in panels(committed(board)):
        assert panel["title"]
        assert re.fullmatch(r"[A-Z].*\.", panel["description"]), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
        assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]


@every
def test_titles_numbers_and_letters_are_unique(board: Board) -> None:
    dashboard = committed(board)
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    for row in board.rows:
        assert len({panel.title for panel in row.panels}) == len(row.panels)
    for panel in panels(dashboard):
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters)


@every
def test_panels_do_not_lie_on_one_another(board: Board) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in committed(board)["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert max(x for x, _ in cells) < 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells


@every
def test_nothing_is_edited_in_grafana_and_the_data_source_is_chosen_there(board: Board) -> None:
    dashboard = committed(board)
    assert dashboard["editable"] is False
    chosen = dashboard["templating"]["list"][0]
    assert (chosen["name"], chosen["type"], chosen["query"]) == ("datasource", "datasource", "prometheus")
    sources = [panel["datasource"] for panel in panels(dashboard)]
    sources += [target["datasource"] for panel in panels(dashboard) for target in panel["targets"]]
    assert {json.dumps(source, sort_keys=True) for source in sources} == {
        '{"type": "prometheus", "uid": "${datasource}"}'
    }


@every
def test_variables_are_looked_up_anew_and_used(board: Board) -> None:
    dashboard = committed(board)
    asked = json.dumps(dashboard["panels"]) + json.dumps(
        [each.get("query") for each in dashboard["templating"]["list"]]
    )
    for variable in dashboard["templating"]["list"]:
        assert f"${variable['name']}" in asked or f"${{{variable['name']}}}" in asked
        if variable["type"] == "query":
            assert variable["refresh"] == 2, "when the time range changes"
            looked_up = LOOKED_UP.fullmatch(variable["query"])
            assert looked_up is not None
            promql_parser.parse(filled(looked_up["selector"]))
            assert looked_up["label"] in METRICS[looked_up["selector"].split("{")[0]].labels
    known = {variable["name"] for variable in dashboard["templating"]["list"]} | {"__rate_interval", "__range"}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard["panels"]))) <= known


@every
def test_every_query_is_promql_over_catalogued_metrics_and_their_labels(board: Board) -> None:
    for expr in queries(board):
        for inside, selector in selectors(promql_parser.parse(filled(expr))):
            checked(expr, inside, selector)


def checked(expr: str, inside: str, selector: promql_parser.VectorSelector) -> None:
    """`inside`: the function over a range that the selector is given to, or nothing."""
    if selector.name in RECORDED:
        return
    name = selector.name or ""
    metric = METRICS.get(name) or METRICS.get(re.sub(r"_(bucket|sum|count)$", "", name))
    assert metric is not None, f"{name} in {expr}"
    assert (metric.kind == "histogram") == (metric.name != name), expr
    assert (metric.kind == "gauge") != (inside in COUNTING), f"{name} is a {metric.kind}: {expr}"
    for matcher in selector.matchers.matchers:
        assert matcher.name in metric.labels, expr
        told = re.findall(r"\w+", LABELS[matcher.name])
        assert matcher.value == matcher.name or set(matcher.value.split("|")) <= set(told) | {"client_gone"}, expr


def selectors(node: Any, inside: str = "") -> Iterator[tuple[str, promql_parser.VectorSelector]]:
    match node:
        case promql_parser.VectorSelector():
            yield inside, node
        case promql_parser.MatrixSelector():
            yield inside, node.vector_selector
        case promql_parser.Call():
            for argument in node.args:
                yield from selectors(argument, node.func.name)
        case promql_parser.BinaryExpr():
            yield from selectors(node.lhs)
            yield from selectors(node.rhs)
        case promql_parser.AggregateExpr() | promql_parser.ParenExpr() | promql_parser.UnaryExpr():
            yield from selectors(node.expr)
        case promql_parser.NumberLiteral() | promql_parser.StringLiteral():
            return
        case _:
            raise AssertionError(f"{type(node).__name__} is not looked into")


@every
def test_windows_follow_the_scrape_interval_or_what_is_shown(board: Board) -> None:
    assert {window for expr in queries(board) for window in re.findall(r"\[(.*?)\]", expr)} <= set(BUILT_IN)


@every
def test_legends_name_labels_that_the_query_keeps(board: Board) -> None:
    for panel in panels(committed(board)):
        for target in panel["targets"]:
            kept = {label for labels in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in labels.split(", ")}
            recorded = {"tier"} if any(name in target["expr"] for name in RECORDED) else set()
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= kept | recorded, target["expr"]


def test_uids_are_unique_and_told_apart_from_those_of_others() -> None:
    assert len({board.uid for board in BOARDS}) == len(BOARDS)
    assert all(re.fullmatch(r"moray-[a-z]+", board.uid) for board in BOARDS)


@pytest.mark.parametrize("expr", ["moray_arrivals_total", "rate(moray_gpus[1m])", "rate(moray_nothing_total[1m])"])
def test_the_lint_finds_what_it_is_for(expr: str) -> None:
    ((inside, selector),) = selectors(promql_parser.parse(expr))
    with pytest.raises(AssertionError):
        checked(expr, inside, selector)
