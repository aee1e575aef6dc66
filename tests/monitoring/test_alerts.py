"""When each alert fires and when it stays silent: promtool runs the rules as Prometheus would, in time of its own."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus import promtool

from cluster.family import load
from monitoring.alerts import ALERTS, DEFAULT, Alert, rules
from monitoring.metrics import CATALOGUE, GATEWAY, LABELS, LINK
from monitoring.runbook import runbook
from monitoring.slo import DEADLINE, TICKET, Promised, Recording, promised, recordings

RUNBOOK = Path(__file__).parents[2] / "monitoring" / "runbook.md"
EVERY = "10s"
METRICS = {metric.name: metric for metric in CATALOGUE} | {
    f"{metric.name}{suffix}": metric
    for metric in CATALOGUE
    if metric.kind == "histogram"
    for suffix in ("_count", "_sum", "_bucket")
}
RECORDINGS = recordings(DEFAULT)
every = pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What promtool is given, and the labels under which the alert fires then: none where it stays silent."""

    alert: str
    what: str
    series: dict[str, str]
    at: str
    firing: list[dict[str, str]] = field(default_factory=list)
    every: str = EVERY  # between samples, and between looks at the rules


TICK = "moray_control_tick_timestamp_seconds"
LINKS = "moray_links"
LOOKS = "moray_control_tick_seconds_count"
STALE = 'moray_signal_faults_total{tier="pro",fault="stale"}'
MISSING = 'moray_signal_faults_total{tier="pro",fault="missing"}'
DISK = 'moray_control_errors_total{part="record"}'
TARGET = 'moray_target_replicas{tier="mini"}'
READY = 'moray_replicas{tier="mini",state="ready"}'
STARTING = 'moray_replicas{tier="mini",state="starting"}'
REFUSED_RETRIES = 'moray_retries_refused_total{tier="turbo"}'
OPEN = 'moray_breakers_open{tier="turbo"}'
KEPT = 'moray_promises_total{tier="ultra",outcome="kept"}'
MISSED = 'moray_promises_total{tier="ultra",outcome="missed"}'
ARRIVALS = 'moray_arrivals_total{tier="mini"}'
REFUSED = 'moray_admissions_total{tier="mini",action="refuse"}'
UNEVEN = 'moray_expert_imbalance_ratio{tier="ultra",layer="1",replica="a"}'
EVEN = 'moray_expert_imbalance_ratio{tier="ultra",layer="0",replica="a"}'
TOKENS = 'moray_completion_tokens_total{tier="ultra"}'
AGE = 'moray_signal_age_seconds{tier="pro"}'
MOVED = 'moray_expert_rebalances_total{tier="ultra",replica="a"}'
QUEUED = 'moray_video_jobs{status="queued"}'
FINISHED = 'moray_video_jobs_finished_total{code="ok"}'
FAILED = 'moray_video_jobs_finished_total{code="engine_failed"}'
ASKED_WRONGLY = 'moray_video_jobs_finished_total{code="invalid_value"}'
UNSIGNED = 'moray_video_unsigned_total{intended="no"}'
MEANT_SO = 'moray_video_unsigned_total{intended="yes"}'
STORE_ERRORS = "moray_video_store_errors_total"
PENDING = "moray_usage_pending"
UNWRITTEN = "moray_usage_failures_total"
AWAY = "moray_limit_failures_total"
UNSETTLED = "moray_limit_lost_total"
BILLED = 'moray_billed_completion_tokens_total{tier="mini"}'
BILLED_IN = 'moray_billed_prompt_tokens_total{tier="mini"}'
ANSWERED = 'moray_completion_tokens_total{tier="mini"}'
ANSWERED_IN = 'moray_prompt_tokens_total{tier="mini"}'
OK = 'moray_requests_total{tier="mini",code="ok"}'
GONE = 'moray_requests_total{tier="mini",code="client_gone"}'

MINI, PRO, TURBO, ULTRA = ([{"tier": tier}] for tier in ("mini", "pro", "turbo", "ultra"))
HOUR = "x360"


def case(alert: str, what: str, series: dict[str, str], at: str, firing: list[dict[str, str]] | None = None) -> Case:
    return Case(alert=alert, what=what, series=series, at=at, firing=firing or [])


def slow(alert: str, what: str, series: dict[str, str], at: str, firing: list[dict[str, str]] | None = None) -> Case:
    """Samples a minute apart."""
    return replace(case(alert, what, series, at, firing), every="1m")


