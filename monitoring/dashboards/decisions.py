"""The control loop: what it decided and why, and whether it sees well enough to decide."""

from monitoring.dashboards.panels import RATE, Board, Panel, Query, Row, by

HERE = 'tier="$tier"'

DECISIONS = Board(
    uid="moray-decisions",
    title="Moray: decisions",
    says="The control loop: what it decided and why, and whether it sees well enough to decide. Reasons in words are "
    "annotations, posted by `moray grafana annotate`.",
    variables=("tier",),
    rows=(
        Row(
            title="Decisions for $tier",
            panels=(
                Panel(
                    title="Wanted, target, ready",
                    says="Wanted above target: the GPU budget is the limit. Target above ready: replicas are starting.",
                    unit="short",
                    width=16,
                    queries=(
                        Query(expr=f"max(moray_wanted_replicas{{{HERE}}})", legend="wanted"),
                        Query(expr=f"max(moray_target_replicas{{{HERE}}})", legend="target"),
                        by("state", f"max by (state) (moray_replicas{{{HERE}}})"),
                    ),
                ),
                Panel(
                    title="Causes",
                    says="Decisions by cause, per minute. Blind: signals could not be believed, and the target stayed.",
                    unit="short",
                    kind="stacked",
                    queries=(by("cause", f"60 * max by (cause) (rate(moray_decisions_total{{{HERE}}}[{RATE}]))"),),
                ),
            ),
        ),
        Row(
            title="Signals of all tiers",
            panels=(
                Panel(
                    title="Age of signals",
                    says="Age of the oldest signal that the last decision rests on.",
                    unit="s",
                    queries=(by("tier", "max by (tier) (moray_signal_age_seconds)"),),
                ),
                Panel(
                    title="Faulty looks",
                    says="Looks at a tier that could not be believed, per minute.",
                    unit="short",
                    queries=(
                        Query(
                            expr=f"60 * max by (tier, fault) (rate(moray_signal_faults_total[{RATE}]))",
                            legend="{{tier}} {{fault}}",
                        ),
                    ),
                ),
                Panel(
                    title="Parts that failed",
                    says="Parts of control ticks that failed, per minute. Any that lasts wants somebody.",
                    unit="short",
                    queries=(by("part", f"60 * max by (part) (rate(moray_control_errors_total[{RATE}]))"),),
                ),
                Panel(
                    title="Time since the last tick",
                    says="As of the scrape. The loop ticks every two seconds.",
                    unit="s",
                    queries=(
                        Query(
                            expr="min(timestamp(moray_control_tick_timestamp_seconds)"
                            " - moray_control_tick_timestamp_seconds)",
                            legend="last tick",
                        ),
                    ),
                ),
                Panel(
                    title="Length of a tick",
                    says="Duration of a control tick.",
                    unit="s",
                    queries=(
                        Query(
                            expr="histogram_quantile(0.95, max by (le) "
                            f"(rate(moray_control_tick_seconds_bucket[{RATE}])))",
                            legend="p95",
                        ),
                    ),
                ),
                Panel(
                    title="Choices of a replica",
                    says="By method. None: replicas were left in Serve's own order.",
                    unit="ops",
                    kind="stacked",
                    queries=(by("method", f"sum by (method) (rate(moray_routing_decisions_total[{RATE}]))"),),
                ),
            ),
        ),
    ),
)
