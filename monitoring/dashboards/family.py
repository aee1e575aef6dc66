"""The family at a glance: what is asked, what runs, whether promises hold, and what it costs."""

from monitoring.dashboards.panels import RANGE, Board, Panel, Query, Row, by, per_s, share
from monitoring.slo import ALLOWED

KEPT = share('moray_promises_total{outcome="kept"}', "moray_promises_total", "tier")
MISSED = share('moray_promises_total{outcome="missed"}', "moray_promises_total", "tier", RANGE)
# Decided once for the family; where several gateways show the loop's page, each shows the same.
GPUS_HELD = "sum(max by (tier) (moray_gpus_held))"
GPU_HOURS = f"max by (tier) (increase(moray_gpu_seconds_total[{RANGE}])) / 3600"

FAMILY = Board(
    uid="moray-family",
    title="Moray: family",
    says="What is asked, what runs, whether promises hold, and what it costs.",
    variables=("usd_per_gpu_hour",),
    rows=(
        Row(
            title="Demand",
            panels=(
                Panel(
                    title="Arrivals",
                    says="Requests that asked for the tier, refused and held ones included.",
                    unit="reqps",
                    queries=(by("tier", per_s("moray_arrivals_total", "tier")),),
                ),
                Panel(
                    title="Admission",
                    says="What admission did with arrivals. Refusals that last mean more demand than replicas.",
                    unit="reqps",
                    kind="stacked",
                    queries=(by("action", per_s("moray_admissions_total", "action")),),
                ),
                Panel(
                    title="Errors",
                    says="Answers by the code of their error, without those that went well or whose client left.",
                    unit="reqps",
                    queries=(by("code", per_s("moray_requests_total", "code", where='code!~"ok|client_gone"')),),
                ),
                Panel(
                    title="Output tokens",
                    says="Tokens of answered requests. They count when the answer ends.",
                    unit="short",
                    queries=(by("tier", per_s("moray_completion_tokens_total", "tier")),),
                ),
                Panel(
                    title="Prompt tokens",
                    says="Prompt tokens of answered requests, and those that a prefix cache spared.",
                    unit="short",
                    queries=(
                        by("tier", per_s("moray_prompt_tokens_total", "tier")),
                        Query(expr=per_s("moray_cached_prompt_tokens_total", "tier"), legend="{{tier}} from cache"),
                    ),
                ),
                Panel(
                    title="Held requests",
                    says="Requests that wait in gateways for a replica. A tier that wakes holds some for a while.",
                    unit="short",
                    queries=(by("tier", "sum by (tier) (moray_held_requests)"),),
                ),
            ),
        ),
        Row(
            title="Replicas",
            panels=(
                Panel(
                    title="Replicas",
                    says="Replicas that exist, by state. Starting ones hold their GPUs already, draining ones still.",
                    unit="short",
                    kind="stacked",
                    queries=(Query(expr="max by (tier, state) (moray_replicas) > 0", legend="{{tier}} {{state}}"),),
                ),
                Panel(
                    title="GPU budget",
                    says="GPUs that the family may hold, and those that replicas hold, by tier.",
                    unit="short",
                    kind="stacked",
                    queries=(
                        by("tier", "max by (tier) (moray_gpus_held)"),
                        Query(expr=f"max(moray_gpus) - {GPUS_HELD}", legend="free"),
                    ),
                ),
                Panel(
                    title="Budget used",
                    says="Held GPUs over those of the budget. At 1 tiers compete: targets lie below what is wanted.",
                    unit="percentunit",
                    queries=(Query(expr=f"{GPUS_HELD} / max(moray_gpus > 0)", legend="used"),),
                ),
            ),
        ),
        Row(
            title="Promises",
            panels=(
                Panel(
                    title="Promises kept",
                    says="Ended requests that kept their tier's promises, and what the tier's objective asks.",
                    unit="percentunit",
                    width=16,
                    queries=(
                        by("tier", KEPT),
                        Query(expr=f"1 - {ALLOWED}", legend="{{tier}} objective"),
                    ),
                ),
                Panel(
                    title="Error budget left",
                    says="Of the misses that the objective allows over the time shown. Below 0 more was missed.",
                    unit="percentunit",
                    kind="number",
                    queries=(by("tier", f"1 - ({MISSED}) / on(tier) {ALLOWED}"),),
                ),
            ),
        ),
        Row(
            title="Money",
            panels=(
                Panel(
                    title="GPU-hours",
                    says="Over the time shown, those of replicas that start or drain included.",
                    unit="short",
                    kind="number",
                    queries=(by("tier", GPU_HOURS),),
                ),
                Panel(
                    title="Cost",
                    says="GPU-hours times the price above, over the time shown. The price is yours to enter.",
                    unit="currencyUSD",
                    kind="number",
                    queries=(by("tier", f"{GPU_HOURS} * $usd_per_gpu_hour"),),
                ),
                Panel(
                    title="Cost of a million output tokens",
                    says="What the tier's GPUs cost over the output tokens of its answers, over the time shown.",
                    unit="currencyUSD",
                    kind="number",
                    queries=(
                        by(
                            "tier",
                            f"1e6 * $usd_per_gpu_hour * {GPU_HOURS}"
                            f" / (sum by (tier) (increase(moray_completion_tokens_total[{RANGE}])) > 0)",
                        ),
                    ),
                ),
            ),
        ),
    ),
)