def days(alert: str, what: str, series: dict[str, str], at: str, firing: list[dict[str, str]] | None = None) -> Case:
    """Samples ten minutes apart: what has shorter windows sees nothing."""
    return replace(case(alert, what, series, at, firing), every="10m")


def counted(answered: str, tokens: int, billed: str, billed_tokens: int) -> dict[str, str]:
    """Tokens a minute of one side, prompts or output; the other one's stand still."""
    idle = dict.fromkeys((ANSWERED, ANSWERED_IN, BILLED, BILLED_IN), "0x120")
    return idle | {answered: f"0+{tokens}x120", billed: f"0+{billed_tokens}x120"}


# Samples are ten seconds apart and begin at second 0, so `0+10x60` is a clock.
CASES = (
    case("GatewayUnseen", "serves", {LINKS: "4x60"}, "5m"),
    case("GatewayUnseen", "is gone", {LINKS: "4x6 stale"}, "3m", [{}]),
    case("GatewayUnseen", "was never there", {TICK: "0+10x60"}, "2m", [{}]),
    case("GatewayUnseen", "one of two is gone", {LINKS: "4x6 stale", f'{LINKS}{{at="b"}}': "4x60"}, "5m"),
    case("GatewayUnseen", "starts again within a minute", {LINKS: "4x6 stale _x4 0x60"}, "5m"),
    case("ControlLoopSilent", "ticks", {TICK: "0+10x60", LINKS: "4x60"}, "5m"),
    case("ControlLoopSilent", "hangs for half a minute", {TICK: "0+10x6 60x30", LINKS: "4x60"}, "90s"),
    case("ControlLoopSilent", "hangs", {TICK: "0+10x6 60x30", LINKS: "4x60"}, "2m", [{}]),
    case("ControlLoopSilent", "is gone", {TICK: "0+10x6 stale", LINKS: "4x60"}, "2m", [{}]),
    case("ControlLoopSilent", "was never there", {LINKS: "0x60"}, "1m", [{}]),
    case("ControlLoopSilent", "is gone, and so are the gateways", {TICK: "0+10x6 stale", LINKS: "4x6 stale"}, "3m"),
    case("ControlLoopSilent", "starts with its gateway", {TICK: "_x2 20+10x30", LINKS: "0x60"}, "40s"),
    case("ControlLoopSilent", "moved", {f'{TICK}{{at="a"}}': "0x60", f'{TICK}{{at="b"}}': "0+10x60"}, "5m"),
    case("SignalsBlind", "each look is faulty", {STALE: "0+5x60", LOOKS: "0+5x60"}, "3m", PRO),
    case("SignalsBlind", "for 30 s", {STALE: "0x12 0+5x60", LOOKS: "0+5x60"}, "2m50s", PRO),
    case("SignalsBlind", "for 10 s", {STALE: "0x12 0+5x1 5x60", LOOKS: "0+5x60"}, "2m50s"),
    case("SignalsBlind", "faults take turns", {STALE: "0+1.5x60", MISSING: "0+1.5x60", LOOKS: "0+5x60"}, "3m", PRO),
    case("SignalsBlind", "one look in ten is faulty", {STALE: "0+0.5x60", LOOKS: "0+5x60"}, "5m"),
    case("SignalsBlind", "sees again", {STALE: "0+5x30 150x60", LOOKS: "0+5x90"}, "7m"),
    case("SignalsFaulty", "one look in five is faulty", {STALE: "0+1x300", LOOKS: "0+5x300"}, "40m", PRO),
    case("SignalsFaulty", "one look in twenty is faulty", {STALE: "0+0.25x300", LOOKS: "0+5x300"}, "40m"),
    case("SignalsFaulty", "a bad minute", {STALE: "0x100 0+5x6 30x200", LOOKS: "0+5x300"}, "30m"),
    case("SignalsOld", "every five seconds is too seldom", {AGE: "5.5x120"}, "12m", PRO),
    case("SignalsOld", "are two seconds old", {AGE: "2x120"}, "12m"),
    case("SignalsOld", "were old for a minute", {AGE: "2x30 5.9x6 2x90"}, "8m"),
    case("ControlLoopErrors", "the disk is full", {DISK: "0x6 1x60"}, "2m", [{"part": "record"}]),
    case("ControlLoopErrors", "was full once", {DISK: "0x6 1x60"}, "8m"),
    case("ControlLoopErrors", "never failed", {DISK: "0x60"}, "5m"),
    case("BelowTarget", "stays one short", {TARGET: "3x60", READY: "2x60"}, "6m", MINI),
    case("BelowTarget", "has none", {TARGET: "3x60", STARTING: "3x60"}, "6m", MINI),
    case("BelowTarget", "is one short for four minutes", {TARGET: "3x60", READY: "2x60"}, "4m"),
    case("BelowTarget", "is complete again", {TARGET: "3x60", READY: "2x40 3x20"}, "8m"),
    case("BelowTarget", "sleeps", {TARGET: "0x60"}, "6m"),
    case("BelowTarget", "drains", {TARGET: "1x60", READY: "2x60"}, "6m"),
    case("RetryBudgetSpent", "an answer did not go on", {REFUSED_RETRIES: "0x6 1x60"}, "2m", TURBO),
    case("RetryBudgetSpent", "the budget is full again", {REFUSED_RETRIES: "0x6 1x60"}, "8m"),
    case("BreakerOpen", "stays open", {OPEN: "0x6 1x60"}, "3m", TURBO),
    case("BreakerOpen", "may close at the first try", {OPEN: "0x6 1x60"}, "100s"),
    case("PromisesBroken", "a fifth is missed", {KEPT: f"0+8{HOUR}", MISSED: f"0+2{HOUR}"}, "1h", ULTRA),
    case("PromisesBroken", "the objective is just missed", {KEPT: f"0+98{HOUR}", MISSED: f"0+2{HOUR}"}, "1h"),
    case("PromisesBroken", "all is well again", {KEPT: "0+8x660", MISSED: "0+2x300 600x360"}, "110m"),
    case("PromisesBroken", "so it was until a minute ago", {KEPT: f"0+8{HOUR}", MISSED: "0+2x354 708x6"}, "1h", ULTRA),
    slow("PromisesBroken", "a twelfth for six hours", {KEPT: "0+110x360", MISSED: "0+10x360"}, "6h", ULTRA),
    slow("PromisesBroken", "a twentieth for six hours", {KEPT: "0+95x360", MISSED: "0+5x360"}, "6h"),
    slow("PromisesBroken", "a twelfth for half an hour of six", {KEPT: "0+110x360", MISSED: "0x330 0+10x30"}, "6h"),
    days("PromisesErode", "one in 25 for a day", {KEPT: "0+96x144", MISSED: "0+4x144"}, "1d", ULTRA),
    days("PromisesErode", "one in 60 for three days", {KEPT: "0+59x432", MISSED: "0+1x432"}, "3d", ULTRA),
    days("PromisesErode", "one in 200 for three days", {KEPT: "0+199x432", MISSED: "0+1x432"}, "3d"),
    days("PromisesErode", "one in 25 for two hours of a day", {KEPT: "0+96x144", MISSED: "0x132 0+4x12"}, "1d"),
    days("PromisesErode", "well since yesterday", {KEPT: "0+96x432", MISSED: "0+4x200 800x232"}, "3d"),
    days("PromisesErode", "three misses in a quiet day", {KEPT: "0x144", MISSED: "0x1 1x1 2x1 3x141"}, "1d"),
    case("PromisesUncounted", "a gateway counts none", {LINKS: "4x60"}, "6m", [{}]),
    case("PromisesUncounted", "they are counted", {LINKS: "4x60", KEPT: "0x60"}, "6m"),
    case("PromisesUncounted", "a gateway starts", {LINKS: "4x60", KEPT: "_x12 0x60"}, "6m"),
    case("PromisesUncounted", "nothing is seen at all", {TICK: "0+10x60"}, "6m"),
    case("PromisesBroken", "a bad minute", {KEPT: f"0+8{HOUR}", MISSED: "0x354 0+20x6"}, "1h"),
    case("PromisesBroken", "two misses at night", {KEPT: f"0{HOUR}", MISSED: "0x340 1x5 2x60"}, "1h"),
    case("PromisesBroken", "nothing is asked", {KEPT: f"9{HOUR}", MISSED: f"9{HOUR}"}, "1h"),
    case("Shedding", "a tenth is refused", {ARRIVALS: "0+10x60", REFUSED: "0+1x60"}, "8m", MINI),
    case("Shedding", "one in fifty is refused", {ARRIVALS: "0+50x60", REFUSED: "0+1x60"}, "8m"),
    case("Shedding", "for a moment", {ARRIVALS: "0+10x90", REFUSED: "0x30 40x60"}, "6m"),
    case("ExpertsUneven", "one layer of two", {UNEVEN: "1.8x180", EVEN: "1x180", TOKENS: "0+90x180"}, "18m", ULTRA),
    case("ExpertsUneven", "for ten minutes", {UNEVEN: "1.8x180", TOKENS: "0+90x180"}, "10m"),
    case("ExpertsUneven", "evened out by a rebalance", {UNEVEN: "1.8x60 1.1x120", TOKENS: "0+90x180"}, "20m"),
    case("ExpertsUneven", "less than half as much again", {UNEVEN: "1.4x180", TOKENS: "0+90x180"}, "20m"),
    case("ExpertsUneven", "a handful of rows", {UNEVEN: "2x180", TOKENS: "0+2x180"}, "20m"),
    case("ExpertsUneven", "nothing is routed any more", {UNEVEN: "1.8x60 stale", TOKENS: "0+90x60 5400x120"}, "20m"),
    case(
        "ExpertsRestless",
        "every two minutes",
        {MOVED: "0x11 1x11 2x11 3x11 4x11 5x11 6x11 7x11 8x11 9x11 10x60"},
        "25m",
        ULTRA,
    ),
    case("ExpertsRestless", "moved twice and rest", {MOVED: "0x30 1x30 2x120"}, "25m"),
    case("ExpertsRestless", "rest again", {MOVED: "0+1x30 30x300"}, "45m"),
    case("VideoBacklog", "two hours wait", {QUEUED: "80x240", FINISHED: "0+0.1x240"}, "35m", [{}]),
    case("VideoBacklog", "a quarter of an hour waits", {QUEUED: "9x240", FINISHED: "0+0.1x240"}, "35m"),
    case("VideoBacklog", "nothing ever finishes", {QUEUED: "1x240"}, "35m", [{}]),
    case("VideoBacklog", "the first job is under way", {QUEUED: "1x240"}, "12m"),
    case("VideoBacklog", "nothing waits", {QUEUED: "0x240"}, "35m"),
    case("VideoUnsigned", "one is", {UNSIGNED: "0x30 1x60"}, "6m", [{}]),
    case("VideoUnsigned", "the family file says so", {MEANT_SO: "0+1x90"}, "10m"),
    case("VideoUnsigned", "long ago", {UNSIGNED: "0x30 1x180"}, "25m"),
    case("VideoJobsFail", "one in five", {FINISHED: "0+0.4x180", FAILED: "0+0.1x180"}, "30m", [{}]),
    case("VideoJobsFail", "one in fifty", {FINISHED: "0+0.98x180", FAILED: "0+0.02x180"}, "30m"),
    case("VideoJobsFail", "the only one", {FAILED: "0x60 1x120"}, "30m"),
    case("VideoJobsFail", "clients ask for what is not there", {ASKED_WRONGLY: "0+0.1x180"}, "30m"),
    case("VideoStoreUnreachable", "for three minutes", {STORE_ERRORS: "0+10x30"}, "4m", [{}]),
    case("VideoStoreUnreachable", "once", {STORE_ERRORS: "0x6 1x60"}, "4m"),
    case("UsageUnwritten", "the disk is full", {PENDING: "0x6 1+5x60", UNWRITTEN: "0x6 0+5x60"}, "7m", [{}]),
    case("UsageUnwritten", "the disk hangs", {PENDING: "0x6 1+100x90", UNWRITTEN: "0x96"}, "9m", [{}]),
    case("UsageUnwritten", "a few at each look, all written", {PENDING: "20x60", UNWRITTEN: "0x60"}, "9m"),
    case("UsageUnwritten", "for two minutes", {PENDING: "0x12 9x12 0x30", UNWRITTEN: "0x12 0+5x12 60x30"}, "7m"),
    case("UsageUnwritten", "only the database is away", {PENDING: "0x60", UNWRITTEN: "0+5x60"}, "9m"),
    case("UsageFails", "the database is away", {UNWRITTEN: "0+5x60"}, "9m", [{}]),
    case("UsageFails", "was away for two minutes", {UNWRITTEN: "0+5x12 60x60"}, "9m"),
    case("UsageFails", "never failed", {UNWRITTEN: "0x60"}, "9m"),
    case("LimitsUnreachable", "for three minutes", {AWAY: "0+10x30"}, "4m", [{}]),
    case("LimitsUnreachable", "once", {AWAY: "0x6 1x60"}, "4m"),
    case("LimitsUnsettled", "a gateway stood still", {UNSETTLED: "0x30 7x60"}, "6m", [{}]),
    case("LimitsUnsettled", "never", {UNSETTLED: "0x90"}, "10m"),
    case("LimitsUnsettled", "long ago", {UNSETTLED: "0x30 7x300"}, "45m"),
    slow("UsageDisagrees", "a twentieth is not billed", counted(ANSWERED, 1000, BILLED, 950), "90m", MINI),
    slow("UsageDisagrees", "prompts are not billed", counted(ANSWERED_IN, 1000, BILLED_IN, 0), "90m", MINI),
    slow("UsageDisagrees", "all is billed", counted(ANSWERED, 1000, BILLED, 1000), "90m"),
    slow("UsageDisagrees", "one in 200 is not yet", counted(ANSWERED, 1000, BILLED, 995), "90m"),
    slow("UsageDisagrees", "twice is billed", counted(ANSWERED, 1000, BILLED, 2000) | {OK: "0+9x120"}, "90m", MINI),
    slow(
        "UsageDisagrees",
        "clients leave in the middle of answers",
        counted(ANSWERED, 1000, BILLED, 1200) | {OK: "0+9x120", GONE: "0+1x120"},
        "90m",
    ),
    slow(
        "UsageDisagrees",
        "clients leave, and answers are not billed",
        counted(ANSWERED, 1000, BILLED, 500) | {OK: "0+9x120", GONE: "0+1x120"},
        "90m",
        MINI,
    ),
    slow("UsageDisagrees", "a handful of tokens", counted(ANSWERED, 10, BILLED, 0), "90m"),
)


