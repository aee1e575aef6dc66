"""What Grafana should hold of Moray, brought there: a folder, a data source, dashboards and alert rules.

Each has a uid of its own, so a second run finds what the first one made and changes nothing. What Grafana adds to them
is left alone. A run that fails half-way is completed by the next one.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import unified_diff
from importlib import resources
from typing import Any, Literal

from deployments.grafana_port import Body, Grafana, Kind
from monitoring import dashboards
from monitoring.alerts import rules

FOLDER, SOURCE = "moray", "moray-prometheus"
SCRAPED_EVERY = "15s"  # at least: Grafana makes its rate interval of it
SEEN_S = 600  # how far a rule's queries look back; instant ones look at their end
Action = Literal["create", "change", "same"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    kind: Kind
    uid: str
    body: Body


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """`now`: as far as it is there of what we say of it."""

    item: Item
    action: Action
    now: Any = field(default=None, repr=False)

    def diff(self) -> list[str]:
        """Lines of a unified diff, from what is there to what should be."""
        before = [] if self.action == "create" else _lines(self.now)
        return list(unified_diff(before, _lines(self.item.body), "there", self.item.uid, lineterm="", n=2))


def items(prometheus_url: str, *, alerts: bool) -> tuple[Item, ...]:
    """In the order in which they need each other. `prometheus_url`: as Grafana reaches it."""
    source = {
        "uid": SOURCE,
        "name": "Moray Prometheus",
        "type": "prometheus",
        "access": "proxy",
        "url": prometheus_url,
        "jsonData": {"httpMethod": "POST", "timeInterval": SCRAPED_EVERY},
    }
    shown = [
        Item(kind="dashboard", uid=board.uid, body={"dashboard": _dashboard(board.uid), "folderUid": FOLDER})
        for board in dashboards.BOARDS
    ]
    made = (
        Item(kind="folder", uid=FOLDER, body={"title": "Moray"}),
        Item(kind="data source", uid=SOURCE, body=source),
        *shown,
    )
    return (*made, *groups()) if alerts else made


def groups() -> tuple[Item, ...]:
    """Alerts as rules that Grafana evaluates. What they read from recordings, Prometheus must record."""
    found = []
    for group in rules()["groups"]:
        raised = [_rule(rule, group["name"]) for rule in group["rules"] if "alert" in rule]
        every = re.fullmatch(r"(\d+)s", group["interval"])
        assert every is not None, group["interval"]
        body = {"title": group["name"], "folderUid": FOLDER, "interval": int(every[1]), "rules": raised}
        if raised:
            found.append(Item(kind="alert rules", uid=f"{FOLDER}/{group['name']}", body=body))
    return tuple(found)


def sync(grafana: Grafana, wanted: tuple[Item, ...], *, dry_run: bool) -> Iterator[Step]:
    """Each step when it is done, or found to be needed. Raises GrafanaError; the steps until then are done."""
    for item in wanted:
        there = grafana.read(item.kind, item.uid)
        now = _said(item.body, there)
        action: Action = "create" if there is None else "same" if now == item.body else "change"
        if action != "same" and not dry_run:
            grafana.write(item.kind, item.uid, item.body, there)
        yield Step(item=item, action=action, now=now)


def _said(ours: Any, theirs: Any) -> Any:
    """Of theirs what ours says something about."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return {key: _said(value, theirs[key]) for key, value in ours.items() if key in theirs}
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [_said(one, other) for one, other in zip(ours, theirs, strict=True)]
    return theirs


def _lines(body: Any) -> list[str]:
    return json.dumps(body, indent=2, sort_keys=True).splitlines()


def _dashboard(uid: str) -> Body:
    """As committed, with our data source chosen."""
    made: Body = json.loads(resources.files(dashboards).joinpath(f"{uid}.json").read_text("utf-8"))
    made["templating"]["list"][0]["current"] = {"text": "Moray Prometheus", "value": SOURCE}
    return made


def _rule(rule: Body, group: str) -> Body:
    """A: the value, for the words. B: 1 wherever the alert's expression has anything. C: whether it does."""
    said = {key: text.replace("$value", "$values.A.Value") for key, text in rule["annotations"].items()}
    condition = {"type": "gt", "params": [0]}
    return {
        "uid": f"moray-{rule['alert'].lower()}",
        "title": rule["alert"],
        "ruleGroup": group,
        "folderUID": FOLDER,
        "for": rule["for"],
        "labels": rule["labels"],
        "annotations": said,
        "noDataState": "OK",  # an expression that has nothing does not fire
        "execErrState": "Error",
        "condition": "C",
        "data": [
            _query("A", SOURCE, {"expr": rule["expr"], "instant": True}),
            _query("B", SOURCE, {"expr": f"({rule['expr']}) >= bool -Inf", "instant": True}),
            _query("C", "__expr__", {"type": "threshold", "expression": "B", "conditions": [{"evaluator": condition}]}),
        ],
    }


def _query(ref: str, source: str, model: Body) -> Body:
    return {
        "refId": ref,
        "datasourceUid": source,
        "relativeTimeRange": {"from": SEEN_S, "to": 0},
        "model": {"refId": ref, **model},
    }
