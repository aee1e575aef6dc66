"""When somebody should look: recording and alert rules as data, rendered to what Prometheus reads.

Each expression names metrics of the catalogue only. Shares are compared rather than counts, so that
no threshold depends on the size of the family. The rules assume that everything is scraped at least every 15 s.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["page", "ticket"]  # somebody now, or somebody in working hours

OBJECTIVE = 0.99  # of ended requests kept their tier's promises
FAST_BURN = 14.4  # times the missed share that the objective allows: a month's worth is spent in two days
TOO_FAST = round(FAST_BURN * (1 - OBJECTIVE), 6)
FEWEST_MISSED = 5  # one miss at night is no trend
SILENT_S = 10  # five control ticks
VIDEO_WAIT_S = 3600
UNEVEN = 1.5  # most over mean: the ranks wait for one that computes half as much again
FEWEST_TOKENS = 1000  # in five minutes: chance alone makes fewer uneven
RESTLESS = 6  # rebalances in half an hour: none lasts five minutes
EVERY = "10s"  # how often the rules are evaluated
DURATION = re.compile(r"\b(\d+)(s|m|h)\b")
UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    name: str
    expr: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """`lasting`: how long the expression must hold. `means`, `look`, `mend`: the runbook."""

    name: str
    severity: Severity
    expr: str
    lasting: str
    summary: str
    means: str
    look: str
    mend: str


def _share(part: str, whole: str, window: str) -> str:
    return f"sum by (tier) (rate({part}[{window}])) / sum by (tier) (rate({whole}[{window}]))"


def _missed(window: str) -> Recording:
    return Recording(
        name=f"tier:moray_promises_missed:ratio_rate{window}",
        expr=_share('moray_promises_total{outcome="missed"}', "moray_promises_total", window),
    )


RECORDINGS = (
    _missed("5m"),
    _missed("1h"),
    Recording(
        name="tier:moray_admissions_refused:ratio_rate5m",
        expr=_share('moray_admissions_total{action="refuse"}', "moray_arrivals_total", "5m"),
    ),
)

ALERTS = (
    Alert(
        name="ControlLoopSilent",
        severity="page",
        # The age when it was scraped, so that it does not depend on how often that is.
        expr="min(timestamp(moray_control_tick_timestamp_seconds) - moray_control_tick_timestamp_seconds)"
        f" > {SILENT_S} or absent(moray_control_tick_timestamp_seconds) and on() count(moray_links) > 0",
        lasting="20s",
        summary="No scaling decision is being taken",
        means="The control loop hangs, or is gone while gateways serve. The last targets stay in force: nothing "
        "breaks at once, nothing grows with demand either.",
        look="The actor moray-control in `ray list actors`, its log, moray_control_errors_total, the node that it "
        "was on.",
        mend="Gateways start it where there is none. If it hangs, kill the actor: it comes back with the targets of "
        "before.",
    ),
    Alert(
        name="SignalsBlind",
        severity="page",
        expr="sum by (tier) (rate(moray_signal_faults_total[1m]))"
        " >= 0.5 * scalar(sum(rate(moray_control_tick_seconds_count[1m])))",
        lasting="10s",
        summary="Signals of {{ $labels.tier }} cannot be believed",
        means="At least half of the looks of the last minute were faulty. The tier keeps its replicas until they are "
        "good.",
        look="The label fault of moray_signal_faults_total: unreachable, stale and missing point to replicas or "
        "Prometheus, skewed to clocks, contradictory to two sources that disagree.",
        mend="Restore what is scraped; set clocks right. Do not scale by hand unless demand rises meanwhile.",
    ),
    Alert(
        name="ControlLoopErrors",
        severity="ticket",
        expr="sum by (part) (increase(moray_control_errors_total[5m])) > 0",
        lasting="0s",
        summary="The part {{ $labels.part }} of the control loop fails",
        means="look: signals could not be read; step: the policy failed and the last decision stays; apply: targets "
        "were not taken; lend: GPUs did not change hands; record: the log of decisions was not written, mostly "
        "a full disk.",
        look="The log of the actor moray-control, which names the place and the cause; for record, the disk of its "
        "node.",
        mend="record: make room. apply, lend: see that Ray's controller answers. step: replay the log and report the "
        "fault.",
    ),
    Alert(
        name="BelowTarget",
        severity="page",
        expr="max by (tier) (moray_target_replicas)"
        ' - (max by (tier) (moray_replicas{state="ready"}) or 0 * max by (tier) (moray_target_replicas)) > 0',
        lasting="5m",
        summary="{{ $labels.tier }} lacks {{ $value }} replicas that it should have",
        means="Replicas were asked for and have not become ready for five minutes.",
        look='moray_replicas{state="starting"} and moray_start_seconds: a large checkpoint may just take this long. '
        "Else the logs of the replicas, and pending placement groups in `ray status`.",
        mend="Pending: add nodes, or lower the tier's minimum. Starting again and again: the log names the "
        "checkpoint's fault.",
    ),
    Alert(
        name="RetryBudgetSpent",
        severity="page",
        expr="sum by (tier) (increase(moray_retries_refused_total[5m])) > 0",
        lasting="0s",
        summary="Answers of {{ $labels.tier }} broke and were not taken up elsewhere",
        means="So many replicas failed that going on elsewhere would have been a storm of retries. Clients got errors.",
        look="moray_resumed_total and moray_breakers_open by tier, the logs of the replicas that died.",
        mend="Stop what kills replicas: memory, a bad node, a bad release. The budget fills again by itself.",
    ),
    Alert(
        name="BreakerOpen",
        severity="ticket",
        expr="max by (tier) (moray_breakers_open) > 0",
        lasting="1m",
        summary="{{ $value }} replicas of {{ $labels.tier }} get no requests",
        means="They failed, and the tries since have failed too. Serve still counts them as healthy.",
        look="The logs of the tier's replicas, the token links (moray_link_failures_total), the network between the "
        "nodes.",
        mend="Kill a replica that hangs: another one is started. Drain the node where all replicas on it are affected.",
    ),
    Alert(
        name="PromisesBroken",
        severity="page",
        expr=" and ".join(
            (
                *(f"tier:moray_promises_missed:ratio_rate{window} > {TOO_FAST}" for window in ("5m", "1h")),
                f'sum by (tier) (increase(moray_promises_total{{outcome="missed"}}[1h])) >= {FEWEST_MISSED}',
            )
        ),
        lasting="0s",
        summary="{{ $value | humanizePercentage }} of the requests for {{ $labels.tier }} miss its promises",
        means=f"The objective is {OBJECTIVE:.0%}. Over the last hour and still now it is spent {FAST_BURN} times too "
        "fast.",
        look="moray_ttft_seconds and moray_tpot_seconds of the tier, held requests, moray_wanted_replicas above the "
        "target: then the GPU budget is the limit. Else BelowTarget and BreakerOpen.",
        mend="Raise the budget, allow spill, or lower what the plans may ask for. After a release: go back.",
    ),
    Alert(
        name="Shedding",
        severity="page",
        expr="tier:moray_admissions_refused:ratio_rate5m > 0.05",
        lasting="2m",
        summary="{{ $value | humanizePercentage }} of the requests for {{ $labels.tier }} are refused",
        means="Admission refuses what could not be answered in time. Clients are told when to come back.",
        look="moray_rejections_total by code; moray_wanted_replicas against moray_target_replicas and moray_gpus.",
        mend="Wanted above target: the GPU budget is the limit, raise it. Equal: replicas are starting, wait. One "
        "tenant's flood: lower that plan.",
    ),
    Alert(
        name="ExpertsUneven",
        severity="ticket",
        expr=f"max by (tier) (moray_expert_imbalance_ratio) > {UNEVEN}"
        f" and sum by (tier) (increase(moray_completion_tokens_total[5m])) >= {FEWEST_TOKENS}",
        lasting="15m",
        summary="A rank of {{ $labels.tier }} computes {{ $value | humanize }} times the mean of its group",
        means="Each layer waits for its busiest rank. For a quarter of an hour the experts that requests choose have "
        "lain together, and no rebalance has parted them.",
        look="`moray experts`: which experts carry the load, for which domains, and how many copies they have; "
        "moray_expert_rebalances_total.",
        mend="Give the tier redundant slots, or more of them, and let it rebalance. Already so: one expert may take "
        "more than its copies can share, or moving would cost more than it gains.",
    ),
    Alert(
        name="ExpertsRestless",
        severity="ticket",
        expr=f"max by (tier) (increase(moray_expert_rebalances_total[30m])) >= {RESTLESS}",
        lasting="0s",
        summary="Experts of {{ $labels.tier }} move again and again",
        means="No placement has lasted five minutes over the last half hour: each rebalance costs decoding a stall, "
        "and the load that it was made for is gone soon.",
        look="moray_expert_rebalance_stall_seconds, moray_expert_moves_total, and whether requests of different "
        "domains take turns: moray_expert_tokens_total by domain.",
        mend="Lengthen window_s of the tier's experts until it covers the turns, or turn rebalance off and give "
        "redundant slots instead.",
    ),
    Alert(
        name="VideoBacklog",
        severity="ticket",
        expr=f'max(moray_video_jobs{{status="queued"}}) > {VIDEO_WAIT_S}'
        " * (sum(rate(moray_video_jobs_finished_total[15m])) or vector(0))",
        lasting="15m",
        summary="{{ $value }} video jobs wait, more than an hour's work",
        means="At the pace of the last quarter of an hour the last queued job waits more than an hour, or nothing "
        "finishes.",
        look='moray_target_replicas{tier="video"}, moray_video_preemptions_total, moray_video_step_seconds.',
        mend="No replicas: the expert groups hold the GPUs, raise the budget or video's minimum. Replicas without "
        "steps: their logs.",
    ),
)


def rules(scale: float = 1.0) -> dict[str, Any]:
    """The rule file. `scale` shortens windows, `for` and the interval alike, for trying out; thresholds stay."""
    recorded = [{"record": each.name, "expr": _windows(each.expr, scale)} for each in RECORDINGS]
    raised = [_rule(alert, scale) for alert in ALERTS]
    return {"groups": [{"name": "moray", "interval": _scaled(EVERY, scale), "rules": [*recorded, *raised]}]}


def _rule(alert: Alert, scale: float) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": _windows(alert.expr, scale),
        "for": _scaled(alert.lasting, scale),
        "labels": {"severity": alert.severity},
        "annotations": {"summary": alert.summary, "runbook": f"{alert.means} Look: {alert.look} Mend: {alert.mend}"},
    }


def _windows(expr: str, scale: float) -> str:
    return re.sub(r"\[[^]]*\]", lambda window: _scaled(window[0], scale), expr)


def _scaled(durations: str, scale: float) -> str:
    if scale == 1:
        return durations
    return DURATION.sub(lambda found: f"{round(int(found[1]) * UNITS_MS[found[2]] * scale)}ms", durations)
