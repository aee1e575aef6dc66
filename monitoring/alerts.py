"""When somebody should look: recording and alert rules as data, rendered to what Prometheus reads.

Each expression names metrics of the catalogue only. Shares are compared rather than counts, so that
no threshold depends on the size of the family. The rules assume that everything is scraped at least every 15 s.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

from monitoring.slo import DEADLINE, PAGE, REFUSED, TICKET, Promised, recordings

Severity = Literal["page", "ticket"]  # somebody now, or somebody in working hours

SILENT_S = 10  # five control ticks
OLD_S = 5  # of the six seconds after which a look counts no more
UNEVEN = 1.5  # most over mean: the ranks wait for one that computes half as much again
FEWEST_TOKENS = 1000  # in five minutes: chance alone makes fewer uneven
RESTLESS = 6  # rebalances in half an hour: none lasts five minutes
OUR_FAULTS = "replica_lost|engine_failed|start_timeout|unavailable|invalid_checkpoint|internal_error"
FEWEST_JOBS = 3  # one bad job is no trend
MOST_PENDING = 1000  # events at every scrape of five minutes: a commit takes a second or so of them
LACKING = 0.01  # of the tokens answered: gateways count both
EXCEEDING = 0.1  # an answer of an hour that its client left is billed, and not counted as answered
LEFT = 0.01  # of the requests: of more that did not end well no excess is judged
EVERY = "10s"  # how often the rules are evaluated
DURATION = re.compile(r"\b(\d+)(s|m|h|d)\b")
UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
DEFAULT = Promised()
ANSWERED = " + ".join(
    f"sum by (tier) (increase({name}[1h]))" for name in ("moray_prompt_tokens_total", "moray_completion_tokens_total")
)
BILLED = ANSWERED.replace("moray_", "moray_billed_")
ENOUGH = f"({ANSWERED} >= {FEWEST_TOKENS})"


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


ALERTS = (
    Alert(
        name="GatewayUnseen",
        severity="page",
        expr="absent(moray_links)",
        lasting="1m",
        summary="No gateway is scraped",
        means="Either nobody can reach the models, or Prometheus cannot reach the gateways: until it does, no other "
        "alert here can fire.",
        look="GET /health of the gateway, then the page of targets of Prometheus.",
        mend="No answer: start Moray, or see that Serve's proxy runs. An answer: correct the target, or what the "
        "network lets pass.",
    ),
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
        name="SignalsFaulty",
        severity="ticket",
        expr="sum by (tier) (rate(moray_signal_faults_total[30m]))"
        " >= 0.1 * scalar(sum(rate(moray_control_tick_seconds_count[30m])))",
        lasting="15m",
        summary="One look in ten at {{ $labels.tier }} cannot be believed",
        means="Decisions still follow demand, a little late each time. It is how SignalsBlind begins.",
        look="The label fault of moray_signal_faults_total, and which process comes and goes meanwhile.",
        mend="As for SignalsBlind: restore what is scraped, set clocks right.",
    ),
    Alert(
        name="SignalsOld",
        severity="ticket",
        expr=f"max by (tier) (avg_over_time(moray_signal_age_seconds[5m])) > {OLD_S}",
        lasting="5m",
        summary="Decisions for {{ $labels.tier }} rest on signals {{ $value | humanizeDuration }} old",
        means="Signals come, but late: after six seconds they count no more, and the tier keeps its replicas.",
        look="With control.prometheus_url, the scrape interval of that Prometheus; else the load of the nodes, and "
        "moray_control_tick_seconds.",
        mend="Scrape at least every 5 s, as `moray render prometheus` says; or leave prometheus_url out, and the loop "
        "asks itself.",
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
        expr=" or ".join(burn.expr for burn in PAGE),
        lasting="0s",
        summary="{{ $value | humanizePercentage }} of the requests for {{ $labels.tier }} miss its promises",
        means="What the tier's objective allows to be missed in 30 days is gone in two days, or in five, if this goes "
        "on; slo.objective of the family file says how much that is.",
        look="moray_ttft_seconds and moray_tpot_seconds of the tier, held requests, moray_wanted_replicas above the "
        "target: then the GPU budget is the limit. Else BelowTarget and BreakerOpen.",
        mend="Raise the budget, allow spill, or lower what the plans may ask for. After a release: go back.",
    ),
    Alert(
        name="PromisesErode",
        severity="ticket",
        expr=" or ".join(burn.expr for burn in TICKET),
        lasting="0s",
        summary="{{ $value | humanizePercentage }} of the requests for {{ $labels.tier }} miss its promises, slowly",
        means="Over days more is missed than the objective allows, never enough at once for a page.",
        look="moray_ttft_seconds and moray_tpot_seconds of the tier by the hour: a daily peak, or all day? Then "
        "moray_decisions_total by cause: budget means that GPUs lack.",
        mend="A peak: more replicas at least, or a longer idle time. All day: a smaller max_running, more GPUs, or a "
        "promise that the tier can keep.",
    ),
    Alert(
        name="PromisesUncounted",
        severity="ticket",
        expr="absent(moray_promises_total) and on() count(moray_links) > 0",
        lasting="5m",
        summary="Nobody counts whether promises are kept",
        means="Gateways are seen, their counts of promises are not: the alerts on promises cannot fire.",
        look="moray_promises_total on the page of a gateway; relabelling of the scrape that drops it.",
        mend="Scrape the page whole. Gateways of another release: bring them to this one.",
    ),
    Alert(
        name="Shedding",
        severity="page",
        expr=f"{REFUSED} > 0.05",
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
        expr=f'max(moray_video_jobs{{status="queued"}}) > scalar({DEADLINE})'
        " * (sum(rate(moray_video_jobs_finished_total[15m])) or vector(0))",
        lasting="15m",
        summary="{{ $value }} video jobs wait, more than can end before their deadline",
        means="At the pace of the last quarter of an hour the last queued job waits longer than slo.deadline_s, or "
        "nothing finishes.",
        look='moray_target_replicas{tier="video"}, moray_video_preemptions_total, moray_video_step_seconds.',
        mend="No replicas: the expert groups hold the GPUs, raise the budget or video's minimum. Replicas without "
        "steps: their logs.",
    ),
    Alert(
        name="VideoUnsigned",
        severity="page",
        expr='sum(increase(moray_video_unsigned_total{intended="no"}[15m])) > 0',
        lasting="0s",
        summary="Videos are finished without content credentials",
        means="The family file wants every file signed, and some of the last quarter of an hour are not: nobody can "
        "prove later where they came from.",
        look="`moray video verify` on one of them; the logs of the video replicas; whether replicas of an earlier "
        "family file still run.",
        mend="Renew certificate and key of video.provenance where they have run out. Delete what is unsigned and make "
        "it again. Where it is meant so, set video.provenance.sign to false.",
    ),
    Alert(
        name="VideoJobsFail",
        severity="ticket",
        expr=f'sum(increase(moray_video_jobs_finished_total{{code=~"{OUR_FAULTS}"}}[30m]))'
        " > 0.1 * sum(increase(moray_video_jobs_finished_total[30m]))"
        f' and sum(increase(moray_video_jobs_finished_total{{code=~"{OUR_FAULTS}"}}[30m])) >= {FEWEST_JOBS}',
        lasting="0s",
        summary="{{ $value | humanize }} video jobs of the last half hour have failed, more than one in ten",
        means="They took their replicas down three times, or the engine gave up. Their clients see the reason in the "
        "job's error; what they asked wrongly does not count here.",
        look="moray_video_jobs_finished_total by code, error.message of a failed job, the logs of the video replicas.",
        mend="replica_lost: memory of the node or of the GPU, lower video.concurrent or the sizes. engine_failed: what "
        "the message says. After a release: go back.",
    ),
    Alert(
        name="VideoStoreUnreachable",
        severity="page",
        expr="sum(rate(moray_video_store_errors_total[1m])) > 0",
        lasting="1m",
        summary="The store of video jobs does not answer",
        means="New jobs are refused with 503 and nothing begins. What runs goes on, and writes its end once the store "
        "answers; nothing that was accepted is lost.",
        look="The log of the gateway, which says why; the disk of the state folder, or the PostgreSQL of "
        "video.database.",
        mend="Make room on the disk, or start the database. Gateways find it again by themselves.",
    ),
    Alert(
        name="UsageUnwritten",
        severity="page",
        expr="max(min_over_time(moray_usage_pending[5m])) > 0"
        " and on() sum(increase(moray_usage_failures_total[5m])) > 0"
        f" or max(min_over_time(moray_usage_pending[5m])) > {MOST_PENDING}",
        lasting="0s",
        summary="{{ $value }} events of usage have waited for the disk for five minutes",
        means="Answers go on, each up to a second later, and what they used is in the memory of a gateway alone: if it "
        "dies, nobody is charged for it. From 100,000 on, events go into the log (moray_usage_refused_total).",
        look="The log of the gateway, which says why, with the word usage; the disk of its state folder.",
        mend="Make room, or mend the disk; do not restart the gateway before. It writes what waits by itself. Lines "
        "`usage: no room for` of the log hold the events that were left out.",
    ),
    Alert(
        name="UsageFails",
        severity="ticket",
        expr="sum(rate(moray_usage_failures_total[2m])) > 0",
        lasting="5m",
        summary="The ledger of usage cannot be written or shipped",
        means="Events wait in a gateway's memory, or, where there is accounts.database, in its journal on disk. Those "
        "on disk are not lost, but no report has them yet.",
        look="moray_usage_pending: above 0 it is the disk, and UsageUnwritten follows. At 0 it is the PostgreSQL of "
        "accounts.database. The log of the gateway says why.",
        mend="Start the database, or make room. Gateways write and ship what waits by themselves, each event once.",
    ),
    Alert(
        name="LimitsUnreachable",
        severity="page",
        expr="sum(rate(moray_limit_failures_total[1m])) > 0",
        lasting="1m",
        summary="The store of limits does not answer",
        means="Keys whose plans have limits are refused with 503, chats and videos alike; all others are served. What "
        "ended meanwhile is settled once the store answers, as long as its gateway lives; failed videos end then.",
        look="The log of the gateway, which says why, with the word limits; the Redis or PostgreSQL of limits.store, "
        "or the disk of the state folder.",
        mend="Start the store. Gateways find it again by themselves. A Redis that came back without appendonly is "
        "refused where plans have limits per day or month: switch it on.",
    ),
    Alert(
        name="LimitsUnsettled",
        severity="ticket",
        expr="sum(increase(moray_limit_lost_total[30m])) > 0",
        lasting="0s",
        summary="{{ $value | humanize }} reservations of limits ended before they were settled",
        means="A gateway did not renew them for a minute, or the store forgot them. They count as they were reserved, "
        "those that the store forgot not at all; bills are not touched.",
        look="moray_limit_failures_total; whether a gateway stood still (moray_control_tick_seconds, the load of its "
        "node); restarts of the store, and what it kept.",
        mend="Give gateways the processor time that they need. A store that forgets: Redis with appendonly yes and "
        "maxmemory-policy noeviction, or PostgreSQL.",
    ),
    Alert(
        name="UsageDisagrees",
        severity="ticket",
        expr=f"1 - ({BILLED}) / {ENOUGH} > {LACKING} or ({BILLED}) / {ENOUGH} - 1 > {EXCEEDING}"
        ' unless on() sum(increase(moray_requests_total{code!="ok"}[1h]))'
        f' > {LEFT} * sum(increase(moray_requests_total{{code="ok"}}[1h]))',
        lasting="10m",
        summary="Tokens billed and tokens answered by {{ $labels.tier }} differ by {{ $value | humanizePercentage }}",
        means="Over an hour the ledger has fewer tokens than answers had, or many more although few requests broke or "
        "were left. For an hour after UsageUnwritten it is only late.",
        look="moray_billed_completion_tokens_total against moray_completion_tokens_total, and those of prompts; "
        "moray_usage_pending, moray_usage_failures_total; then `moray usage --by tier,code` of the day: codes other "
        "than ok are what was given to clients that left.",
        mend="Fewer: mend what UsageFails and UsageUnwritten name, and do not settle accounts before. More, with "
        "nothing broken: report the fault. The log has a line of each request with its key and tokens to compare.",
    ),
)


def rules(promised: Promised = DEFAULT, scale: float = 1.0) -> dict[str, Any]:
    """The rule file. `scale` shortens windows, `for` and the interval alike, for trying out; thresholds stay."""
    recorded = [{"record": each.name, "expr": _windows(each.expr, scale)} for each in recordings(promised)]
    raised = [_rule(alert, scale) for alert in ALERTS]
    return {"groups": [{"name": "moray", "interval": scaled(EVERY, scale), "rules": [*recorded, *raised]}]}


def _rule(alert: Alert, scale: float) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": _windows(alert.expr, scale),
        "for": scaled(alert.lasting, scale),
        "labels": {"severity": alert.severity},
        "annotations": {"summary": alert.summary, "runbook": f"{alert.means} Look: {alert.look} Mend: {alert.mend}"},
    }


def _windows(expr: str, scale: float) -> str:
    return re.sub(r"\[[^]]*\]", lambda window: scaled(window[0], scale), expr)


def scaled(durations: str, scale: float) -> str:
    """All durations of a text, shortened; no finer than a millisecond."""
    if scale == 1:
        return durations
    return DURATION.sub(lambda found: f"{round(int(found[1]) * UNITS_MS[found[2]] * scale)}ms", durations)
