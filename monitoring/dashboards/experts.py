"""Routed experts: who carries the load, on which ranks, for which domains, and what rebalancing makes of it."""

from monitoring.dashboards.panels import RATE, Board, Panel, Query, Row, by, per_s

TIER = 'tier="$tier"'
LAYER = f'{TIER}, layer="$layer"'
WINDOW = f"moray_expert_window_tokens{{{LAYER}}}"

EXPERTS = Board(
    uid="moray-experts",
    title="Moray: experts",
    says="Routed experts: who carries the load, on which ranks, for which domains, and what rebalancing makes of it.",
    variables=("tier", "layer", "domain"),
    decided=False,
    rows=(
        Row(
            title="Balance",
            panels=(
                Panel(
                    title="Imbalance",
                    says="Most over mean token rows of the ranks in the last window, by layer. 1 is even; every layer "
                    "waits for its busiest rank.",
                    unit="short",
                    queries=(
                        Query(
                            expr=f"max by (layer) (moray_expert_imbalance_ratio{{{TIER}}})", legend="layer {{layer}}"
                        ),
                    ),
                ),
                Panel(
                    title="Rebalances",
                    says="Times that experts moved over the time shown, and the copies that ranks received.",
                    unit="short",
                    kind="number",
                    queries=(
                        Query(
                            expr=f"sum(increase(moray_expert_rebalances_total{{{TIER}}}[$__range]))",
                            legend="rebalances",
                        ),
                        Query(
                            expr=f"sum(increase(moray_expert_moves_total{{{TIER}}}[$__range]))", legend="moved copies"
                        ),
                    ),
                ),
                Panel(
                    title="Stall of the last rebalance",
                    says="What the last rebalance added to decoding.",
                    unit="s",
                    queries=(Query(expr=f"max(moray_expert_rebalance_stall_seconds{{{TIER}}})", legend="stall"),),
                ),
            ),
        ),
        Row(
            title="Layer $layer",
            panels=(
                Panel(
                    title="Load by rank",
                    says="Token rows that each rank computed in the last window. One bright row: its rank holds the "
                    "others up.",
                    unit="short",
                    kind="heat",
                    width=12,
                    queries=(Query(expr=f"sum by (rank) ({WINDOW})", legend="rank {{rank}}"),),
                ),
                Panel(
                    title="Load by expert and rank",
                    says="Token rows of the last window for each expert on each rank that holds a copy.",
                    unit="short",
                    kind="heat",
                    width=12,
                    queries=(
                        Query(expr=f"sum by (rank, expert) ({WINDOW})", legend="rank {{rank}} expert {{expert}}"),
                    ),
                ),
                Panel(
                    title="Load by domain",
                    says="Token rows per second by the domain of the request.",
                    unit="short",
                    kind="heat",
                    width=12,
                    queries=(by("domain", per_s("moray_expert_tokens_total", "domain", where=LAYER)),),
                ),
                Panel(
                    title="Experts of the domain $domain",
                    says="Token rows per second for each expert, of the requests of one domain.",
                    unit="short",
                    kind="heat",
                    width=12,
                    queries=(
                        Query(
                            expr=f"sum by (expert) (rate(moray_expert_tokens_total{{{LAYER}, "
                            f'domain="$domain"}}[{RATE}]))',
                            legend="expert {{expert}}",
                        ),
                    ),
                ),
                Panel(
                    title="Copies",
                    says="Ranks that hold each expert.",
                    unit="short",
                    kind="heat",
                    width=24,
                    queries=(
                        Query(expr=f"max by (expert) (moray_expert_copies{{{LAYER}}})", legend="expert {{expert}}"),
                    ),
                ),
            ),
        ),
    ),
)