@pytest.fixture(scope="session")
def rule_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rules") / "moray.yml"
    file.write_text(yaml.safe_dump(rules()))
    return file


def trial(case: Case, rule_file: Path) -> dict[str, Any]:
    """In promtool's words. A firing alert is a sample of the series ALERTS."""
    severity = next(alert.severity for alert in ALERTS if alert.name == case.alert)
    names = {"__name__": "ALERTS", "alertname": case.alert, "alertstate": "firing", "severity": severity}
    sample = [{"labels": _selector(names | labels), "value": 1} for labels in case.firing]
    query = {"expr": _selector({"__name__": "ALERTS", "alertname": case.alert, "alertstate": "firing"})}
    return {
        "rule_files": [str(rule_file)],
        "evaluation_interval": case.every,
        "tests": [
            {
                "interval": case.every,
                "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
                "promql_expr_test": [query | {"eval_time": case.at, "exp_samples": sample}],
            }
        ],
    }


def _selector(labels: dict[str, str]) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}: {case.what}")
def test_an_alert_fires_when_it_should_and_only_then(case: Case, rule_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "trial.yml"
    file.write_text(yaml.safe_dump(trial(case, rule_file)))
    promtool("test", "rules", file)


def test_a_second_gateway_that_shows_the_same_replicas_and_control_loop_moves_no_alert(
    rule_file: Path, tmp_path: Path
) -> None:
    own = {metric.name for metric in (*GATEWAY, *LINK)}
    quick = [case for case in CASES if case.every == EVERY]
    twice = [
        replace(
            case, series=case.series | {_beside(name): v for name, v in case.series.items() if _bare(name) not in own}
        )
        for case in quick
    ]
    trials = [trial(case, rule_file) for case in twice]
    file = tmp_path / "trial.yml"
    file.write_text(yaml.safe_dump(trials[0] | {"tests": [test for each in trials for test in each["tests"]]}))
    promtool("test", "rules", file)


def _bare(series: str) -> str:
    return series.partition("{")[0]


def _beside(series: str) -> str:
    """The same, as another page shows it."""
    name, _, labels = series.partition("{")
    return f'{name}{{instance="other"' + (f",{labels}" if labels else "}")


@every
def test_each_alert_was_seen_to_fire_and_to_stay_silent(alert: Alert) -> None:
    assert {bool(case.firing) for case in CASES if case.alert == alert.name} == {True, False}


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_prometheus_takes_the_rules(scale: float, tmp_path: Path) -> None:
    file = tmp_path / "moray.yml"
    file.write_text(yaml.safe_dump(rules(scale=scale)))
    assert f"{len(RECORDINGS) + len(ALERTS)} rules found" in promtool("check", "rules", file)


def test_a_scale_shortens_every_duration_and_leaves_thresholds_alone() -> None:
    (group,) = rules(scale=0.1)["groups"]
    blind = next(rule for rule in group["rules"] if rule.get("alert") == "SignalsBlind")
    assert (group["interval"], blind["for"]) == ("1000ms", "1000ms")
    assert blind["expr"].count("[6000ms]") == 2
    silent = next(rule for rule in group["rules"] if rule.get("alert") == "ControlLoopSilent")
    assert "> 10 or absent" in silent["expr"]


@pytest.mark.parametrize("rule", [*RECORDINGS, *ALERTS], ids=lambda rule: rule.name)
def test_expressions_name_metrics_and_labels_of_the_catalogue_only(rule: Alert | Recording) -> None:
    recorded = {each.name for each in RECORDINGS}
    expr = rule.expr
    for name in sorted(recorded, key=len, reverse=True):
        expr = expr.replace(name, "")
    for name, matchers in re.findall(r"\b(moray_\w+)(?:\{([^}]*)\})?", expr):
        metric = METRICS[name]
        for label, value in re.findall(r'(\w+)="(\w+)"', matchers):
            assert label in metric.labels
            assert value in re.findall(r"\w+", LABELS[label])
    for kept, name in re.findall(r"by \((\w+)\) \((?:\w+\()?(moray_\w+)", expr):
        assert kept in METRICS[name].labels


@every
def test_a_runbook_names_metrics_of_the_catalogue_only(alert: Alert) -> None:
    told = f"{alert.means} {alert.look} {alert.mend}"
    assert set(re.findall(r"\bmoray_\w+", told)) <= set(METRICS)


@every
def test_a_summary_uses_labels_that_the_alert_has(alert: Alert) -> None:
    wide = alert.expr + " ".join(each.expr for each in RECORDINGS if each.name in alert.expr)
    assert set(re.findall(r"\$labels\.(\w+)", alert.summary)) == set(re.findall(r"by \((\w+)\)", wide))


def test_names_are_unique() -> None:
    assert len({alert.name for alert in ALERTS}) == len(ALERTS)


# The objectives of a family.


def fires(alert: str, promised: Promised, folder: Path, firing: list[dict[str, str]]) -> None:
    """On a thousandth of ultra's requests missed for half a day."""
    rule_file, file = folder / "rules.yml", folder / "trial.yml"
    rule_file.write_text(yaml.safe_dump(rules(promised)))
    series = {KEPT: "0+1998x72", MISSED: "0+2x72"}
    file.write_text(yaml.safe_dump(trial(days(alert, "", series, "12h", firing), rule_file)))
    promtool("test", "rules", file)


def test_the_objective_of_a_tier_is_its_own(tmp_path: Path) -> None:
    fires("PromisesErode", Promised(objectives={"ultra": 0.9995}), tmp_path, ULTRA)


def test_the_objective_of_a_tier_is_no_other_ones(tmp_path: Path) -> None:
    fires("PromisesErode", Promised(objectives={"mini": 0.9995}), tmp_path, [])


def test_a_family_promises_what_its_file_says() -> None:
    family = load("laptop")
    tiers = {key: 0.99 for key in family.tiers}
    assert family.video is not None
    assert promised(family) == Promised(objectives=tiers, video_deadline_s=family.video.slo.deadline_s)


def test_objectives_that_are_the_default_leave_the_rules_as_they_are() -> None:
    assert rules(Promised(objectives={"ultra": 0.99, "mini": 0.99})) == rules()


def test_a_family_without_video_promises_none() -> None:
    assert DEADLINE not in {each.name for each in recordings(Promised(video_deadline_s=None))}


def test_days_are_scaled_too() -> None:
    assert "[3600000ms]" in str(rules(scale=1 / 72))
    assert "3d" in TICKET[1].expr


def test_the_runbook_that_ships_is_the_one_of_the_alerts() -> None:
    assert RUNBOOK.read_text(encoding="utf-8") == runbook(), "mend: moray render runbook --out monitoring"
